"""The only door to OpenAI.

What becomes of an answer, or of none:

    200, readable                  ClientSecret
    400, 404, any other 4xx        UpstreamRejected
    401, 403                       UpstreamMisconfigured
    429                            UpstreamQuotaExhausted or UpstreamRateLimited, by `error.code`
    5xx                            UpstreamUnavailable
    any other, or unreadable       UpstreamInvalidResponse
    no connection                  UpstreamUnavailable; nothing was sent
    connection lost after sending  UpstreamUnavailable
    not all there in time          UpstreamTimeout

Problems are raised outside of exception handlers, so that no exception that may quote OpenAI's
text, the address or a proxy's password hangs below them as cause or context.
"""

import asyncio
import ipaddress
import re
import ssl
import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from http import HTTPStatus
from typing import Any, cast
from urllib.request import getproxies, proxy_bypass

import httpx
from pydantic import SecretStr
from pydantic_core import to_json

from app.base.clock import Clock, system_clock
from app.base.errors import (
    UpstreamInvalidResponse,
    UpstreamProblem,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from app.minting.answers import Answer, json_object, plain_id, refusal, unreadable
from app.minting.connections import CannotConnect, ConnectionLost, Connections, NotHttp
from app.settings import SettingsFault

CONNECT_SECONDS = 2.0
"""Longest wait for one connection: look-up, TCP, proxy and TLS together."""

ANSWER_LIMIT_BYTES = 64 * 1024
MODELS_LIMIT_BYTES = 1024 * 1024  # an organization's fine-tuned models are listed too

CLOCK_SKEW_SECONDS = 24 * 60 * 60
"""How far `expires_at` may be from what was asked for. Only nonsense is refused (milliseconds, the
distant past); a server whose clock is set to the wrong time zone goes on minting."""

_SECRET_VALUE = re.compile(r"[!-~]{8,512}")
_MODEL_ID = re.compile(r"[!-~]{1,256}")  # goes to logs and terminals
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


@dataclass(frozen=True, slots=True)
class ClientSecret:
    """What OpenAI mints.

    Args:
        value: The secret, `ek_…`: 8 to 512 printable ASCII characters, otherwise opaque.
        expires_at: Until when it opens sessions, Unix seconds, by OpenAI's clock.
        upstream_request_id: `x-request-id` of the answer, for OpenAI's support.
        upstream_session_id: `session.id` of the answer; no endpoint takes it.
        upstream_ms: Milliseconds from the request to the end of the answer.
    """

    value: SecretStr
    expires_at: int
    upstream_request_id: str | None
    upstream_session_id: str | None
    upstream_ms: int


@dataclass(frozen=True, slots=True)
class UpstreamModel:
    """A model the API key can see, and when it goes if that is announced."""

    id: str
    shutdown_date: date | None
    date_is_readable: bool = True
    """False where something stands in the place of the date that is none."""


class OpenAI:
    """OpenAI's API, as much of it as this service needs. Made inside a running event loop.

    No redirect is followed, no cookie kept, and no mint is sent twice: only a connection that
    could not be made is tried a second time.

    Args:
        base_url: Where the API is, such as `https://api.openai.com/v1`.
        api_key: Standard API key, ASCII without spaces.
        organization: Organization to bill when the key belongs to several.
        project: Project to bill when the key belongs to several.
        transport: What carries the requests; tests put a stand-in here.
        deadline_seconds: Longest wait for a whole answer, connecting included.
        clock: Gives the present instant, to judge `expires_at` and `Retry-After`.

    Raises:
        ValueError: *base_url* carries a user name or password, which would reach logs.
        SettingsFault: The environment names a proxy that does not speak HTTP, or certificates that
            cannot be read.
    """

    def __init__(
        self,
        *,
        base_url: str,
        api_key: SecretStr,
        organization: str | None = None,
        project: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        deadline_seconds: float = 8.0,
        clock: Clock = system_clock,
    ) -> None:
        url = httpx.URL(base_url)
        if url.userinfo:
            raise ValueError("the base URL must not carry a user name or password")
        base_url = base_url.rstrip("/")
        # Made once: to parse an address costs httpx as much as to send a request.
        self._client_secrets_url = httpx.URL(base_url + "/realtime/client_secrets")
        self._models_url = httpx.URL(base_url + "/models")
        self._api_key = api_key
        self._organization = organization
        self._project = project
        self._deadline_seconds = deadline_seconds
        self._clock = clock
        self._transport = transport or Transport(
            url,
            # Both attempts to connect fit into half of the time, so whatever runs into the
            # deadline has been sent, and what has not been sent never counts as minted.
            connect_seconds=min(CONNECT_SECONDS, deadline_seconds / 4),
        )

    async def create_client_secret(
        self,
        session: Mapping[str, Any],
        *,
        ttl_seconds: int,
        safety_identifier: str,
        client_request_id: str,
    ) -> ClientSecret:
        """Mint one client secret.

        Args:
            session: Session configuration, sent as it is.
            ttl_seconds: Lifetime from creation; OpenAI takes 10 to 7200.
            safety_identifier: Stable, opaque name of the end user; no personal data.
            client_request_id: Our name for this attempt, by which OpenAI's support finds it.

        Raises:
            UpstreamProblem: One of the kinds in the table above. `may_have_minted` is true when
                the request may have arrived and neither a secret nor a refusal came back.

        Source: OpenAI API reference, `POST /v1/realtime/client_secrets`.
        """
        began, started = self._clock(), time.monotonic()
        answer = await self._ask(
            "POST",
            self._client_secrets_url,
            headers={
                "Content-Type": "application/json",
                "OpenAI-Safety-Identifier": safety_identifier,
                "X-Client-Request-Id": client_request_id,
            },
            content={
                "expires_after": {"anchor": "created_at", "seconds": ttl_seconds},
                "session": dict(session),
            },
            limit_bytes=ANSWER_LIMIT_BYTES,
        )
        upstream_ms = round((time.monotonic() - started) * 1000)
        if answer.status != HTTPStatus.OK:
            raise refusal(answer, now=self._clock())
        secret = _client_secret(
            answer,
            expected_expires_at=int(began.timestamp()) + ttl_seconds,
            upstream_ms=upstream_ms,
        )
        if secret is None:
            raise unreadable(answer)
        return secret

    async def list_models(self) -> tuple[UpstreamModel, ...]:
        """Return the models the API key can see.

        Raises:
            UpstreamProblem: As for `create_client_secret`; nothing can have been minted.

        Source: OpenAI API reference, `GET /v1/models`.
        """
        try:
            answer = await self._ask("GET", self._models_url, limit_bytes=MODELS_LIMIT_BYTES)
            if answer.status != HTTPStatus.OK:
                raise refusal(answer, now=self._clock())
            models = answer.content.get("data")
            if not isinstance(models, list):
                raise unreadable(answer)
        except UpstreamProblem as problem:
            problem.may_have_minted = False
            raise
        return tuple(
            _upstream_model(name, model.get("shutdown_date"))
            for model in models
            if isinstance(model, dict)
            and isinstance(name := model.get("id"), str)
            and _MODEL_ID.fullmatch(name)
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()

    async def _ask(
        self,
        method: str,
        url: httpx.URL,
        *,
        headers: Mapping[str, str] | None = None,
        content: Mapping[str, Any] | None = None,
        limit_bytes: int,
    ) -> Answer:
        body = to_json(content) if content else b""
        request = httpx.Request(
            method,
            url,
            headers={**self._standing_headers(), **(headers or {})},
            # Given as a stream it stays as it is: httpx adds no headers, at the cost of a look at
            # each that is there, and the transport adds those that it needs.
            stream=httpx.ByteStream(body),
            extensions={"limit_bytes": limit_bytes},
        )
        request.read()
        problem: UpstreamProblem
        try:
            async with asyncio.timeout(self._deadline_seconds):
                return await self._send(request, limit_bytes=limit_bytes)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            problem = UpstreamUnavailable()
        except (TimeoutError, httpx.TimeoutException):
            problem = UpstreamTimeout(may_have_minted=True)
        except httpx.RemoteProtocolError:
            problem = UpstreamInvalidResponse(may_have_minted=True)
        except httpx.TransportError:
            problem = UpstreamUnavailable(may_have_minted=True)
        raise problem

    def _standing_headers(self) -> dict[str, str]:
        headers = {
            "Accept": "application/json",
            "Accept-Encoding": "identity",  # an answer is a kilobyte; there is nothing to gain
            "Authorization": f"Bearer {self._api_key.get_secret_value()}",
            "User-Agent": "realtime-tokens",
        }
        if self._organization:
            headers["OpenAI-Organization"] = self._organization
        if self._project:
            headers["OpenAI-Project"] = self._project
        return headers

    async def _send(self, request: httpx.Request, *, limit_bytes: int) -> Answer:
        # The transport is driven without an httpx.AsyncClient: what a client would add (redirects,
        # cookies, decoding, proxies, a log line with the address) would all have to be taken off
        # again, and it costs as much as the transport does.
        try:
            response = await self._transport.handle_async_request(request)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            # Nothing was sent, so asking again cannot mint a second secret.
            response = await self._transport.handle_async_request(request)
        try:
            body = await _read(response, limit_bytes)
        finally:
            await response.aclose()
        return Answer(response.status_code, response.headers, json_object(body or b""))


class Transport(httpx.AsyncBaseTransport):
    """Carries httpx requests over `Connections` (docs/decisions/0001-http-transport.md).

    Its errors tell what happened to the request: ConnectError, that nothing of it was sent;
    RemoteProtocolError, that what came back is not HTTP; ReadError, that the connection was lost.
    It sends nothing twice.

    Args:
        url: Where the requests will go. Its scheme and host decide on TLS and on a proxy.
        connect_seconds: Longest wait for one connection.

    Raises:
        SettingsFault: The environment names a proxy that does not speak HTTP, or certificates that
            cannot be read.
    """

    def __init__(self, url: httpx.URL, *, connect_seconds: float) -> None:
        secure = url.scheme == "https"
        self._connections = Connections(
            url.raw_host.decode("ascii"),
            url.port or (443 if secure else 80),
            tls=trusted_roots() if secure else None,
            proxy=environment_proxy(url),
            connect_seconds=connect_seconds,
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send *request*, whose body has been read, and return the whole answer."""
        lines = [b"%b: %b\r\n" % field for field in request.headers.raw]
        lines.append(b"Host: %b\r\n" % request.url.netloc)
        try:
            reply = await self._connections.ask(
                request.method,
                request.url.raw_path.decode("ascii"),
                b"".join(lines),
                request.content,
                limit_bytes=request.extensions["limit_bytes"],
            )
        except CannotConnect:
            raise httpx.ConnectError("no connection") from None
        except NotHttp:
            raise httpx.RemoteProtocolError("the answer is not HTTP") from None
        except ConnectionLost:
            raise httpx.ReadError("connection lost before the end of the answer") from None
        return httpx.Response(
            reply.status, headers=reply.headers, stream=httpx.ByteStream(reply.body)
        )

    async def aclose(self) -> None:
        """Close the idle connections."""
        self._connections.close()


def environment_proxy(url: httpx.URL) -> str | None:
    """Return the proxy that HTTPS_PROXY or HTTP_PROXY names for *url*, if any.

    NO_PROXY is honoured, and the loopback interface is never reached through a proxy: the sandbox
    lives there. What goes to https:// passes the proxy in a tunnel that hides the API key from it.

    Raises:
        SettingsFault: The proxy does not speak HTTP.
    """
    try:
        loopback = ipaddress.ip_address(url.host).is_loopback
    except ValueError:
        loopback = url.host == "localhost"
    proxy = getproxies().get(url.scheme)
    if loopback or not proxy or proxy_bypass(url.host):
        return None
    if "://" not in proxy:
        return f"http://{proxy}"
    if not proxy.startswith(("http://", "https://")):
        raise SettingsFault([f"{url.scheme.upper()}_PROXY: must be an http:// or https:// address"])
    return proxy


def trusted_roots() -> ssl.SSLContext:
    """Return what certificates are checked with: the usual roots, or those of SSL_CERT_FILE.

    Raises:
        SettingsFault: They cannot be read.
    """
    try:
        return httpx.create_ssl_context()
    except OSError as error:  # ssl.SSLError is one too
        reason = error.strerror or type(error).__name__
        raise SettingsFault([f"SSL_CERT_FILE: has no certificates to read: {reason}"]) from None


async def _read(response: httpx.Response, limit_bytes: int) -> bytes | None:
    """Return the body, or None when it breaks off, is too large or is in an unknown coding.

    Compressed or not, no more than *limit_bytes* is ever held.
    """
    body = bytearray()
    try:
        # Not response.aiter_raw(): a stand-in's answer may be one that was read before.
        async for chunk in cast("httpx.AsyncByteStream", response.stream):
            body += chunk
            if len(body) > limit_bytes:
                return None
    except httpx.ReadError:
        return None
    match response.headers.get("content-encoding", "identity").strip().lower():
        case "identity" | "":
            return bytes(body)
        case "gzip" | "x-gzip" | "deflate":
            return _inflate(bytes(body), limit_bytes)
        case _:
            return None


def _inflate(body: bytes, limit_bytes: int) -> bytes | None:
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)  # takes gzip and zlib (RFC 9110 8.4.1)
    try:
        plain = inflater.decompress(body, limit_bytes + 1)
    except zlib.error:
        return None
    return plain if inflater.eof and len(plain) <= limit_bytes else None


def _client_secret(
    answer: Answer, *, expected_expires_at: int, upstream_ms: int
) -> ClientSecret | None:
    """Return the secret in *answer*; None when it holds none that can be used."""
    value, expires_at = answer.content.get("value"), answer.content.get("expires_at")
    session = answer.content.get("session")
    if (
        not isinstance(value, str)
        or not _SECRET_VALUE.fullmatch(value)
        or not isinstance(expires_at, int)
        or abs(expires_at - expected_expires_at) > CLOCK_SKEW_SECONDS
    ):
        return None
    return ClientSecret(
        value=SecretStr(value),
        expires_at=expires_at,
        upstream_request_id=answer.request_id,
        upstream_session_id=plain_id(session.get("id")) if isinstance(session, dict) else None,
        upstream_ms=upstream_ms,
    )


def _upstream_model(model_id: str, shutdown_date: Any) -> UpstreamModel:
    if shutdown_date is None:
        return UpstreamModel(model_id, None)
    # Python would read 20270120 and 2027-W03-3 too.
    if isinstance(shutdown_date, str) and _DATE.fullmatch(shutdown_date):
        with suppress(ValueError):  # no such day
            return UpstreamModel(model_id, date.fromisoformat(shutdown_date))
    return UpstreamModel(model_id, None, date_is_readable=False)
