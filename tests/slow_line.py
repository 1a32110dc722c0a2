"""A network line to a server on this machine, as slow as a test wants it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field


@dataclass
class SlowLine:
    """Passes on what either side says; what the server says comes late."""

    to_port: int
    port: int = 0
    delay_seconds: float = 0.0
    _connections: set[asyncio.Task[None]] = field(default_factory=set)

    def start(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Connect a client in a task that can be ended."""
        task = asyncio.create_task(self._connect(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on until either side hangs up."""
        try:
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self.to_port)
        except OSError:
            writer.close()
            return
        ways = [
            asyncio.create_task(self._pass_on(reader, to_server, late=False)),
            asyncio.create_task(self._pass_on(from_server, writer, late=True)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            to_server.close()
            writer.close()

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, late: bool
    ) -> None:
        with suppress(OSError):
            while octets := await reader.read(65_536):
                if late:
                    await asyncio.sleep(self.delay_seconds)
                writer.write(octets)
                await writer.drain()

    async def close(self) -> None:
        """Cut off everybody."""
        tasks = list(self._connections)  # each takes itself off
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def slow_line(to_port: int) -> AsyncIterator[SlowLine]:
    """Lay a line to a port of this machine."""
    line = SlowLine(to_port)
    listener = await asyncio.start_server(line.start, "127.0.0.1", 0)
    line.port = listener.sockets[0].getsockname()[1]
    try:
        yield line
    finally:
        listener.close()
        await line.close()
