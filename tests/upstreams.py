"""Servers on the loopback interface that misbehave in earnest, and a door to OpenAI before them."""

import asyncio
import io
import json
import logging
import ssl
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import SecretStr

from app.base.errors import UpstreamProblem
from app.minting.openai import ClientSecret, OpenAI
from tests.clock import StandingClock

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
EXPIRES_AT = int(NOW.timestamp()) + 60
KEY = "sk-proj-canary-of-the-key"
TEXT = "canary of the text"
SESSION = {"type": "realtime", "model": "gpt-realtime-2.1-mini"}
GOOD: dict[str, Any] = {
    "value": "ek_0123456789abcdef0123456789abcdef",
    "expires_at": EXPIRES_AT,
    "session": {"id": "sess_Dx7Qm2pLr9Tz1aVbC3nE5", "type": "realtime"},
}

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Request:
    """What a server read: the first line, the headers by lower-case name, the body."""

    line: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Server:
    """A server that answers as its handler likes, one call per connection."""

    handler: Handler
    port: int = 0
    connections: int = 0
    requests: list[Request] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def https_url(self) -> str:
        return f"https://127.0.0.1:{self.port}/v1"

    async def read(self, reader: asyncio.StreamReader) -> None:
        """Read one whole request. Raises IncompleteReadError when there is no more."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        line, *fields = head.removesuffix("\r\n\r\n").split("\r\n")
        headers = {name.lower(): value for name, value in (f.split(": ", 1) for f in fields)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        self.requests.append(Request(line, headers, body))


@asynccontextmanager
async def listening(
    handler: Handler, *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Server]:
    """Serve each connection with *handler*, then close it."""
    server = Server(handler)
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.connections += 1
        try:
            await server.handler(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has gone
        finally:
            writer.close()

    def start(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    listener = await asyncio.start_server(start, "127.0.0.1", 0, ssl=tls)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def answering(*parts: bytes, hang: bool = False) -> AsyncIterator[Server]:
    """Serve one request per connection with *parts*, then close, or keep the line open."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.read(reader)
        for part in parts:
            writer.write(part)
            await writer.drain()
        if hang:
            await reader.read()

    async with listening(handler) as server:
        yield server


def http(status: int, body: bytes, *headers: str) -> bytes:
    """Return a whole answer."""
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def http_json(status: int, body: Any, *headers: str) -> bytes:
    """Return a whole answer with *body* as JSON."""
    return http(status, json.dumps(body).encode(), "Content-Type: application/json", *headers)


def openai_error(status: int, *headers: str, kind: str | None, code: str | None) -> bytes:
    """Return an error as OpenAI words it; its 401 repeats part of the key."""
    message = f"Incorrect API key provided: {KEY}. {TEXT}"
    error = {"message": message, "type": kind, "param": TEXT, "code": code}
    return http_json(status, {"error": error}, "x-request-id: req_plain", *headers)


@asynccontextmanager
async def door_to(url: str, **options: Any) -> AsyncIterator[OpenAI]:
    """Open the door to *url*, and see that meanwhile no library logs what goes through it."""
    heard = io.StringIO()
    listener = logging.StreamHandler(heard)
    root = logging.getLogger()
    level = root.level
    root.addHandler(listener)
    root.setLevel(logging.DEBUG)
    openai = OpenAI(base_url=url, api_key=SecretStr(KEY), clock=StandingClock(NOW), **options)
    try:
        yield openai
    finally:
        await openai.aclose()
        root.setLevel(level)
        root.removeHandler(listener)
    assert "canary" not in heard.getvalue()
    assert GOOD["value"] not in heard.getvalue()


async def mint(openai: OpenAI) -> ClientSecret:
    return await openai.create_client_secret(
        SESSION, ttl_seconds=60, safety_identifier="a" * 64, client_request_id="tok_1"
    )


async def problem_of(openai: OpenAI) -> UpstreamProblem:
    """Return why no secret came, and see that the reason tells no secret of its own."""
    with pytest.raises(UpstreamProblem) as caught:
        await mint(openai)
    problem = caught.value
    assert problem.__cause__ is None
    assert problem.__context__ is None
    told = "".join(traceback.format_exception(problem)) + repr(vars(problem))
    for frame, _ in traceback.walk_tb(problem.__traceback__):
        if frame.f_globals["__name__"].startswith("app."):
            told += repr(frame.f_locals)  # which a log may show
    assert "canary" not in told
    return problem


def self_signed(folder: Path, host: x509.GeneralName | None = None) -> ssl.SSLContext:
    """Return the server's side of TLS, its certificate for 127.0.0.1 or *host* in *folder*."""
    host = host or x509.IPAddress(ip_address("127.0.0.1"))
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime.now(UTC) - timedelta(days=1))
        .not_valid_after(datetime.now(UTC) + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([host]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context
