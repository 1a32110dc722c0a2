"""A stand-in for OpenAI that always answers the same, after a fixed time, at next to no cost.

python benchmarks/upstream.py PORT DELAY_MS
"""

import asyncio
import json
import sys
import time
from typing import cast

import uvloop

BODY = json.dumps(
    {
        "value": "ek_0123456789abcdef0123456789abcdef",
        "expires_at": int(time.time()) + 3600,
        "session": {"type": "realtime", "model": "gpt-realtime-2.1-mini", "id": "sess_bench"},
    }
).encode()
ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Request-Id: req_bench\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
)


class Upstream(asyncio.Protocol):
    """One connection; requests on it come one at a time."""

    def __init__(self, delay_seconds: float) -> None:
        self._delay_seconds = delay_seconds
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        if len(body) < length:
            return
        self._received = b""
        if self._delay_seconds:
            loop = asyncio.get_running_loop()
            loop.call_later(self._delay_seconds, self._transport.write, ANSWER)
        else:
            self._transport.write(ANSWER)


async def main(port: int, delay_ms: float) -> None:
    """Serve until the process is ended."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Upstream(delay_ms / 1000), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), float(sys.argv[2])))
