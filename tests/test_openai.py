"""The door to OpenAI: what goes out, what is done when the connection or the clock fails."""

import asyncio
import importlib.util
import json
import socket
import sys
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from openai.types.realtime import ClientSecretCreateParams
from pydantic import SecretStr, TypeAdapter

from app.base.errors import (
    UpstreamInvalidResponse,
    UpstreamMisconfigured,
    UpstreamProblem,
    UpstreamRateLimited,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from app.minting import openai as door
from app.minting.openai import OpenAI, UpstreamModel, environment_proxy
from app.settings import SettingsFault
from tests.clock import StandingClock
from tests.fakes import FakeOpenAI
from tests.upstreams import (
    EXPIRES_AT,
    GOOD,
    KEY,
    NOW,
    SESSION,
    TEXT,
    answering,
    door_to,
    http,
    http_json,
    listening,
    mint,
    openai_error,
    problem_of,
    self_signed,
)

MINT_PATH = "/v1/realtime/client_secrets"


# What is sent


async def test_a_mint_is_the_request_that_openai_documents() -> None:
    async with (
        answering(http_json(200, GOOD)) as server,
        door_to(server.url, organization="org-1", project="proj_1") as openai,
    ):
        await mint(openai)

    (request,) = server.requests
    assert request.line == f"POST {MINT_PATH} HTTP/1.1"
    assert request.headers == {
        "host": f"127.0.0.1:{server.port}",
        "accept": "application/json",
        "accept-encoding": "identity",
        "authorization": f"Bearer {KEY}",
        "content-length": str(len(request.body)),
        "content-type": "application/json",
        "openai-organization": "org-1",
        "openai-project": "proj_1",
        "openai-safety-identifier": "a" * 64,
        "x-client-request-id": "tok_1",
        "user-agent": "realtime-tokens",
    }
    assert json.loads(request.body) == {
        "expires_after": {"anchor": "created_at", "seconds": 60},
        "session": SESSION,
    }


@pytest.mark.parametrize(
    "session",
    [
        {
            "type": "realtime",
            "model": "gpt-realtime-2.1-mini",
            "output_modalities": ["audio"],
            "instructions": "Grüße, {name} 👋",
            "audio": {
                "input": {
                    "transcription": {"model": "gpt-4o-mini-transcribe", "language": "en"},
                    "turn_detection": None,
                },
                "output": {"voice": "marin"},
            },
            "max_output_tokens": "inf",
        },
        {
            "type": "transcription",
            "audio": {"input": {"transcription": {"model": "gpt-live-transcribe"}}},
        },
    ],
    ids=["realtime", "transcription"],
)
async def test_the_body_is_what_the_official_sdk_would_send(session: dict[str, Any]) -> None:
    async with answering(http_json(200, GOOD)) as server, door_to(server.url) as openai:
        await openai.create_client_secret(
            session, ttl_seconds=600, safety_identifier="a", client_request_id="tok_1"
        )

    body = json.loads(server.requests[0].body)
    sdk = TypeAdapter(ClientSecretCreateParams)
    assert sdk.validate_python(body) == body  # what the types do not know would be left out
    assert body["session"] == session


async def test_organization_and_project_are_only_sent_when_they_are_set() -> None:
    async with answering(http_json(200, GOOD)) as server, door_to(server.url) as openai:
        await mint(openai)

    assert not {"openai-organization", "openai-project"} & server.requests[0].headers.keys()


# What comes back


async def test_a_redirect_is_not_followed() -> None:
    async with answering(http_json(200, GOOD)) as elsewhere:
        reply = http(307, b"", f"Location: {elsewhere.url}/realtime/client_secrets")
        async with answering(reply) as server, door_to(server.url) as openai:
            problem = await problem_of(openai)

    assert problem.upstream_status == 307
    assert elsewhere.connections == 0


async def test_an_endless_answer_is_cut_off_at_the_limit() -> None:
    sent = 0
    hung_up = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await server.read(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            while True:
                writer.write(b" " * 65_536)
                await writer.drain()
                sent += 65_536
        finally:
            hung_up.set()

    async with listening(handler) as server, door_to(server.url) as openai:
        problem = await problem_of(openai)
        await hung_up.wait()

    assert type(problem) is UpstreamInvalidResponse
    assert sent < 20_000_000  # what fits into the buffers of two sockets


# When nothing comes back in time


async def test_an_answer_that_drips_does_not_outlive_the_deadline() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.read(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n")
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.02)

    async with listening(handler) as server, door_to(server.url, deadline_seconds=0.4) as openai:
        problem = await problem_of(openai)

    assert type(problem) is UpstreamTimeout
    assert problem.may_have_minted is True


@pytest.mark.parametrize(
    "start",
    [b"", b"HTTP/1.1 ", b"HTTP/1.1 200 OK\r\nContent-", b"HTTP/1.1 100 Continue\r\n\r\n"],
    ids=["nothing", "part of the first line", "part of a header", "continue"],
)
async def test_a_server_that_falls_silent_may_have_minted(start: bytes) -> None:
    async with (
        answering(start, hang=True) as server,
        door_to(server.url, deadline_seconds=0.4) as openai,
    ):
        problem = await problem_of(openai)

    assert type(problem) is UpstreamTimeout
    assert problem.may_have_minted is True
    assert len(server.requests) == 1


async def test_a_caller_who_gives_up_closes_the_connection() -> None:
    arrived, gone = asyncio.Event(), asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.read(reader)
        arrived.set()
        await reader.read()
        gone.set()

    async with listening(handler) as server, door_to(server.url) as openai:
        waiting = asyncio.create_task(mint(openai))
        await arrived.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await gone.wait()


# When the connection fails


async def test_a_connection_lost_after_the_request_is_never_asked_again() -> None:
    async with answering() as server, door_to(server.url) as openai:
        problem = await problem_of(openai)

    assert type(problem) is UpstreamUnavailable
    assert problem.may_have_minted is True
    assert len(server.requests) == 1


async def test_nor_is_it_on_a_connection_that_was_used_before() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.read(reader)
        writer.write(http_json(200, GOOD))
        await server.read(reader)

    async with listening(handler) as server, door_to(server.url) as openai:
        await mint(openai)
        problem = await problem_of(openai)

    assert problem.may_have_minted is True
    assert len(server.requests) == 2
    assert server.connections == 1


async def test_a_connection_reset_after_the_request_may_have_minted() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.read(reader)
        raw: socket.socket = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()

    async with listening(handler) as server, door_to(server.url) as openai:
        problem = await problem_of(openai)

    assert type(problem) is UpstreamUnavailable
    assert problem.may_have_minted is True
    assert len(server.requests) == 1


async def test_a_connection_closed_at_once_counts_as_having_taken_the_request() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with listening(handler) as server, door_to(server.url) as openai:
        problem = await problem_of(openai)

    assert type(problem) is UpstreamUnavailable
    assert problem.may_have_minted is True
    assert server.connections == 1


async def test_a_closed_port_minted_nothing() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        async with door_to(f"http://127.0.0.1:{unused.getsockname()[1]}/v1") as openai:
            problem = await problem_of(openai)

    assert type(problem) is UpstreamUnavailable
    assert problem.may_have_minted is False


async def test_a_connection_that_cannot_be_made_is_tried_twice_and_minted_nothing() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # accepts, but never shakes hands

    async with listening(handler) as server:
        https = server.url.replace("http:", "https:")
        async with door_to(https, deadline_seconds=0.4) as openai:
            problem = await problem_of(openai)

    assert type(problem) is UpstreamUnavailable
    assert problem.may_have_minted is False
    assert server.connections == 2


async def test_a_second_try_at_connecting_may_succeed() -> None:
    fake = FakeOpenAI(clock=StandingClock(NOW))

    async def handler(request: httpx.Request) -> httpx.Response:
        if not fake.requests:
            fake.requests.append(request)
            raise httpx.ConnectError("refused")
        return await fake(request)

    async with door_to("http://127.0.0.1:1/v1", transport=httpx.MockTransport(handler)) as openai:
        secret = await mint(openai)

    assert [secret.value.get_secret_value()] == fake.minted


async def test_connections_are_used_again_and_cookies_are_not_kept() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await server.read(reader)
            writer.write(http_json(200, GOOD, "Set-Cookie: __cf_bm=1; Path=/"))

    async with (
        listening(handler) as server,
        door_to(f"http://localhost:{server.port}/v1") as openai,
    ):
        await mint(openai)
        await mint(openai)

    assert server.connections == 1
    assert "cookie" not in server.requests[1].headers


# TLS


@pytest.mark.parametrize("trusted", [True, False])
async def test_the_key_goes_only_to_a_server_with_a_trusted_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, trusted: bool
) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.read(reader)
        writer.write(http_json(200, GOOD))

    tls = self_signed(tmp_path)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    async with listening(handler, tls=tls) as server, door_to(server.https_url) as openai:
        if trusted:
            await mint(openai)
        else:
            problem = await problem_of(openai)
            assert type(problem) is UpstreamUnavailable
            assert problem.may_have_minted is False

    assert len(server.requests) == int(trusted)


async def test_a_server_that_does_not_speak_tls_minted_nothing() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 " + TEXT.encode() + b"\r\n\r\n")

    async with listening(handler) as server, door_to(server.https_url) as openai:
        problem = await problem_of(openai)

    assert type(problem) is UpstreamUnavailable
    assert problem.may_have_minted is False


# Proxies and addresses


async def test_a_proxy_of_the_environment_is_used_but_never_for_loopback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with answering(http_json(200, GOOD)) as proxy, answering(http_json(200, GOOD)) as server:
        monkeypatch.setenv("HTTP_PROXY", f"http://user:p%40ss@127.0.0.1:{proxy.port}")
        async with door_to("http://openai.test/v1") as openai:
            await mint(openai)
        async with door_to(server.url) as openai:
            await mint(openai)

    (through_proxy,) = proxy.requests
    assert through_proxy.line == f"POST http://openai.test{MINT_PATH} HTTP/1.1"
    assert through_proxy.headers["proxy-authorization"] == "Basic dXNlcjpwQHNz"
    assert len(server.requests) == 1


async def test_a_proxy_that_refuses_the_tunnel_never_sees_the_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with answering(http(407, TEXT.encode())) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"127.0.0.1:{proxy.port}")
        async with door_to("https://openai.test/v1") as openai:
            problem = await problem_of(openai)

    assert type(problem) is UpstreamUnavailable
    assert problem.may_have_minted is False
    assert [request.line for request in proxy.requests] == ["CONNECT openai.test:443 HTTP/1.1"] * 2
    assert not any("authorization" in request.headers for request in proxy.requests)


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("https://api.openai.com/v1", "http://secure:3128"),
        ("http://gateway.example/v1", "http://plain:3128"),
        ("https://exempt.example/v1", None),
        ("http://127.0.0.1:8000/v1", None),
        ("https://127.9.9.9/v1", None),
        ("http://[::1]:8000/v1", None),
        ("http://localhost:8000/v1", None),
        ("http://10.0.0.1/v1", "http://plain:3128"),
    ],
)
def test_the_proxy_follows_the_scheme_and_the_exemptions(
    monkeypatch: pytest.MonkeyPatch, url: str, proxy: str | None
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://secure:3128")
    monkeypatch.setenv("HTTP_PROXY", "plain:3128")
    monkeypatch.setenv("NO_PROXY", "exempt.example")

    assert environment_proxy(httpx.URL(url)) == proxy


def test_a_proxy_that_does_not_speak_http_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks5://user:canary@127.0.0.1:1080")

    with pytest.raises(SettingsFault, match="HTTPS_PROXY: must be") as caught:
        environment_proxy(httpx.URL("https://api.openai.com/v1"))

    assert "canary" not in str(caught.value)


def test_an_address_with_a_password_is_refused_without_repeating_it() -> None:
    with pytest.raises(ValueError, match="must not carry") as caught:
        OpenAI(base_url="https://user:canary@api.openai.com/v1", api_key=SecretStr(KEY))

    assert "canary" not in str(caught.value)


# Models


async def test_models_come_with_the_date_they_go() -> None:
    body = {
        "object": "list",
        "data": [
            {"id": "gpt-realtime-mini", "object": "model", "shutdown_date": "2027-01-20"},
            {"id": "gpt-realtime-2.1-mini", "object": "model", "shutdown_date": None},
            {"id": "ft:gpt-4o:acme::1", "object": "model"},
            {"id": "odd-date", "shutdown_date": "next year"},
            {"id": "no-such-day", "shutdown_date": "2027-02-30"},
            {"id": "no-dashes", "shutdown_date": "20270120"},
            {"id": "seconds", "shutdown_date": 1800000000},
            {"id": "\x1b[2J"},
            {"id": None},
            "canary",
        ],
    }
    async with answering(http_json(200, body)) as server, door_to(server.url) as openai:
        models = await openai.list_models()

    assert server.requests[0].line == "GET /v1/models HTTP/1.1"
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert models == (
        UpstreamModel("gpt-realtime-mini", date(2027, 1, 20)),
        UpstreamModel("gpt-realtime-2.1-mini", None),
        UpstreamModel("ft:gpt-4o:acme::1", None),
        *(
            UpstreamModel(name, None, date_is_readable=False)
            for name in ("odd-date", "no-such-day", "no-dashes", "seconds")
        ),
    )


async def test_a_long_list_of_models_is_read_up_to_a_mebibyte() -> None:
    body = {"data": [{"id": f"ft:gpt-4o:acme::{n}", "object": "model"} for n in range(5_000)]}
    async with answering(http_json(200, body)) as server, door_to(server.url) as openai:
        assert len(await openai.list_models()) == 5_000


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (openai_error(401, kind=None, code="invalid_api_key"), UpstreamMisconfigured),
        (http(502, b""), UpstreamUnavailable),
        (http_json(200, {"data": None}), UpstreamInvalidResponse),
        (b"", UpstreamUnavailable),
        (http(200, b" " * (1024 * 1024 + 1)), UpstreamInvalidResponse),
    ],
)
async def test_asking_for_models_mints_nothing_whatever_happens(
    reply: bytes, expected: type[UpstreamProblem]
) -> None:
    async with answering(reply) as server, door_to(server.url) as openai:
        with pytest.raises(UpstreamProblem) as caught:
            await openai.list_models()

    assert type(caught.value) is expected
    assert caught.value.may_have_minted is False


