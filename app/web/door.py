"""What every request passes before a route sees it, and every answer on its way out.

From the outside in::

    RequestLine            names the request, protects the answer, writes the one line in the log
    CORSMiddleware         lets the browsers of known origins read the answer, refusals too
    ServerErrorMiddleware  turns a bug into the 500 problem
    BodyIntake             takes the whole body in, unless it is too large, too slow or not JSON
    Shortcut               answers mints itself; everything else goes on to FastAPI

Plain ASGI throughout: no task per request, no copy of an answer.
"""

import asyncio
from collections.abc import MutableMapping
from contextlib import suppress
from time import perf_counter
from typing import Any

import structlog
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.base.errors import (
    BodyTooLarge,
    InternalError,
    Problem,
    RequestTimeout,
    UnsupportedMediaType,
)
from app.base.ids import is_plain, new_id
from app.settings import Network, Settings
from app.web.admin.problem_page import is_page
from app.web.client_address import client_address
from app.web.problems import FORM_PATHS, problem_response
from app.web.shortcut import ONE_OF_MANY, Shortcut

MAX_BODY_BYTES = 64 * 1024
BODY_SECONDS = 10.0
"""Within this the whole body must have arrived."""

_LINGER_SECONDS = 2.0
_MAX_LOGGED_PATH = 200
_SECONDS_BETWEEN_MANY = 1.0
_SANDBOX = "/sandbox/"
_JSON = "application/json"
_FORM = "application/x-www-form-urlencoded"
_BODILESS = frozenset({"GET", "OPTIONS"})  # what they carry has no meaning: nobody reads it

_log = structlog.get_logger(__name__)


def door(settings: Settings, *, body_seconds: float = BODY_SECONDS) -> list[Middleware]:
    """Return what stands before the routes, for ``FastAPI(middleware=…)``; outermost first."""

    async def on_bug(request: Request, _bug: Exception) -> Response:
        return problem_response(InternalError(), request.scope, public_url=settings.public_url)

    return [
        Middleware(
            RequestLine,
            secure=settings.public_url.startswith("https://"),
            trusted_proxies=settings.trusted_proxies,
        ),
        Middleware(CORSMiddleware, **cors_options(settings)),
        Middleware(ServerErrorMiddleware, handler=on_bug),
        Middleware(BodyIntake, public_url=settings.public_url, body_seconds=body_seconds),
        Middleware(Shortcut, public_url=settings.public_url),
    ]


def cors_options(settings: Settings) -> dict[str, Any]:
    """Return what ``CORSMiddleware`` is told: named origins only, no cookies.

    In the sandbox any page that this machine serves may call, so that a frontend's development
    server needs no setting.
    """
    return {
        "allow_origins": settings.cors_origins,
        "allow_origin_regex": (
            r"http://(localhost|127\.0\.0\.1)(:\d{1,5})?"
            if settings.environment == "sandbox"
            else None
        ),
        "allow_methods": ("GET", "POST"),
        "allow_headers": ("Authorization", "Content-Type", "X-Request-ID"),
        "expose_headers": ("Retry-After", "X-Request-ID"),
        "max_age": 600,  # seconds
    }


class RequestLine:
    """Names each request, puts the security headers on its answer and writes its line.

    It leaves in ``request.state``: ``request_id``, ``client_address``, and ``log``, a dict whose
    entries become fields of the line. The request id is in every other line of the request too. Of
    requests that are `ONE_OF_MANY` a line a second is written, and how many were left out. A HEAD
    goes on as a GET.

    Args:
        app: What answers.
        secure: Clients reach us over HTTPS only, so browsers are told to insist on it.
        trusted_proxies: Networks whose ``X-Forwarded-For`` is believed.
    """

    def __init__(self, app: ASGIApp, *, secure: bool, trusted_proxies: tuple[Network, ...]) -> None:
        self.app = app
        self._trusted_proxies = trusted_proxies
        self._headers = {
            b"x-content-type-options": b"nosniff",
            b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
            b"referrer-policy": b"no-referrer",
            # Against embedding as a script or image; CORS requests are not affected.
            b"cross-origin-resource-policy": b"same-origin",
        }
        self._last_of_many = float("-inf")
        self._left_out = 0
        if secure:
            self._headers[b"strict-transport-security"] = b"max-age=31536000"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or WebSocket."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return

        began = perf_counter()
        request_id = _request_id(scope)
        fields: dict[str, Any] = {}
        scope.setdefault("state", {}).update(
            request_id=request_id,
            client_address=client_address(scope, self._trusted_proxies),
            log=fields,
        )
        status: int | None = None
        sent_bytes = 0

        async def send_on(message: Message) -> None:
            nonlocal status, sent_bytes
            match message["type"]:
                case "http.response.start" | "websocket.http.response.start":
                    status = message["status"]
                    self._protect(message, request_id)
                case "http.response.body":
                    sent_bytes += len(message.get("body", b""))
                case "websocket.accept":
                    status = 101
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self.app(_head_as_get(scope), receive, send_on)
            except Exception as bug:
                fields["exc_info"] = bug
                if status is None or scope["type"] == "websocket":
                    raise  # nobody below has answered; the server does, or closes with 1011
            except asyncio.CancelledError:
                fields["cancelled"] = True  # the server stops and waits no longer
                raise
            finally:
                fields |= {
                    "method": scope.get("method", "WEBSOCKET"),
                    "path": scope["path"][:_MAX_LOGGED_PATH],
                    "status": status,
                    "ms": round((perf_counter() - began) * 1000, 1),
                    "client": scope["state"]["client_address"],
                    "bytes": 0 if scope.get("method") == "HEAD" else sent_bytes,
                }
                if not fields.pop(ONE_OF_MANY, False) or self._is_due(fields, began):
                    write = _log.error if "exc_info" in fields else _writer(status)
                    write("request", **fields)

    def _is_due(self, fields: dict[str, Any], now: float) -> bool:
        """Tell whether one of many lines is written, and in *fields* how many were left out."""
        if now - self._last_of_many < _SECONDS_BETWEEN_MANY:
            self._left_out += 1
            return False
        fields["left_out"] = self._left_out
        self._last_of_many, self._left_out = now, 0
        return True

    def _protect(self, start: MutableMapping[str, Any], request_id: str) -> None:
        """Add our headers to the answer that starts; what the route has set itself stays."""
        headers = list(start.get("headers", ()))
        present = {name for name, _ in headers}
        headers += [pair for pair in self._headers.items() if pair[0] not in present]
        headers.append((b"x-request-id", request_id.encode()))
        start["headers"] = headers


