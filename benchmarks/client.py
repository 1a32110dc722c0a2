"""Asks a service for tokens, from many connections at once, for a fixed time.

    python benchmarks/client.py PORT CALLERS SECONDS TOKENS_FILE

Prints one line of JSON: how many were answered 200 and otherwise, in how many seconds, and the
latencies in ms at the median and at 99 %.
"""

import asyncio
import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import cast

import uvloop

REQUEST = (
    "POST /realtime/token HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {}\r\n"
    "Content-Length: 0\r\n\r\n"
)


class Caller(asyncio.Protocol):
    """One connection that asks again as soon as it is answered."""

    def __init__(self, requests: "itertools.cycle[bytes]", until: float) -> None:
        self._requests = requests
        self._until = until
        self._received = b""
        self.latencies: list[float] = []
        self.refused = 0
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._ask()

    def _ask(self) -> None:
        self._asked_at = time.perf_counter()
        self._transport.write(next(self._requests))

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        if len(body) < length:
            return
        now = time.perf_counter()
        if head.startswith(b"HTTP/1.1 200"):
            self.latencies.append((now - self._asked_at) * 1000)
        else:
            self.refused += 1
        self._received = b""
        if now < self._until:
            self._ask()
        else:
            self._transport.close()

    def connection_lost(self, _exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)


async def main(port: int, callers: int, seconds: float, tokens: list[str]) -> None:
    """Ask for *seconds*, then print what came back."""
    requests = itertools.cycle([REQUEST.format(token).encode() for token in tokens])
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    connections = [
        (
            await loop.create_connection(
                lambda: Caller(requests, began + seconds), "127.0.0.1", port
            )
        )[1]
        for _ in range(callers)
    ]
    await asyncio.gather(*(caller.done for caller in connections))
    latencies = sorted(ms for caller in connections for ms in caller.latencies)
    print(
        json.dumps(
            {
                "answered": len(latencies),
                "refused": sum(caller.refused for caller in connections),
                "seconds": time.perf_counter() - began,
                "p50": statistics.median(latencies),
                "p99": latencies[int(len(latencies) * 0.99)],
            }
        )
    )


if __name__ == "__main__":
    uvloop.run(
        main(
            int(sys.argv[1]),
            int(sys.argv[2]),
            float(sys.argv[3]),
            Path(sys.argv[4]).read_text().split(),
        )
    )
