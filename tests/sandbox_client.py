"""The sandbox on a real server, and a client that believes nothing it has not checked.

Every event that comes in is read with the type the official SDK has for it. A member the SDK does
not know is an error, unless OpenAI is known to send it.
"""

import asyncio
import base64
import contextlib
import json
import math
import socket
import struct
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, get_args

import httpx
import uvicorn
from openai._models import BaseModel
from openai.types.realtime import RealtimeServerEvent
from starlette.applications import Starlette
from starlette.routing import Mount
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from app.sandbox.app import Habits, SandboxModel, create_sandbox
from tests.clock import StandingClock

API_KEY = "sk-sandbox-0123456789abcdef"
MINI = "gpt-realtime-2.1-mini"
MODELS = [
    SandboxModel(MINI, created=1_783_296_000, shutdown_date=None, realtime=True),
    SandboxModel("gpt-realtime", 1_756_339_200, shutdown_date="2027-01-20", realtime=True),
    SandboxModel("gpt-4o-mini-transcribe", 1_742_428_800, "2027-02-26", realtime=False),
]

_KINDS: dict[str, type[BaseModel]] = {
    kind: model
    for model in get_args(get_args(RealtimeServerEvent)[0])
    for kind in get_args(model.model_fields["type"].annotation)
}
_SENT_BY_OPENAI_TOO = {"obfuscation", "session.object", "session.id", "session.expires_at"}

Event = dict[str, Any]


def check(event: Event) -> None:
    """Fail unless *event* is what the official SDK takes it to be."""
    model = _KINDS[event["type"]].model_validate(event, strict=True)
    unknown = set(_unknown_members(model)) - _SENT_BY_OPENAI_TOO
    assert not unknown, f"{event['type']} has {unknown}"


def _unknown_members(value: object, at: str = "") -> Iterator[str]:
    match value:
        case BaseModel():
            yield from (f"{at}{name}" for name in value.model_extra or {})
            for name in type(value).model_fields:
                yield from _unknown_members(getattr(value, name), f"{at}{name}.")
        case list():
            for member in value:
                yield from _unknown_members(member, at)


class Session:
    """The client's end of a session."""

    def __init__(self, websocket: ClientConnection) -> None:
        self.websocket = websocket

    async def send(self, kind: str, **members: object) -> None:
        await self.websocket.send(json.dumps({"type": kind, **members}))

    async def receive(self) -> Event:
        async with asyncio.timeout(5):
            event: Event = json.loads(await self.websocket.recv())
        check(event)
        return event

    async def until(self, kind: str) -> list[Event]:
        """Receive up to and including the next event of *kind*."""
        events = [await self.receive()]
        while events[-1]["type"] != kind:
            events.append(await self.receive())
        return events

    async def next(self, kind: str) -> Event:
        """Receive the next event of *kind*, and whatever comes before it."""
        return (await self.until(kind))[-1]

    async def refused(self, kind: str, **members: object) -> Event:
        """Send an event and return the error that must be the very next answer."""
        await self.send(kind, **members)
        event = await self.receive()
        assert event["type"] == "error", event
        error: Event = event["error"]
        return error

    async def say(self, text: str) -> None:
        """Add a user message."""
        content = [{"type": "input_text", "text": text}]
        item = {"type": "message", "role": "user", "content": content}
        await self.send("conversation.item.create", item=item)
        await self.next("conversation.item.done")

    async def ask(self, text: str, **response: object) -> list[Event]:
        """Take a text turn and return the events of the answer."""
        await self.say(text)
        await self.send("response.create", response=response)
        return await self.until("rate_limits.updated")

    async def hear(self, *sounds: bytes) -> None:
        """Append *sounds* to the input audio buffer, one event."""
        audio = base64.b64encode(b"".join(sounds)).decode()
        await self.send("input_audio_buffer.append", audio=audio)

    async def closed(self) -> tuple[int, str]:
        """Wait until the server has closed; return code and reason."""
        with contextlib.suppress(ConnectionClosed):
            async with asyncio.timeout(5):
                while True:
                    check(json.loads(await self.websocket.recv()))
        return self.websocket.close_code or 0, self.websocket.close_reason or ""