class BodyIntake:
    """Takes the whole body in before the application runs, so that no route waits for a client.

    The stand-in for OpenAI is left alone: it has rules of its own.

    Args:
        app: What reads the body.
        public_url: For the problems, see ``problem_response``.
        body_seconds: Within this the whole body must have arrived.
    """

    def __init__(self, app: ASGIApp, *, public_url: str, body_seconds: float) -> None:
        self.app = app
        self._public_url = public_url
        self._body_seconds = body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; anything without a body, and WebSockets, pass through."""
        if scope["type"] != "http" or scope["path"].startswith(_SANDBOX):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        # Without either header there is no body, RFC 9112 section 6.3.
        if headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers:
            await self.app(scope, receive, send)
            return

        try:
            body = await self._read(headers, receive)
            if body is None:
                scope["state"]["log"]["client_gone"] = True
                return
            if body and scope["method"] not in _BODILESS:
                _check_media_type(headers, scope["path"])
        except Problem as problem:
            response = problem_response(problem, scope, public_url=self._public_url)
            if isinstance(problem, UnsupportedMediaType):
                await response(scope, receive, send)
            else:
                await _refuse_unread(response, receive, send)
            return

        replayed = False

        async def replay() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()  # waits for the client to go
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, send)

    async def _read(self, headers: Headers, receive: Receive) -> bytes | None:
        """Return the whole body; None when the client went away before its end.

        Raises:
            BodyTooLarge: It has, or says it has, more than 64 KiB.
            RequestTimeout: It did not arrive in time.
        """
        announced = headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > MAX_BODY_BYTES:
            raise BodyTooLarge
        body = bytearray()
        more = True
        try:
            async with asyncio.timeout(self._body_seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > MAX_BODY_BYTES:
                        raise BodyTooLarge
                    more = message.get("more_body", False)
        except TimeoutError:
            raise RequestTimeout from None
        return bytes(body)


def _check_media_type(headers: Headers, path: str) -> None:
    """Refuse what the route at *path* does not read: it takes JSON, or a form, in UTF-8.

    Raises:
        UnsupportedMediaType: It is something else, or does not say what it is.
    """
    expected = _FORM if path in FORM_PATHS or is_page(path) else _JSON
    media_type, *parameters = headers.get("content-type", "").lower().split(";")
    charsets = [
        value.strip(' "')
        for name, _, value in (parameter.partition("=") for parameter in parameters)
        if name.strip() == "charset"
    ]
    if media_type.strip() != expected or any(charset != "utf-8" for charset in charsets):
        raise UnsupportedMediaType(
            f"This route reads {expected} in UTF-8. Send the body so, and name it in Content-Type."
        )


async def _refuse_unread(response: Response, receive: Receive, send: Send) -> None:
    """Send *response*, then close the connection, whose rest nobody will read.

    Closing at once, with data unread, would reset the connection, and the client might never see
    the answer. So the answer goes out and the connection stays for a moment.
    """
    headers = [*response.raw_headers, (b"connection", b"close")]
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    with suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_SECONDS):
            while (await receive()).get("more_body", False):
                pass
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _head_as_get(scope: Scope) -> Scope:
    """Return *scope*, of a GET in place of a HEAD; the server leaves the body of its answer out."""
    if scope["type"] == "http" and scope["method"] == "HEAD":
        return {**scope, "method": "GET"}  # RFC 9110 section 9.3.2: the same header fields
    return scope


def _request_id(scope: Scope) -> str:
    """Return the client's name for the request when it is short and plain, else one of ours."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and is_plain(given := str(value, "latin-1")):
            return given
    return new_id("req")


def _writer(status: int | None) -> Any:
    """Return the log method whose level fits *status*."""
    if status is None or status < 400:  # noqa: PLR2004 - the classes of RFC 9110 section 15
        return _log.info
    return _log.warning if status < 500 else _log.error  # noqa: PLR2004 - likewise
