"""The only door to issuers: fetches their public keys and keeps them fresh.

    when                        what
    start, then every 10 min    fetched in the background; after a failure every 30 s
    a token with another key    fetched at once, at most every 30 s, whatever tokens arrive
    the issuer is away          the keys we have stay good, until they are 24 h old

One fetch of an issuer's keys is under way at a time, and whoever needs it waits for that one.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias, cast
from urllib.request import getproxies, proxy_bypass

import httpx
import structlog

from app.base.clock import Clock
from app.base.errors import IssuerUnavailable
from app.base.metrics import Metrics
from app.identity.issuer_addresses import address_fault, is_public, on_loopback
from app.identity.issuer_settings import Issuer
from app.identity.jose import Json, PublicKey, json_object, key_set
from app.settings import SettingsFault

FRESH_SECONDS = 600
"""How old keys get before they are fetched again."""

RETRY_SECONDS = 30
"""Between two fetches in the background when they fail; between two that tokens ask for."""

STALE_SECONDS = 86_400
"""How old keys get before they are good for nothing."""

FETCH_SECONDS = 5.0
"""Longest wait for an issuer's keys, discovery included."""

LIMIT_BYTES = 64 * 1024

LONGEST_QUOTE = 200
"""Characters of what an issuer wrote, in our messages."""

MOST_WAITING = 256
"""Requests that may wait for one fetch; a flood of made-up tokens is not kept in memory."""

Resolve: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]
"""Gives the addresses of a host, for a port."""


class IssuerFault(Exception):
    """An issuer's keys cannot be had; the message says why, in our words."""


class Issuers:
    """The issuers whose tokens are taken, with their keys.

    Args:
        configured: One or more, each `iss` once.
        anywhere: Keys may come over plain HTTP and from private addresses.
        clock: Tells how old keys are.
        metrics: Where fetches are counted.
        resolve: In place of the system's resolver; for tests.

    Raises:
        SettingsFault: The certificates that the environment names cannot be read.
    """

    def __init__(
        self,
        configured: Sequence[Issuer],
        *,
        anywhere: bool,
        clock: Clock,
        metrics: Metrics,
        resolve: Resolve | None = None,
    ) -> None:
        self._door = _Door(anywhere=anywhere, resolve=resolve or _resolve)
        self._keys = {
            issuer.issuer: _Keys(issuer, self._door, clock=clock, metrics=metrics)
            for issuer in configured
        }
        metrics.watch_issuers(self._ages)

    def configured(self, iss: object) -> Issuer | None:
        """Return the issuer whose tokens have exactly this `iss`."""
        keys = self._keys.get(iss) if isinstance(iss, str) else None
        return keys.issuer if keys else None

    async def key(self, issuer: Issuer, kid: str) -> PublicKey | None:
        """Return the key that a configured *issuer* calls *kid*; None if it has no such key.

        Raises:
            IssuerUnavailable: There are no keys by which to decide.
        """
        return await self._keys[issuer.issuer].named(kid)

    async def refresh(self) -> None:
        """Fetch the keys of every issuer for which it is time."""
        await asyncio.gather(*(keys.refresh() for keys in self._keys.values()))

    async def look(self) -> dict[str, str]:
        """Fetch all keys now, and return for each issuer what is wrong, or nothing."""
        faults = {}
        for name, keys in self._keys.items():
            try:
                await keys.fetch()
            except IssuerFault as fault:
                faults[name] = str(fault)
            else:
                faults[name] = ""
        return faults

    async def aclose(self) -> None:
        """End what is under way, and close the connections."""
        for keys in self._keys.values():
            await keys.aclose()
        await self._door.aclose()

    def _ages(self) -> Mapping[str, float]:
        ages = {name: keys.age for name, keys in self._keys.items()}
        return {name: age for name, age in ages.items() if age is not None}