@dataclass(frozen=True)
class RunningSandbox:
    """A sandbox that listens on loopback.

    The same sandbox stands at ``/v1``; at ``/unhurried/v1`` is one that pauses for a minute after
    each delta, so that a response can be interrupted in the middle.
    """

    base_url: str
    clock: StandingClock
    http: httpx.AsyncClient

    async def mint(self, session: Mapping[str, object] | None = None, **body: object) -> Event:
        """Mint a client secret for *session*, default a session of the mini model."""
        asked = {"session": session or {"type": "realtime", "model": MINI}, **body}
        answer = await self.http.post("realtime/client_secrets", json=asked)
        assert answer.status_code == 200, answer.text
        minted: Event = answer.json()
        return minted

    @contextlib.asynccontextmanager
    async def connected(
        self,
        *,
        credential: str | None = None,
        query: str = "",
        headers: Mapping[str, str] | None = None,
        subprotocols: list[str] | None = None,
        unhurried: bool = False,
    ) -> AsyncIterator[Session]:
        """Open the WebSocket, with *credential* in the ``Authorization`` header."""
        base = self.base_url.replace("http", "ws", 1)
        if unhurried:
            base = base.replace("/v1", "/unhurried/v1")
        sent = dict(headers or {})
        if credential is not None:
            sent["Authorization"] = f"Bearer {credential}"
        async with connect(
            f"{base}/realtime{query}",
            additional_headers=sent,
            subprotocols=[Subprotocol(name) for name in subprotocols or []] or None,
            compression=None,  # the frames are large and never leave the machine
            proxy=None,
        ) as websocket:
            yield Session(websocket)

    @contextlib.asynccontextmanager
    async def session(
        self, session: Mapping[str, object] | None = None, *, unhurried: bool = False
    ) -> AsyncIterator[Session]:
        """Open a session with the standard key and set it up as *session* says."""
        transcribes = session is not None and session["type"] == "transcription"
        query = "?intent=transcription" if transcribes else f"?model={MINI}"
        async with self.connected(credential=API_KEY, query=query, unhurried=unhurried) as opened:
            await opened.next("session.created")
            if session is not None:
                await opened.send("session.update", session=session)
                await opened.next("session.updated")
            yield opened


@contextlib.asynccontextmanager
async def running_sandbox() -> AsyncIterator[RunningSandbox]:
    """Serve a sandbox with a clock that stands still."""
    clock = StandingClock(datetime(2026, 11, 20, 12, 0, tzinfo=UTC))

    def sandbox(delta_seconds: float) -> Starlette:
        return create_sandbox(
            api_key=API_KEY, clock=clock, models=MODELS, habits=Habits(delta_seconds=delta_seconds)
        )

    app = Starlette(
        routes=[Mount("/v1", sandbox(0)), Mount("/unhurried/v1", sandbox(delta_seconds=60))]
    )
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, lifespan="off", ws_max_size=24 * 1024 * 1024)
    )
    # asyncio turns Nagle's algorithm off only where the protocol is named; else each pair of events
    # takes 40 ms.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen()  # takes connections from here on
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    base_url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    headers = {"Authorization": f"Bearer {API_KEY}"}
    async with httpx.AsyncClient(base_url=base_url, headers=headers, trust_env=False) as http:
        yield RunningSandbox(base_url, clock, http)
    server.should_exit = True
    await serving


def tone(milliseconds: int) -> bytes:
    """Return a tone that counts as speech: PCM16, 24 kHz."""
    samples = (round(8_000 * math.sin(n / 10)) for n in range(milliseconds * 24))
    return struct.pack(f"<{milliseconds * 24}h", *samples)


def silence(milliseconds: int) -> bytes:
    """Return silence: PCM16, 24 kHz."""
    return bytes(milliseconds * 48)


def kinds(events: list[Event]) -> list[str]:
    """Return the types of *events*, with neighbours of the same type taken together."""
    named = [event["type"] for event in events]
    return [kind for kind, before in zip(named, [None, *named], strict=False) if kind != before]
