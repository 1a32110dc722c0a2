"""An issuer's keys: how they come, how long they are good, and what a bad issuer can do."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from structlog.testing import capture_logs

from app.base.errors import InvalidToken, IssuerUnavailable
from app.base.metrics import Metrics
from app.identity.external_tokens import ExternalTokens
from app.identity.issuer_settings import Issuer
from app.identity.issuers import LIMIT_BYTES, Issuers, Resolve, _Door
from tests.clock import StandingClock
from tests.oidc_provider import RSA_KEYS, Provider, SigningKey, number, providing
from tests.upstreams import answering, http, http_json, listening, self_signed

Opening = Callable[..., AbstractAsyncContextManager[Issuers]]


@pytest.fixture
async def provider(clock: StandingClock) -> AsyncIterator[Provider]:
    async with providing(clock) as provider:
        yield provider


@pytest.fixture
def opening(provider: Provider, clock: StandingClock) -> Opening:
    @asynccontextmanager
    async def opened(
        *, anywhere: bool = False, resolve: Resolve | None = None, **members: Any
    ) -> AsyncIterator[Issuers]:
        table = {name: v for name, v in provider.table(**members).items() if v is not None}
        issuers = Issuers(
            [Issuer.model_validate(table)],
            anywhere=anywhere,
            clock=clock,
            metrics=Metrics(),
            resolve=resolve,
        )
        try:
            yield issuers
        finally:
            await issuers.aclose()

    return opened


@pytest.fixture
async def issuers(opening: Opening) -> AsyncIterator[Issuers]:
    async with opening() as issuers:
        yield issuers


async def fault_of(issuers: Issuers) -> str:
    """Fetch, and return what is wrong."""
    [fault] = (await issuers.look()).values()
    return fault


async def taken(issuers: Issuers, provider: Provider, key: SigningKey | None = None) -> bool:
    tokens = ExternalTokens(issuers, clock=provider.clock)
    try:
        await tokens.verify((key or provider.keys[-1]).token(provider.claims()))
    except InvalidToken:
        return False
    return True


# When keys are fetched


async def test_the_first_token_brings_the_keys_when_nothing_else_has(
    issuers: Issuers, provider: Provider
) -> None:
    assert [await taken(issuers, provider) for _ in range(5)] == [True] * 5

    assert provider.fetches == 1


async def test_keys_are_fetched_anew_after_ten_minutes_and_not_before(
    issuers: Issuers, provider: Provider, clock: StandingClock
) -> None:
    await issuers.refresh()
    clock.advance(seconds=599)
    await issuers.refresh()
    assert provider.fetches == 1

    clock.advance(seconds=1)
    await issuers.refresh()

    assert provider.fetches == 2


async def test_a_new_key_is_fetched_with_its_first_token(
    issuers: Issuers, provider: Provider
) -> None:
    await issuers.refresh()
    provider.keys.append(SigningKey())

    assert await taken(issuers, provider)
    assert await taken(issuers, provider, provider.keys[0])
    assert provider.fetches == 2


async def test_a_key_that_was_taken_back_is_not_good_after_the_next_fetch(
    issuers: Issuers, provider: Provider, clock: StandingClock
) -> None:
    old = provider.keys[0]
    assert await taken(issuers, provider, old)
    provider.keys = [SigningKey()]
    clock.advance(minutes=10)

    await issuers.refresh()

    assert not await taken(issuers, provider, old)
    assert await taken(issuers, provider)


async def test_a_flood_of_made_up_keys_costs_the_issuer_one_fetch_in_half_a_minute(
    issuers: Issuers, provider: Provider, clock: StandingClock
) -> None:
    await issuers.refresh()

    async def flood() -> list[bool]:
        made_up = [SigningKey(RSA_KEYS[1], f"made-up-{n}") for n in range(200)]
        return await asyncio.gather(*(taken(issuers, provider, key) for key in made_up))

    assert not any(await flood())
    assert provider.fetches == 2
    clock.advance(seconds=29)
    assert not any(await flood())
    assert provider.fetches == 2
    clock.advance(seconds=1)
    assert not any(await flood())
    assert provider.fetches == 3


def hold(provider: Provider) -> tuple[asyncio.Event, asyncio.Event]:
    """Let *provider* answer late; return when it was asked, and what lets it proceed."""
    asked, proceed = asyncio.Event(), asyncio.Event()

    async def late() -> bytes:
        asked.set()
        await proceed.wait()
        return jwks(*(key.jwk for key in provider.keys))

    provider.answer = late
    return asked, proceed


async def test_one_fetch_is_under_way_at_a_time_and_everybody_waits_for_it(
    issuers: Issuers, provider: Provider
) -> None:
    asked, proceed = hold(provider)
    waiting = [asyncio.create_task(taken(issuers, provider)) for _ in range(20)]
    waiting.append(asyncio.create_task(taken(issuers, provider)))
    refresh = asyncio.create_task(issuers.refresh())
    await asked.wait()
    waiting[-1].cancel()  # one client hangs up
    proceed.set()

    assert await asyncio.gather(*waiting[:-1]) == [True] * 20
    await refresh
    assert provider.fetches == 1


async def test_no_more_than_256_requests_wait_for_a_slow_issuer(
    issuers: Issuers, provider: Provider
) -> None:
    _, proceed = hold(provider)
    waiting = [asyncio.create_task(taken(issuers, provider)) for _ in range(300)]
    done, still = await asyncio.wait(waiting, return_when=asyncio.FIRST_EXCEPTION)
    assert all(isinstance(task.exception(), IssuerUnavailable) for task in done)
    assert len(still) >= 256
    proceed.set()

    results = await asyncio.gather(*waiting, return_exceptions=True)

    assert results.count(True) == 256


# An issuer that is away


async def down() -> bytes:
    return http(503, b"")


async def test_without_any_keys_nobody_is_called_a_liar(
    issuers: Issuers, provider: Provider, clock: StandingClock
) -> None:
    provider.answer = down

    for _ in range(3):
        with pytest.raises(IssuerUnavailable) as caught:
            await taken(issuers, provider)
        assert caught.value.retry_after_seconds == 30
    assert provider.fetches == 1

    provider.answer = None
    clock.advance(seconds=30)
    assert await taken(issuers, provider)


async def test_stale_keys_are_good_for_a_day_and_the_issuer_is_asked_every_half_minute(
    issuers: Issuers, provider: Provider, clock: StandingClock
) -> None:
    await issuers.refresh()
    provider.answer = down
    clock.advance(minutes=10)
    for _ in range(4):
        await issuers.refresh()
        clock.advance(seconds=15)
    assert provider.fetches == 3

    clock.advance(hours=23, minutes=48, seconds=59)
    assert await taken(issuers, provider)
    clock.advance(seconds=1)
    with pytest.raises(IssuerUnavailable):
        await taken(issuers, provider)


async def test_a_failure_is_told_and_counted(provider: Provider, clock: StandingClock) -> None:
    metrics = Metrics()
    configured = [Issuer.model_validate(provider.table())]
    issuers = Issuers(configured, anywhere=False, clock=clock, metrics=metrics)
    await issuers.refresh()
    provider.answer = down
    clock.advance(minutes=10)

    with capture_logs() as lines:
        await issuers.refresh()
    await issuers.aclose()

    assert [line["event"] for line in lines] == ["issuer_keys_unavailable"]
    assert "answered 503" in lines[0]["reason"]
    shown = metrics.exposition().decode()
    name = f'issuer="{provider.url}"'
    assert f'realtime_tokens_issuer_fetches_total{{{name},result="ok"}} 1.0' in shown
    assert f'realtime_tokens_issuer_fetches_total{{{name},result="failed"}} 1.0' in shown
    assert f"realtime_tokens_issuer_keys_age_seconds{{{name}}} 600.0" in shown


# Answers that are not taken


def jwks(*keys: dict[str, Any]) -> bytes:
    return http_json(200, {"keys": [*keys]})


FIRST = SigningKey(RSA_KEYS[0], "first").jwk
SYMMETRIC = {"kty": "oct", "kid": "s", "k": "c2VjcmV0", "alg": "HS256"}
TOO_SHORT = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505 - it is the fault
SHORT = SigningKey(TOO_SHORT, "short").jwk
OFF_CURVE = SigningKey(kid="off").jwk | {"y": "A" * 43}
P384 = {"kty": "EC", "crv": "P-384", "kid": "p384", "x": "AA", "y": "AA"}
OKP = {"kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": "AA"}
MANY = [SigningKey(RSA_KEYS[0], f"key-{n}").jwk for n in range(21)]
BAD_ANSWERS: dict[str, tuple[bytes, str]] = {
    "an error": (http(500, b"{}"), "answered 500"),
    "a redirect": (http(302, b"", "Location: /elsewhere"), "answered 302; redirects are not"),
    "a permanent one": (http(308, b"", "Location: https://evil.example"), "answered 308"),
    "not modified": (http(304, b""), "answered 304"),
    "a page": (http(200, b"<html>"), "is no JSON object"),
    "nothing": (http(200, b""), "is no JSON object"),
    "a list": (http(200, b"[]"), "is no JSON object"),
    "a member twice": (http(200, b'{"keys":[],"keys":[]}'), "is no JSON object"),
    "deep": (http(200, b"[" * 60_000), "is no JSON object"),
    "bytes": (http(200, b"\xff" * 100), "is no JSON object"),
    "compressed": (http(200, b"\x1f\x8b", "Content-Encoding: gzip"), "is no JSON object"),
    "too large": (http(200, b" " * (LIMIT_BYTES + 1)), "is larger than 64 KiB"),
    "not HTTP": (b"SSH-2.0-OpenSSH_9.6\r\n", "cannot be reached: RemoteProtocolError"),
    "broken off": (http(200, b"{}").replace(b"Length: 2", b"Length: 9"), "cannot be reached"),
    "no keys": (http_json(200, {}), "is no key set"),
    "keys of text": (http_json(200, {"keys": ["first"]}), "is no key set"),
    "an empty set": (jwks(), "has no key for RS256 or ES256; an issuer that signs with a shared"),
    "21 keys": (jwks(*MANY), "has more than 20 keys"),
    "one name twice": (jwks(FIRST, SigningKey(kid="first").jwk), "two keys with the same kid"),
    "a symmetric key": (jwks(FIRST, SYMMETRIC), "publishes a secret"),
    "a private key": (jwks(FIRST | {"d": "AQAB"}), "publishes a secret"),
    "an RSA key of 1,024 bits": (jwks(SHORT), "has no key for"),
    "a point off the curve": (jwks(OFF_CURVE), "has no key for"),
    "another curve": (jwks(P384), "has no key for"),
    "another type": (jwks(OKP), "has no key for"),
    "for encryption": (jwks(FIRST | {"use": "enc"}), "has no key for"),
    "for signing alone": (jwks(FIRST | {"key_ops": ["sign"]}), "has no key for"),
    "for another algorithm": (jwks(FIRST | {"alg": "RS512"}), "has no key for"),
    "without a name": (jwks({n: v for n, v in FIRST.items() if n != "kid"}), "has no key for"),
    "with a number as name": (jwks(FIRST | {"kid": 1}), "has no key for"),
    "with an even exponent": (jwks(FIRST | {"e": number(65536)}), "has no key for"),
    "with a giant exponent": (jwks(FIRST | {"e": FIRST["n"]}), "has no key for"),
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
async def test_a_bad_answer_is_named_and_the_keys_from_before_stay(
    issuers: Issuers, provider: Provider, name: str
) -> None:
    await issuers.refresh()
    answer, said = BAD_ANSWERS[name]
    provider.answer = lambda: asyncio.sleep(0, answer)

    assert said in await fault_of(issuers)
    assert provider.fetches == 2
    assert len(provider.asked) == 2  # it went nowhere else
    assert await taken(issuers, provider)


async def test_keys_that_are_not_for_us_stand_beside_those_that_are(
    issuers: Issuers, provider: Provider
) -> None:
    others: tuple[dict[str, Any], ...] = (
        SHORT,
        OFF_CURVE,
        P384,
        OKP,
        {"kty": "new"},
        {},
        MANY[0] | {"use": "enc"},
    )
    provider.answer = lambda: asyncio.sleep(0, jwks(*others, FIRST))

    assert await taken(issuers, provider)
    assert not await taken(issuers, provider, SigningKey(RSA_KEYS[0], "key-0"))


async def test_keys_of_an_algorithm_that_is_not_configured_do_not_count(opening: Opening) -> None:
    async with opening(algorithms=["ES256"]) as issuers:
        assert "has no key for ES256; an issuer" in await fault_of(issuers)


@pytest.mark.slow
async def test_an_issuer_that_drips_is_given_up_after_five_seconds(clock: StandingClock) -> None:
    async with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", hang=True) as server:
        url = server.url
        configured = Issuer(issuer=url, jwks_uri=url, audiences=["x"])
        issuers = Issuers([configured], anywhere=False, clock=clock, metrics=Metrics())

        assert await issuers.look() == {url: "no answer within 5 s"}

        await issuers.aclose()


# Discovery


async def test_discovery_leads_to_the_keys(opening: Opening, provider: Provider) -> None:
    async with opening(jwks_uri=None) as issuers:
        assert await taken(issuers, provider)

    assert provider.asked == ["/.well-known/openid-configuration", "/jwks"]


@pytest.mark.parametrize(
    ("configuration", "said"),
    [
        ({"issuer": "https://evil.example"}, "of another issuer: 'https://evil.example'"),
        ({"issuer": "x" * 10_000}, "of another issuer: 'xxx"),
        ({"issuer": None}, "of another issuer: None"),
        ({"jwks_uri": None}, "has no jwks_uri"),
        ({"jwks_uri": "http://login.example.com/jwks"}, "must be https://"),
        ({"jwks_uri": "file:///etc/passwd"}, "must be an address such as"),
        ({"jwks_uri": "https://[::1"}, "https://[::1"),
        ({"jwks_uri": "https://10.0.0.1/latest/meta-data"}, "is a private address"),
        ({"jwks_uri": "https://user:pass@login.example.com/"}, "must be a plain address"),
    ],
)
async def test_discovery_cannot_lead_astray(
    opening: Opening, provider: Provider, configuration: dict[str, Any], said: str
) -> None:
    provider.configuration = configuration

    async with opening(jwks_uri=None) as issuers:
        fault = await fault_of(issuers)

    assert said in fault
    assert len(fault) < 400
    assert provider.fetches == 0


# Addresses


async def refused_by(*addresses: str, anywhere: bool = False, nearby: bool = False) -> str:
    """Return why nothing was asked for at a host with these addresses, or where it was tried."""
    tried: list[str] = []

    async def resolve(_host: str, _port: int) -> list[str]:
        return [*addresses]

    door = _Door(anywhere=anywhere, resolve=resolve)

    def note(request: httpx.Request) -> httpx.Response:
        tried.append(f"{request.url.host} {request.headers['Host']}")
        assert request.extensions["sni_hostname"] == "login.example.com"
        raise httpx.ConnectError("noted")

    door._direct = httpx.MockTransport(note)  # type: ignore[assignment]  # stands where TCP begins
    try:
        await door.get("https://login.example.com/jwks", nearby=nearby)
    except Exception as fault:  # noqa: BLE001 - all of it is returned
        return " ".join([*tried, str(fault)])
    raise AssertionError


PRIVATE = [
    "127.0.0.1",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "224.0.0.1",
    "255.255.255.255",
    "192.0.2.1",
    "::1",
    "::",
    "fe80::1%eth0",
    "fc00::1",
    "::ffff:10.0.0.1",
    "::ffff:127.0.0.1",
    "2002:7f00:1::",
    "64:ff9b::10.0.0.1",
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::10.0.0.1",
    "::10.0.0.1",
    "fec0::1",
    "ff02::1",
]


@pytest.mark.parametrize("address", PRIVATE)
async def test_a_name_that_leads_to_a_private_address_is_not_followed(address: str) -> None:
    assert (await refused_by(address)).startswith("https://login.example.com/jwks is at a")
    assert (await refused_by(address, anywhere=True)).startswith(address.partition("%")[0])


async def test_the_address_that_was_looked_at_is_the_one_that_is_asked() -> None:
    said = await refused_by("10.0.0.1", "8.8.8.8", "2606:4700::1111", "64:ff9b::808:808")

    assert re.findall(r"(\S+) login\.example\.com", said) == [
        "8.8.8.8",
        "2606:4700::1111",
        "64:ff9b::808:808",  # 8.8.8.8 again, as a network without IPv4 reaches it
    ]
    assert "10.0.0.1" not in said


async def test_loopback_is_for_issuers_that_the_operator_has_put_there() -> None:
    assert "private address" in await refused_by("127.0.0.1")
    assert (await refused_by("127.0.0.1", nearby=True)).startswith("127.0.0.1 login")
    assert "private address" in await refused_by("10.0.0.1", nearby=True)


@pytest.mark.parametrize("host", ["login.example.com", "evil.example.com"])
async def test_the_certificate_has_to_be_that_of_the_name_whatever_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: StandingClock, host: str
) -> None:
    async def here(_host: str, _port: int) -> list[str]:
        return ["127.0.0.1"]

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.read(reader)
        writer.write(jwks(FIRST))

    tls = self_signed(tmp_path, x509.DNSName("login.example.com"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    async with listening(handler, tls=tls) as server:
        url = f"https://{host}:{server.port}"
        configured = Issuer(issuer=url, jwks_uri=f"{url}/jwks", audiences=["x"])
        issuers = Issuers([configured], anywhere=True, clock=clock, metrics=Metrics(), resolve=here)
        fault = await fault_of(issuers)
        await issuers.aclose()

    if host == "login.example.com":
        assert fault == ""
        assert server.requests[0].headers["host"] == f"{host}:{server.port}"
    else:
        assert "cannot be reached: ConnectError" in fault
        assert server.requests == []


async def test_a_host_without_an_address_is_said_to_have_none(
    opening: Opening, provider: Provider
) -> None:
    async def unknown(_host: str, _port: int) -> list[str]:
        raise OSError("Name or service not known")

    async with opening(resolve=unknown, jwks_uri="https://nowhere.example/jwks") as issuers:
        assert "the host has no address" in await fault_of(issuers)


async def test_a_proxy_of_the_environment_is_used_but_never_for_loopback(
    opening: Opening, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(_host: str, _port: int) -> list[str]:
        raise AssertionError

    async with answering(http(407, b"")) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"127.0.0.1:{proxy.port}")
        monkeypatch.setenv("HTTP_PROXY", f"127.0.0.1:{proxy.port}")
        async with opening(resolve=never, jwks_uri="https://login.example.com/jwks") as issuers:
            assert "cannot be reached: ProxyError" in await fault_of(issuers)
        async with opening() as issuers:
            assert await taken(issuers, provider)

    assert [request.line for request in proxy.requests] == [
        "CONNECT login.example.com:443 HTTP/1.1"
    ]


async def test_a_proxy_that_does_not_speak_http_is_named(
    opening: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:1080")

    async with opening(jwks_uri="https://login.example.com/jwks") as issuers:
        assert await fault_of(issuers) == "HTTPS_PROXY must be an http:// or https:// address"
