"""HTTP/1.1 to one server: connections that are kept, and one request at a time on each.

Less than a client library does, and that is the point (docs/decisions/0001-http-transport.md):
every failure says whether anything of the request can have been sent, nothing is ever sent twice,
and a call costs a small part of what it costs with httpx's own pool. The parser is httptools, the
one that reads our own clients' requests.
"""

import asyncio
import base64
import re
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import TypeVar, cast
from urllib.parse import unquote, urlsplit

import aiohappyeyeballs
import httptools

P = TypeVar("P", bound=asyncio.Protocol)

KEEPALIVE_SECONDS = 4.0
"""How long an idle connection is kept: less than servers do (5 s is the least in common use), so
that a request seldom meets a connection that is just being closed."""

NEXT_ADDRESS_SECONDS = 0.25
"""When the next address of a host is tried beside one that does not answer (RFC 8305)."""

MAX_HEAD_BYTES = 32 * 1024
"""Status line and header fields of one answer, interim answers before it included."""

_HTTP_PORT = 80
_INTERIM = range(100, 200)


class CannotConnect(Exception):
    """There is no connection, so nothing was sent."""


class ConnectionLost(Exception):
    """The connection ended before the answer began. The request may have arrived."""


class NotHttp(Exception):
    """What came back is no answer in HTTP/1.1. The request may have arrived."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer. Its body is whole, or longer than the limit, or empty when it broke off."""

    status: int
    headers: list[tuple[bytes, bytes]] = field(repr=False)
    body: bytes = field(repr=False)


class Connections:
    """The connections to one server.

    Args:
        host: Name or address, ASCII.
        port: Of the server.
        tls: What its certificate is checked with; None for plain HTTP.
        proxy: ``http://`` or ``https://`` address of a proxy to go through, with user and password
            if it asks for them. TLS goes through it in a tunnel.
        connect_seconds: Longest wait for a connection: look-up, TCP, proxy and TLS together.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None,
        proxy: str | None,
        connect_seconds: float,
    ) -> None:
        self._host = host
        self._port = port
        name = f"[{host}]" if ":" in host else host
        self._authority = name if port == _HTTP_PORT and tls is None else f"{name}:{port}"
        self._tls = tls
        self._proxy = _Proxy.of(proxy) if proxy else None
        self._connect_seconds = connect_seconds
        self._idle: list[_Connection] = []  # the least lately used first
        self._sweeping: asyncio.TimerHandle | None = None

    async def ask(
        self, method: str, target: str, headers: bytes, body: bytes, *, limit_bytes: int
    ) -> Reply:
        """Send one request and return what comes back.

        Args:
            method: Such as ``POST``.
            target: Path and query.
            headers: Fields as they are sent, each with CRLF at its end, without Content-Length.
            body: May be empty.
            limit_bytes: Of the body of the answer; the rest is not read.

        Raises:
            CannotConnect, ConnectionLost, NotHttp: There is no answer.
        """
        if self._proxy is not None and self._tls is None:  # it has to be told where to go
            target = f"http://{self._authority}{target}"
            headers += self._proxy.authorization
        line = f"{method} {target} HTTP/1.1\r\nContent-Length: {len(body)}\r\n"
        request = b"%b%b\r\n%b" % (line.encode(), headers, body)
        connection = self._idle_connection() or await self._connect()
        try:
            reply = await connection.ask(request, limit_bytes)
        except BaseException:  # also when the caller gives up: nobody will read the rest
            connection.close()
            raise
        self._keep(connection)
        return reply

    def close(self) -> None:
        """Close what is idle."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()
        if self._sweeping:
            self._sweeping.cancel()

    # The pool -----------------------------------------------------------------------------------

    def _idle_connection(self) -> "_Connection | None":
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and monotonic() - connection.idle_since < KEEPALIVE_SECONDS:
                return connection
            connection.close()
        return None

    def _keep(self, connection: "_Connection") -> None:
        if not connection.usable:
            connection.close()
            return
        connection.idle_since = monotonic()
        self._idle.append(connection)
        if self._sweeping is None:
            loop = asyncio.get_running_loop()
            self._sweeping = loop.call_later(KEEPALIVE_SECONDS, self._sweep)

    def _sweep(self) -> None:
        """Close what has been idle for too long."""
        oldest = monotonic() - KEEPALIVE_SECONDS
        kept = [each for each in self._idle if each.usable and each.idle_since > oldest]
        for connection in self._idle:
            if connection not in kept:
                connection.close()
        self._idle = kept
        self._sweeping = None
        if kept:
            loop = asyncio.get_running_loop()
            self._sweeping = loop.call_later(KEEPALIVE_SECONDS, self._sweep)

    # Making one ---------------------------------------------------------------------------------

    async def _connect(self) -> "_Connection":
        try:
            async with asyncio.timeout(self._connect_seconds):
                if self._proxy is None:
                    return await _open(_Connection, self._host, self._port, self._tls)
                if self._tls is None:
                    proxy = self._proxy
                    return await _open(_Connection, proxy.host, proxy.port, proxy.tls)
                return await self._connect_through(self._proxy, self._tls)
        except (
            OSError,
            TimeoutError,
            UnicodeError,
        ):  # ssl.SSLError is an OSError; a name's look-up
            raise CannotConnect from None

    async def _connect_through(self, proxy: "_Proxy", tls: ssl.SSLContext) -> "_Connection":
        tunnel = await _open(_Tunnel, proxy.host, proxy.port, proxy.tls)
        try:
            await tunnel.ask(self._authority, proxy.authorization)
            loop = asyncio.get_running_loop()
            connection = _Connection()
            transport = await loop.start_tls(
                tunnel.transport, connection, tls, server_hostname=self._host
            )
        except BaseException:
            tunnel.transport.abort()
            raise
        connection.connection_made(cast("asyncio.Transport", transport))
        return connection


