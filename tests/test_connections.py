"""The connections to OpenAI: what counts as an answer, and when a connection is used again."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from app.minting import connections
from app.minting.connections import (
    MAX_HEAD_BYTES,
    CannotConnect,
    ConnectionLost,
    Connections,
    NotHttp,
    Reply,
)
from tests.upstreams import Server, listening, self_signed

OK = b"HTTP/1.1 200 OK\r\n"
BODY = b"Content-Length: 4\r\n\r\nbody"


@asynccontextmanager
async def to(
    server: Server, *, tls: ssl.SSLContext | None = None, proxy: str | None = None
) -> AsyncIterator[Connections]:
    pool = Connections("127.0.0.1", server.port, tls=tls, proxy=proxy, connect_seconds=5)
    try:
        yield pool
    finally:
        pool.close()


async def ask(pool: Connections, *, limit_bytes: int = 100) -> Reply:
    async with asyncio.timeout(5):
        return await pool.ask(
            "POST", "/v1/mint?a=b", b"Host: x\r\n", b"wish", limit_bytes=limit_bytes
        )


@asynccontextmanager
async def saying(*answers: bytes, hang_up: bool = False) -> AsyncIterator[Server]:
    """Serve one answer for each request, on however many connections."""
    left = list(answers)

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while left:
            await server.read(reader)
            writer.write(left.pop(0))
            if hang_up:
                return
        await reader.read()

    async with listening(handler) as server:
        yield server


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        (OK + b"Content-Length: 4\r\n\r\nbody", 200, b"body"),
        (OK + b"Content-Length: 0\r\n\r\n", 200, b""),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nbo\r\n2\r\ndy\r\n0\r\n\r\n", 200, b"body"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 4\r\n\r\nbody", 200, b"body"),
        (
            b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 3
            + b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbody",
            503,
            b"body",
        ),
        (OK + b"content-length: 200\r\n\r\n" + b"b" * 200, 200, b"b" * 200),  # cut off, see limit
    ],
)
async def test_an_answer_in_any_of_its_forms(answer: bytes, status: int, body: bytes) -> None:
    async with saying(answer) as server, to(server) as pool:
        reply = await ask(pool)

    assert (reply.status, reply.body) == (status, body)
    assert server.requests[0].line == "POST /v1/mint?a=b HTTP/1.1"
    assert server.requests[0].body == b"wish"


@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
async def test_a_body_without_a_length_ends_with_the_connection(version: bytes) -> None:
    answer = version + b" 200 OK\r\n\r\nbody"
    async with saying(answer, hang_up=True) as server, to(server) as pool:
        reply = await ask(pool)

    assert (reply.status, reply.body) == (200, b"body")


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        OK + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nbody",
        OK + b"Content-Length: -1\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\nXX\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nbody",
        OK + b"X-Long: " + b"x" * MAX_HEAD_BYTES,
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 2000,
    ],
)
async def test_what_is_no_answer(answer: bytes) -> None:
    async with saying(answer) as server, to(server) as pool:
        with pytest.raises(NotHttp):
            await ask(pool)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        OK,
        b"HTTP/1.1 100 Continue\r\n\r\n",
    ],
)
async def test_an_answer_that_does_not_begin(answer: bytes) -> None:
    async with saying(answer, hang_up=True) as server, to(server) as pool:
        with pytest.raises(ConnectionLost):
            await ask(pool)


async def test_nor_does_it_on_a_connection_that_was_used_before() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.read(reader)
        writer.write(OK + BODY)
        await server.read(reader)

    async with listening(handler) as server, to(server) as pool:
        await ask(pool)

        with pytest.raises(ConnectionLost):
            await ask(pool)

    assert (server.connections, len(server.requests)) == (1, 2)


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"Content-Length: 5\r\n\r\nbody",
        OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n",
    ],
)
async def test_a_body_that_breaks_off_is_none(answer: bytes) -> None:
    async with saying(answer, hang_up=True) as server, to(server) as pool:
        reply = await ask(pool)

    assert (reply.status, reply.body) == (200, b"")


async def test_a_long_body_is_read_to_the_limit_and_not_much_further() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.read(reader)
        writer.write(OK + b"Content-Length: 1000000000\r\n\r\n")
        while True:
            writer.write(b"x" * 100_000)
            await writer.drain()

    async with listening(handler) as server, to(server) as pool:
        reply = await ask(pool, limit_bytes=1_000_000)

    assert 1_000_000 < len(reply.body) < 2_000_000


@pytest.mark.parametrize(
    ("first", "used_again"),
    [
        (OK + BODY, True),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", True),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK + BODY, True),
        (OK + b"Connection: close\r\n" + BODY, False),
        (b"HTTP/1.0 200 OK\r\n" + BODY, False),
        (OK + BODY + OK + BODY, False),
        (OK + BODY + b"more", False),
        (OK + b"Content-Length: 101\r\n\r\n" + b"x" * 101, False),
    ],
)
async def test_when_a_connection_is_used_again(first: bytes, *, used_again: bool) -> None:
    async with saying(first, OK + BODY) as server, to(server) as pool:
        await ask(pool)
        reply = await ask(pool)

    assert reply.body == b"body"
    assert server.connections == (1 if used_again else 2)


async def test_what_comes_unasked_is_not_taken_for_the_next_answer() -> None:
    said = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.read(reader)
        writer.write(OK + BODY)
        if server.connections == 1:
            await writer.drain()
            await asyncio.wait_for(may_say.wait(), 5)
            writer.write(OK + b"Content-Length: 5\r\n\r\nwrong")
            said.set()
        await reader.read()

    may_say = asyncio.Event()
    async with listening(handler) as server, to(server) as pool:
        await ask(pool)
        may_say.set()
        await said.wait()
        await asyncio.sleep(0.05)  # nothing tells us when it has arrived
        reply = await ask(pool)

    assert reply.body == b"body"
    assert server.connections == 2


async def test_idle_connections_are_closed_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "KEEPALIVE_SECONDS", 0.05)
    closed = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.read(reader)
        writer.write(OK + BODY)
        with suppress(ConnectionError):
            await reader.read()
        closed.set()

    async with listening(handler) as server, to(server) as pool:
        await ask(pool)
        await asyncio.wait_for(closed.wait(), 5)


async def test_a_name_that_nobody_has_is_no_connection() -> None:
    pool = Connections("no-such-host.invalid", 80, tls=None, proxy=None, connect_seconds=5)

    with pytest.raises(CannotConnect):
        await ask(pool)


@asynccontextmanager
async def tunnelling(answer: bytes, *, tls: ssl.SSLContext | None) -> AsyncIterator[Server]:
    """Be a proxy that answers CONNECT, and then hands on whatever comes."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await proxy.read(reader)
        writer.write(answer)
        _, target, _ = proxy.requests[-1].line.split()
        host, port = target.split(":")
        from_there, to_there = await asyncio.open_connection(host, int(port))
        try:
            await asyncio.gather(hand_on(reader, to_there), hand_on(from_there, writer))
        finally:
            to_there.close()

    async def hand_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async with listening(handler, tls=tls) as proxy:
        yield proxy


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_tls_goes_through_a_proxy_in_a_tunnel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await server.read(reader)
            writer.write(OK + BODY)

    own = self_signed(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    trusted = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    async with (
        listening(handler, tls=own) as server,
        tunnelling(b"HTTP/1.1 200 OK\r\n\r\n", tls=own if scheme == "https" else None) as proxy,
    ):
        address = f"{scheme}://user:p%40ss@127.0.0.1:{proxy.port}"
        async with to(server, tls=trusted, proxy=address) as pool:
            replies = [await ask(pool), await ask(pool)]

    assert [reply.body for reply in replies] == [b"body", b"body"]
    assert [request.line for request in proxy.requests] == [
        f"CONNECT 127.0.0.1:{server.port} HTTP/1.1"
    ]
    assert proxy.requests[0].headers["proxy-authorization"] == "Basic dXNlcjpwQHNz"
    assert not any("proxy-authorization" in request.headers for request in server.requests)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 407 Who are you\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nmore",
        b"nonsense\r\n\r\n",
        b"x" * (MAX_HEAD_BYTES + 1),
    ],
    ids=["refused", "says more", "nonsense", "endless"],
)
async def test_without_a_tunnel_nothing_is_sent(answer: bytes) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await proxy.read(reader)
        writer.write(answer)
        await reader.read()

    async with listening(handler) as proxy:
        address = f"http://127.0.0.1:{proxy.port}"
        async with to(proxy, tls=ssl.create_default_context(), proxy=address) as pool:
            with pytest.raises(CannotConnect):
                await ask(pool)