# The stand-in, and the way out of httpx


async def test_the_stand_in_answers_like_openai_until_told_otherwise() -> None:
    fake = FakeOpenAI(clock=StandingClock(NOW))
    async with door_to("http://127.0.0.1:1/v1", transport=httpx.MockTransport(fake)) as openai:
        secret = await mint(openai)
        fake.reply = httpx.Response(429, json={"error": {"code": "slow_down"}})
        assert type(await problem_of(openai)) is UpstreamRateLimited
        assert type(await problem_of(openai)) is UpstreamRateLimited
        fake.reply = httpx.ReadTimeout("late")
        assert type(await problem_of(openai)) is UpstreamTimeout

    assert secret.expires_at == EXPIRES_AT
    assert [secret.value.get_secret_value()] == fake.minted
    assert len(fake.requests) == 4


@pytest.fixture
def door_on_httpx2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    source = Path(door.__file__).read_text()
    assert source.count("\nimport httpx\n") == 1
    changed = tmp_path / "door_on_httpx2.py"
    changed.write_text(source.replace("\nimport httpx\n", "\nimport httpx2 as httpx\n"))
    spec = importlib.util.spec_from_file_location("door_on_httpx2", changed)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


async def test_httpx2_takes_the_place_of_httpx_by_changing_one_line(
    door_on_httpx2: ModuleType,
) -> None:
    async def close_after_reading(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await server.read(reader)

    async with answering(http_json(200, GOOD)) as server:
        openai = door_on_httpx2.OpenAI(
            base_url=server.url, api_key=SecretStr(KEY), clock=StandingClock(NOW)
        )
        secret = await mint(openai)
        server.handler = close_after_reading
        problem = await problem_of(openai)
        await openai.aclose()

    assert secret.expires_at == EXPIRES_AT
    assert type(problem) is UpstreamUnavailable
    assert problem.may_have_minted is True
