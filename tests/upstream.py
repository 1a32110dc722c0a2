"""A stand-in for OpenAI in a server of its own, which counts what really arrives."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Upstream:
    """Mints for whoever asks, and remembers whom; lists its models too."""

    url: str = ""
    delay_seconds: float = 0.0
    status: int = 200
    error: dict[str, Any] = field(default_factory=dict)
    models: list[dict[str, Any]] = field(default_factory=list)  # what `GET /models` lists
    asked: list[str] = field(default_factory=list)  # X-Client-Request-Id of every mint
    keys: list[str] = field(default_factory=list)  # the API key of every mint
    minted: list[str] = field(default_factory=list)
    connections: set[asyncio.Task[None]] = field(default_factory=set)
    most_at_once: int = 0  # mints under way
    _at_once: int = 0
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def start(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection in a task that can be ended."""
        task = asyncio.create_task(self.serve(reader, writer))
        self.connections.add(task)
        task.add_done_callback(self.connections.discard)

    async def reached(self, count: int) -> None:
        """Wait until so many mints have arrived in all."""
        async with asyncio.timeout(30):
            while len(self.asked) < count:
                self._arrived.clear()
                await self._arrived.wait()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                lines = (line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
                headers = {name.lower(): value for name, value in lines}
                sent = await reader.readexactly(int(headers["content-length"]))
                if head.startswith("GET "):
                    writer.write(self._answer({"object": "list", "data": self.models}))
                    continue
                body = json.loads(sent)
                self.asked.append(headers["x-client-request-id"])
                self.keys.append(headers["authorization"].removeprefix("Bearer "))
                self._arrived.set()
                self._at_once += 1
                self.most_at_once = max(self.most_at_once, self._at_once)
                await asyncio.sleep(self.delay_seconds)
                self._at_once -= 1
                writer.write(self._answer(self._mint(body)))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _mint(self, body: dict[str, Any]) -> dict[str, Any]:
        if self.status != 200:
            return {}
        value = f"ek_{secrets.token_hex(16)}"
        self.minted.append(value)
        seconds = body["expires_after"]["seconds"]
        return {"value": value, "expires_at": int(time.time()) + seconds, "session": {}}

    def _answer(self, good: dict[str, Any]) -> bytes:
        text = json.dumps(good if self.status == 200 else {"error": self.error})
        return (
            f"HTTP/1.1 {self.status} X\r\nContent-Type: application/json\r\n"
            f"X-Request-Id: req_{len(self.asked)}\r\nContent-Length: {len(text)}\r\n\r\n{text}"
        ).encode()


@asynccontextmanager
async def playing_openai() -> AsyncIterator[Upstream]:
    """Serve an `Upstream` on loopback."""
    upstream = Upstream()
    server = await asyncio.start_server(upstream.start, "127.0.0.1", 0)
    upstream.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield upstream
    finally:
        server.close()
        tasks = list(upstream.connections)  # each takes itself off
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
