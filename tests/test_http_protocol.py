"""The bounds of a connection, on a real server; how the whole service takes them: test_hostile."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from app.web.http_protocol import MAX_HEAD_BYTES, MAX_PIPELINED, HttpProtocol

pytestmark = pytest.mark.slow

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LAST_GET = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


class Hurried(HttpProtocol):
    """As in production, but nobody waits ten seconds for it."""

    head_seconds = 0.05


async def ok(scope: Scope, receive: Receive, send: Send) -> None:
    """Read the body and answer 200, or 500 when it did not come to its end."""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        more = message.get("more_body", False)
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]}
    )
    await send({"type": "http.response.body"})


@asynccontextmanager
async def serving(protocol: type[HttpProtocol] = HttpProtocol) -> AsyncIterator[int]:
    """Serve `ok` on loopback; gives the port."""
    config = uvicorn.Config(
        ok,
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await task


async def answers(port: int, *parts: bytes) -> list[int]:
    """Send *parts*, one after the other, and return the statuses until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for part in parts:
        writer.write(part)
        await writer.drain()
    received = b""
    async with asyncio.timeout(5):
        try:
            while chunk := await reader.read(65_536):
                received += chunk
        except ConnectionResetError:
            pass  # it had more to read than it wanted; the answer was there before
    writer.close()
    lines = [line for line in received.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
    return [int(line.split()[1]) for line in lines]


async def test_a_connection_serves_requests_one_after_another() -> None:
    body = b"3\r\nabc\r\n" * 20_000 + b"0\r\n\r\n"

    async with serving() as port:
        assert await answers(port, GET, POST + b"5\r\nhello\r\n0\r\n\r\n", LAST_GET) == [200] * 3
        assert await answers(port, POST + body[:1_000], LAST_GET) == [400]  # cut in the middle


@pytest.mark.parametrize("missing", [-200, 0])
async def test_a_head_may_be_as_large_as_said_and_no_larger(missing: int) -> None:
    head = LAST_GET.replace(b"\r\n\r\n", b"\r\nX-Long: ")
    filled = head + b"a" * (MAX_HEAD_BYTES + missing) + b"\r\n\r\n"

    async with serving() as port:
        assert await answers(port, filled) == [200 if missing else 431]


@pytest.mark.parametrize(
    "endless",
    [
        b"GET /" + b"a" * MAX_HEAD_BYTES,
        b"GET / HTTP/1.1\r\nX-Long: " + b"a" * MAX_HEAD_BYTES,
        b"GET / HTTP/1.1\r\n" + b"X-Many: a\r\n" * (MAX_HEAD_BYTES // 10),
        POST + b"2;" + b"a" * MAX_HEAD_BYTES,
        POST + b"0\r\n" + b"X-Many: a\r\n" * (MAX_HEAD_BYTES // 10),
    ],
    ids=["address", "field", "fields", "chunk extension", "trailers"],
)
async def test_what_does_not_come_to_an_end_is_refused(endless: bytes) -> None:
    async with serving() as port:
        assert await answers(port, endless) == [431]


async def test_a_body_is_not_counted_as_head() -> None:
    post = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (32 * MAX_HEAD_BYTES)

    async with serving() as port:
        sent = [post, *[b"a" * MAX_HEAD_BYTES] * 32, LAST_GET]
        assert await answers(port, *sent) == [200, 200]


async def test_a_few_requests_may_be_sent_ahead() -> None:
    async with serving() as port:
        assert await answers(port, GET * (MAX_PIPELINED - 1) + LAST_GET) == [200] * MAX_PIPELINED
        assert 431 in await answers(port, GET * (MAX_PIPELINED + 2))


@pytest.mark.parametrize(
    ("sent", "answered"),
    [(b"", []), (b"GET / HT", [408]), (GET + b"\r\nGET / HT", [200]), (GET, [200])],
    ids=["nothing", "half a head", "a request and a half", "a request"],
)
async def test_a_head_that_does_not_come_is_not_waited_for(
    sent: bytes, answered: list[int]
) -> None:
    async with serving(Hurried) as port:
        assert await answers(port, sent) == answered


async def test_once_its_head_is_there_a_request_may_take_its_time() -> None:
    async with serving(Hurried) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(POST + b"5\r\nhel")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 4 * Hurried.head_seconds)
        writer.write(b"lo\r\n0\r\n\r\n")

        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        writer.close()


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket"])
async def test_an_offered_upgrade_is_ignored_and_the_connection_goes_on(protocol: bytes) -> None:
    offer = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n" % protocol

    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for request in (offer, GET):
            writer.write(request)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        writer.close()