async def _open(make: Callable[[], P], host: str, port: int, tls: ssl.SSLContext | None) -> P:
    loop = asyncio.get_running_loop()
    addresses = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    connected = await aiohappyeyeballs.start_connection(
        addresses, happy_eyeballs_delay=NEXT_ADDRESS_SECONDS, loop=loop
    )
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _, protocol = await loop.create_connection(
        make, sock=connected, ssl=tls, server_hostname=host if tls else None
    )
    return protocol


class _Connection(asyncio.Protocol):
    """One connection; after each answer it may take the next request."""

    transport: asyncio.Transport
    idle_since = 0.0

    def __init__(self) -> None:
        self.usable = True
        self._reply: asyncio.Future[Reply] | None = None

    async def ask(self, request: bytes, limit_bytes: int) -> Reply:
        self._limit_bytes = limit_bytes
        self._received_bytes = self._head_bytes = 0
        self._in_body = self._until_close = False
        self._parser = httptools.HttpResponseParser(self)
        self._reply = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self._reply

    def close(self) -> None:
        self.usable = False
        self.transport.abort()

    # From the event loop ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._reply is None or self._reply.done():
            self.close()  # nobody has asked for this
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._end(NotHttp())
            return
        if not self._in_body:
            self._received_bytes += len(data)
            if self._received_bytes > MAX_HEAD_BYTES:
                self._end(NotHttp())

    def connection_lost(self, exc: Exception | None) -> None:
        self.usable = False
        if self._reply is None or self._reply.done():
            return
        if not self._in_body:
            self._end(ConnectionLost())
            return
        if exc is not None or not self._until_close:
            self._body.clear()  # half of it may look like all of it
        self._end(None)

    # From the parser ----------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._reply is None or self._reply.done():
            self.usable = False  # more than one answer
        self._headers: list[tuple[bytes, bytes]] = []
        self._body = bytearray()
        self._in_body = self._until_close = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MAX_HEAD_BYTES:
            raise ValueError("the head is too long")  # stops the parser
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        self._in_body = status not in _INTERIM
        names = {name.lower() for name, _ in self._headers}
        # RFC 9112 section 6.3: then the body ends where the connection does.
        self._until_close = self._in_body and not names & {b"content-length", b"transfer-encoding"}

    def on_body(self, body: bytes) -> None:
        self._body += body
        if len(self._body) > self._limit_bytes:
            self.usable = False
            self._end(None)

    def on_message_complete(self) -> None:
        if self._in_body:
            self.usable = self.usable and self._parser.should_keep_alive()
            self._end(None)

    def _end(self, fault: Exception | None) -> None:
        assert self._reply is not None  # noqa: S101 - all who call this have looked
        if self._reply.done():
            return
        if fault is not None:
            self.usable = False
            self._reply.set_exception(fault)
        else:
            status = self._parser.get_status_code()
            self._reply.set_result(Reply(status, self._headers, bytes(self._body)))


class _Tunnel(asyncio.Protocol):
    """A connection to a proxy, until it becomes one to the server (RFC 9110 section 9.3.6)."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._received = b""
        self._answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def ask(self, authority: str, authorization: bytes) -> None:
        """Ask for a way to *authority*.

        Raises:
            ConnectionError: There is none.
        """
        request = f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n".encode()
        self.transport.write(request + authorization + b"\r\n")
        await self._answered

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, rest = self._received.partition(b"\r\n\r\n")
        if (not end and len(head) <= MAX_HEAD_BYTES) or self._answered.done():
            return
        if re.match(rb"HTTP/1\.[01] 2\d\d\b", head) and end and not rest:
            self._answered.set_result(None)
        else:
            self._answered.set_exception(ConnectionRefusedError("the proxy refuses"))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._answered.done():
            self._answered.set_exception(exc or ConnectionResetError("the proxy hung up"))


@dataclass(frozen=True, slots=True)
class _Proxy:
    host: str
    port: int
    tls: ssl.SSLContext | None
    authorization: bytes = field(repr=False)

    @classmethod
    def of(cls, url: str) -> "_Proxy":
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        authorization = b""
        if parts.username is not None:
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
            authorization = b"Proxy-Authorization: Basic %b\r\n" % base64.b64encode(user)
        return cls(
            host=parts.hostname or "",
            port=parts.port or (443 if secure else _HTTP_PORT),
            tls=ssl.create_default_context() if secure else None,
            authorization=authorization,
        )
