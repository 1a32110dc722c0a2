"""Stand-ins for what is outside the process."""

import json
from typing import TYPE_CHECKING, Any

import httpx

from app.base.clock import Clock, system_clock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class FakeOpenAI:
    """Answers like OpenAI and remembers what it was asked.

    Plugs in below our own code: `OpenAI(…, transport=httpx.MockTransport(FakeOpenAI()))`.

    Args:
        clock: Gives the moment at which a secret is minted.
    """

    def __init__(self, *, clock: Clock = system_clock) -> None:
        self._clock = clock
        self.requests: list[httpx.Request] = []
        self.minted: list[str] = []
        self.models: list[dict[str, Any]] = []
        """What it lists at `GET /models`."""
        self.reply: httpx.Response | Exception | None = None
        """Answers or breaks everything like this, instead of minting or listing."""
        self.meanwhile: Callable[[], Awaitable[object]] | None = None
        """What happens elsewhere between the question and the answer."""

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if self.meanwhile is not None:
            await self.meanwhile()
        if isinstance(self.reply, Exception):
            raise self.reply
        if self.reply is not None:
            return self.reply
        if request.method == "GET":
            return httpx.Response(200, json={"object": "list", "data": self.models})
        return self._mint(json.loads(request.content))

    def _mint(self, body: dict[str, Any]) -> httpx.Response:
        """Answer in the shape that was recorded, nulls included."""
        now = int(self._clock().timestamp())
        value = f"ek_{len(self.minted):032x}"
        self.minted.append(value)
        session = {
            "object": "realtime.session",
            "id": "sess_Dx7Qm2pLr9Tz1aVbC3nE5",
            "expires_at": 0,
            "include": None,
            "prompt": None,
            "tracing": None,
            **body["session"],
        }
        return httpx.Response(
            200,
            headers={"x-request-id": f"req_{len(self.minted):032x}"},
            json={
                "value": value,
                "expires_at": now + body["expires_after"]["seconds"],
                "session": session,
            },
        )