class _Keys:
    """The keys of one issuer, as it published them when it was last asked."""

    def __init__(self, issuer: Issuer, door: "_Door", *, clock: Clock, metrics: Metrics) -> None:
        self.issuer = issuer
        self._door = door
        self._clock = clock
        self._metrics = metrics
        self._published: Mapping[str, PublicKey] = {}
        self._fetched_at: float | None = None
        self._tried_at: float | None = None
        self._demanded_at: float | None = None
        self._fetching: asyncio.Task[None] | None = None
        self._waiting = 0
        self._logger = structlog.get_logger(__name__)
        metrics.expect_issuer(issuer.issuer)

    @property
    def age(self) -> float | None:
        """How many seconds ago they were fetched; None if they never were."""
        return None if self._fetched_at is None else self._seconds_since(self._fetched_at)

    async def named(self, kid: str) -> PublicKey | None:
        """Return the key *kid*; an unknown one is asked for, if the issuer was not asked lately.

        Raises:
            IssuerUnavailable: There are no keys by which to decide.
        """
        if known := self._usable().get(kid):
            return known
        if self._fetching is None and self._seconds_since(self._demanded_at) >= RETRY_SECONDS:
            self._demanded_at = self._clock().timestamp()
            self._begin()
        await self._wait()
        usable = self._usable()
        if not usable:
            raise IssuerUnavailable(retry_after_seconds=RETRY_SECONDS)
        return usable.get(kid)

    async def refresh(self) -> None:
        """Fetch the keys if they are no longer fresh and no attempt was made lately."""
        if self.age is not None and self.age < FRESH_SECONDS:
            return
        if self._fetching is None and self._seconds_since(self._tried_at) >= RETRY_SECONDS:
            self._begin()
        await self._wait()

    async def fetch(self) -> None:
        """Fetch the keys now.

        Raises:
            IssuerFault: They cannot be had; those from before stay.
        """
        self._tried_at = self._clock().timestamp()
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                published = await self._ask()
        except TimeoutError:
            raise IssuerFault(f"no answer within {FETCH_SECONDS:.0f} s") from None
        self._published, self._fetched_at = published, self._clock().timestamp()

    async def aclose(self) -> None:
        """End the fetch that is under way."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait([self._fetching])

    def _usable(self) -> Mapping[str, PublicKey]:
        return self._published if self.age is not None and self.age < STALE_SECONDS else {}

    def _seconds_since(self, at: float | None) -> float:
        """Return how long ago *at* was; for ever if it never was, or the clock was set back."""
        seconds = -1 if at is None else self._clock().timestamp() - at
        return seconds if seconds >= 0 else float("inf")

    def _begin(self) -> None:
        self._fetching = asyncio.create_task(self._fetch_and_tell(), name="issuer-keys")
        self._fetching.add_done_callback(self._end)

    def _end(self, _: asyncio.Task[None]) -> None:
        self._fetching = None

    async def _wait(self) -> None:
        if self._fetching is None:
            return
        if self._waiting >= MOST_WAITING:
            raise IssuerUnavailable(retry_after_seconds=1)
        self._waiting += 1
        try:
            await asyncio.shield(self._fetching)  # who waits may hang up, the fetch goes on
        finally:
            self._waiting -= 1

    async def _fetch_and_tell(self) -> None:
        before = self._published.keys()
        try:
            await self.fetch()
        except IssuerFault as fault:
            self._metrics.issuer_fetches.labels(self.issuer.issuer, "failed").inc()
            self._logger.warning(
                "issuer_keys_unavailable", issuer=self.issuer.issuer, reason=str(fault)
            )
            return
        self._metrics.issuer_fetches.labels(self.issuer.issuer, "ok").inc()
        if self._published.keys() != before:
            self._logger.info(
                "issuer_keys_changed", issuer=self.issuer.issuer, count=len(self._published)
            )

    async def _ask(self) -> Mapping[str, PublicKey]:
        issuer = self.issuer
        url = issuer.jwks_uri
        nearby = on_loopback(url or issuer.issuer)
        if url is None:
            url = _jwks_uri(
                await self._door.get(
                    f"{issuer.issuer.rstrip('/')}/.well-known/openid-configuration", nearby=nearby
                ),
                issuer.issuer,
            )
        document = await self._door.get(url, nearby=nearby)
        try:
            return key_set(document, issuer.algorithms)
        except ValueError as error:
            raise IssuerFault(f"{url} {error}") from None


def _jwks_uri(configuration: Json, issuer: str) -> str:
    """Return where the keys are, if it is *issuer* that says so.

    Source: OpenID Connect Discovery 1.0, section 4.3.
    """
    if configuration.get("issuer") != issuer:
        named = ascii(configuration.get("issuer"))[:LONGEST_QUOTE]
        raise IssuerFault(f"its openid-configuration is of another issuer: {named}")
    url = configuration.get("jwks_uri")
    if not isinstance(url, str):
        raise IssuerFault("its openid-configuration has no jwks_uri")
    return url


class _Door:
    """Gets a JSON object from an address that an issuer may have.

    The transport is driven without an `httpx.AsyncClient`, which would follow redirects, keep
    cookies, decode and log. We resolve the host ourselves and connect to the address that was
    looked at, so that no second answer of the resolver can lead elsewhere.
    """

    def __init__(self, *, anywhere: bool, resolve: Resolve) -> None:
        self._anywhere = anywhere
        self._resolve = resolve
        try:
            self._roots = httpx.create_ssl_context()
        except OSError as error:  # ssl.SSLError is one too
            reason = error.strerror or type(error).__name__
            raise SettingsFault([f"SSL_CERT_FILE: has no certificates to read: {reason}"]) from None
        self._direct = httpx.AsyncHTTPTransport(verify=self._roots, trust_env=False)

    async def get(self, url: str, *, nearby: bool) -> Json:
        """Return what is at *url*.

        Args:
            url: Anything; discovery is what an issuer wrote.
            nearby: The operator has put this issuer on the loopback interface.

        Raises:
            IssuerFault: It is no address for keys, is not there, or is no JSON object.
        """
        if fault := address_fault(url, anywhere=self._anywhere):
            raise IssuerFault(f"{ascii(url)[:LONGEST_QUOTE]} {fault}")
        try:
            body = await self._body(httpx.URL(url), nearby=nearby)
        except httpx.TransportError as error:
            reason = type(error).__name__
            raise IssuerFault(f"{url} cannot be reached: {reason}") from None
        try:
            return json_object(body)
        except ValueError as error:
            raise IssuerFault(f"{url} is no JSON object: {type(error).__name__}") from None

    async def aclose(self) -> None:
        """Close the connections."""
        await self._direct.aclose()

    async def _body(self, url: httpx.URL, *, nearby: bool) -> bytes:
        proxy = _proxy(url)
        if proxy is not None:
            # It is the proxy that resolves the host, and decides what may be reached.
            async with httpx.AsyncHTTPTransport(
                verify=self._roots, trust_env=False, proxy=proxy
            ) as transport:
                return await _ask(transport, url, address=url.host)
        addresses = await self._addresses(url, nearby=nearby)
        for address in addresses[:-1]:
            try:
                return await _ask(self._direct, url, address=address)
            except httpx.ConnectError:
                continue
        return await _ask(self._direct, url, address=addresses[-1])

    async def _addresses(self, url: httpx.URL, *, nearby: bool) -> list[str]:
        """Return the addresses of the host that we may connect to, at least one."""
        port = url.port or (443 if url.scheme == "https" else 80)
        try:
            found = await self._resolve(url.host, port)
        except (OSError, UnicodeError):
            raise IssuerFault(f"{url} cannot be reached: the host has no address") from None
        allowed = [address for address in found if self._may_connect(address, nearby=nearby)]
        if not allowed:
            raise IssuerFault(
                f"{url} is at a private address; set ALLOW_PRIVATE_ISSUERS if it is meant"
            )
        return allowed

    def _may_connect(self, address: str, *, nearby: bool) -> bool:
        ip = ipaddress.ip_address(address.partition("%")[0])  # a link-local one names its link
        return self._anywhere or (nearby and ip.is_loopback) or is_public(ip)


async def _ask(transport: httpx.AsyncBaseTransport, url: httpx.URL, *, address: str) -> bytes:
    """Return the body at *url*, asked for at *address*: all of it, from an answer 200.

    Raises:
        IssuerFault: It is too large, or the answer is another one.
        httpx.TransportError: The connection failed.
    """
    request = httpx.Request(
        "GET",
        url.copy_with(host=address),
        headers={
            "Host": url.netloc.decode("ascii"),
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": "realtime-tokens",
        },
        extensions={"sni_hostname": url.host},  # whose certificate it has to be
    )
    response = await transport.handle_async_request(request)
    try:
        if response.status_code != httpx.codes.OK:
            raise IssuerFault(f"{url} answered {response.status_code}; redirects are not followed")
        body = bytearray()
        async for chunk in cast("httpx.AsyncByteStream", response.stream):
            body += chunk
            if len(body) > LIMIT_BYTES:
                raise IssuerFault(f"{url} is larger than {LIMIT_BYTES // 1024} KiB")
    finally:
        await response.aclose()
    return bytes(body)


def _proxy(url: httpx.URL) -> str | None:
    """Return the proxy that the environment names for *url*; none for the loopback interface."""
    proxy = getproxies().get(url.scheme)
    if not proxy or on_loopback(str(url)) or proxy_bypass(url.host):
        return None
    if "://" not in proxy:
        return f"http://{proxy}"
    if not proxy.startswith(("http://", "https://")):
        raise IssuerFault(f"{url.scheme.upper()}_PROXY must be an http:// or https:// address")
    return proxy


async def _resolve(host: str, port: int) -> list[str]:
    loop = asyncio.get_running_loop()
    found: list[tuple[Any, ...]] = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))
