"""The HTTP half of the sandbox: client secrets, models, and what is refused."""

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
import pytest_asyncio
from openai.types.model import Model
from openai.types.realtime import ClientSecretCreateResponse

from app.sandbox import client_secrets
from app.sandbox.app import MOST_BODY_BYTES
from app.sandbox.client_secrets import ClientSecrets
from app.sandbox.errors import Refusal
from tests.sandbox_client import MINI, RunningSandbox, running_sandbox

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox() -> AsyncIterator[RunningSandbox]:
    async with running_sandbox() as running:
        yield running


async def test_a_mint_answers_with_the_documented_shape(sandbox: RunningSandbox) -> None:
    transcription = {"model": "gpt-4o-mini-transcribe"}
    session = {
        "type": "realtime",
        "model": MINI,
        "audio": {"input": {"transcription": transcription}},
    }

    minted = await sandbox.mint(session, expires_after={"anchor": "created_at", "seconds": 60})

    assert set(minted) == {"value", "expires_at", "session"}
    assert re.fullmatch(r"ek_sandbox_[0-9a-f]{32}", minted["value"])
    assert minted["expires_at"] == sandbox.clock().timestamp() + 60
    assert re.fullmatch(r"sess_\w{21}", minted["session"].pop("id"))
    assert minted["session"].pop("instructions")
    assert minted["session"] == {
        "type": "realtime",
        "object": "realtime.session",
        "model": MINI,
        "output_modalities": ["audio"],
        "tools": [],
        "tool_choice": "auto",
        "max_output_tokens": "inf",
        "tracing": None,
        "truncation": "auto",
        "prompt": None,
        "expires_at": 0,
        "audio": {
            "input": {
                "format": {"type": "audio/pcm", "rate": 24000},
                "transcription": {
                    "model": "gpt-4o-mini-transcribe",
                    "language": None,
                    "prompt": None,
                },
                "noise_reduction": None,
                "turn_detection": {
                    "type": "server_vad",
                    "threshold": 0.5,
                    "prefix_padding_ms": 300,
                    "silence_duration_ms": 200,
                    "idle_timeout_ms": None,
                    "create_response": True,
                    "interrupt_response": True,
                },
            },
            "output": {
                "format": {"type": "audio/pcm", "rate": 24000},
                "voice": "alloy",
                "speed": 1.0,
            },
        },
        "include": None,
    }


async def test_a_mint_for_transcription_has_its_own_shape(sandbox: RunningSandbox) -> None:
    minted = await sandbox.mint({"type": "transcription"})

    session = minted["session"]
    assert set(session) == {"type", "object", "id", "expires_at", "audio", "include"}
    assert session["object"] == "realtime.transcription_session"
    assert session["audio"] == {
        "input": {
            "format": {"type": "audio/pcm", "rate": 24000},
            "transcription": None,
            "noise_reduction": None,
            "turn_detection": {
                "type": "server_vad",
                "threshold": 0.5,
                "prefix_padding_ms": 300,
                "silence_duration_ms": 200,
            },
        }
    }


@pytest.mark.parametrize(
    "session",
    [
        {"type": "realtime"},
        {"type": "realtime", "model": "no-such-model", "reasoning": {"effort": "low"}},
        {"type": "realtime", "tools": [{"type": "function", "name": "f"}], "tracing": "auto"},
        {"type": "realtime", "audio": {"input": {"turn_detection": {"type": "semantic_vad"}}}},
        {"type": "realtime", "audio": {"input": {"turn_detection": None}}},
        {"type": "transcription", "include": ["item.input_audio_transcription.logprobs"]},
    ],
)
async def test_the_official_sdk_can_read_what_a_mint_answers(
    sandbox: RunningSandbox, session: dict[str, object]
) -> None:
    minted = await sandbox.mint(session)

    read = ClientSecretCreateResponse.model_validate(minted, strict=True)
    assert read.session.type == session["type"]


async def test_a_mint_without_a_body_lasts_ten_minutes(sandbox: RunningSandbox) -> None:
    answer = await sandbox.http.post("realtime/client_secrets")

    assert answer.status_code == 200
    assert answer.json()["expires_at"] == sandbox.clock().timestamp() + 600
    assert answer.json()["session"]["type"] == "realtime"


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"sesion": {}}, "sesion", "unknown_parameter"),
        ({"session": []}, "session", "invalid_type"),
        ({"session": {}}, "session.type", "missing_required_parameter"),
        (
            {"session": {"type": "realtime", "temperature": 0.8}},
            "session.temperature",
            "unknown_parameter",
        ),
        ({"expires_after": {"seconds": 9}}, "expires_after.seconds", "integer_below_min_value"),
        ({"expires_after": {"seconds": 7201}}, "expires_after.seconds", "integer_above_max_value"),
        ({"expires_after": {"seconds": "60"}}, "expires_after.seconds", "invalid_type"),
        ({"expires_after": {"anchor": "last_used_at"}}, "expires_after.anchor", "invalid_value"),
    ],
)
async def test_a_mint_that_openai_would_refuse_is_refused_alike(
    sandbox: RunningSandbox, body: dict[str, object], param: str, code: str
) -> None:
    answer = await sandbox.http.post("realtime/client_secrets", json=body)

    assert answer.status_code == 400
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)


async def test_half_a_surrogate_pair_is_json_and_does_no_harm(sandbox: RunningSandbox) -> None:
    body = rb'{"session": {"type": "realtime", "instructions": "\ud800"}}'

    answer = await sandbox.http.post("realtime/client_secrets", content=body)

    assert answer.status_code == 200
    assert r"\ud800" in answer.text


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b"\xff",
        b'{"session": NaN}',
        b"[" * 100_000,
        b"9" * 5_000,
        b'{"a":' * 900 + b"1" + b"}" * 900,
    ],
)
async def test_a_body_that_is_no_json_object_is_refused(
    sandbox: RunningSandbox, content: bytes
) -> None:
    answer = await sandbox.http.post("realtime/client_secrets", content=content)

    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_a_huge_body_is_not_read(sandbox: RunningSandbox) -> None:
    answer = await sandbox.http.post(
        "realtime/client_secrets", content=b" " * (MOST_BODY_BYTES + 1)
    )

    assert answer.status_code == 413


@pytest.mark.parametrize("path", ["models", "realtime/client_secrets", "realtime/sessions"])
async def test_the_key_is_checked_before_anything_else(sandbox: RunningSandbox, path: str) -> None:
    method = "GET" if path == "models" else "POST"
    bad_key = "sk-proj-abcdefghijklmnop1234"

    without = await sandbox.http.request(
        method, path, headers={"Authorization": ""}, content=b"not json"
    )
    wrong = await sandbox.http.request(
        method, path, headers={"Authorization": f"Bearer {bad_key}"}, content=b"not json"
    )

    assert (without.status_code, wrong.status_code) == (401, 401)
    assert without.json()["error"] == {
        "message": "Missing bearer or basic authentication in header",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }
    assert wrong.json()["error"]["code"] == "invalid_api_key"
    assert "sk-proj-********1234" in wrong.json()["error"]["message"]
    assert bad_key not in wrong.text


async def test_a_client_secret_is_no_key_for_http(sandbox: RunningSandbox) -> None:
    secret = (await sandbox.mint())["value"]
    bearer = {"Authorization": f"Bearer {secret}"}

    minting = await sandbox.http.post("realtime/client_secrets", json={}, headers=bearer)
    listing = await sandbox.http.get("models", headers=bearer)

    for answer in (minting, listing):
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert secret not in answer.text


@pytest.mark.parametrize("path", ["realtime/sessions", "realtime/transcription_sessions"])
async def test_the_endpoints_of_the_beta_are_off(sandbox: RunningSandbox, path: str) -> None:
    answer = await sandbox.http.post(path, json={"model": MINI})

    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "beta_api_shape_disabled"


async def test_the_header_of_the_beta_is_refused(sandbox: RunningSandbox) -> None:
    beta = {"OpenAI-Beta": "realtime=v1"}

    answer = await sandbox.http.post("realtime/client_secrets", json={}, headers=beta)

    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "beta_api_shape_disabled"


async def test_models_are_listed_with_their_shutdown_dates(sandbox: RunningSandbox) -> None:
    answer = await sandbox.http.get("models")

    listed = answer.json()
    assert listed["object"] == "list"
    assert {model["id"]: model["shutdown_date"] for model in listed["data"]} == {
        MINI: None,
        "gpt-realtime": "2027-01-20",
        "gpt-4o-mini-transcribe": "2027-02-26",
    }
    for model in listed["data"]:
        Model.model_validate(model, strict=True)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "realtime/translations/client_secrets", 404),
        ("GET", "nothing", 404),
        ("GET", "models/", 404),
        ("GET", "realtime/client_secrets", 405),
        ("DELETE", "models", 405),
    ],
)
async def test_what_is_not_there_is_refused_in_openais_shape(
    sandbox: RunningSandbox, method: str, path: str, status: int
) -> None:
    answer = await sandbox.http.request(method, path)

    assert answer.status_code == status
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_every_answer_carries_openais_headers(sandbox: RunningSandbox) -> None:
    answers = [await sandbox.http.get(path) for path in ("models", "models", "nothing")]

    assert len({answer.headers["x-request-id"] for answer in answers}) == 3
    for answer in answers:
        assert answer.headers["openai-version"] == "2020-10-01"
        assert int(answer.headers["openai-processing-ms"]) >= 0


async def test_no_secret_is_remembered_as_it_is() -> None:
    secrets = ClientSecrets()

    value, _ = secrets.mint({"type": "realtime"}, ttl_seconds=60, now=datetime.now(UTC))

    assert value.removeprefix("ek_sandbox_") not in repr(vars(secrets))


async def test_what_is_remembered_of_secrets_is_bounded() -> None:
    secrets = ClientSecrets()
    now = datetime.now(UTC)
    session = {"type": "realtime", "instructions": "x" * (client_secrets.MOST_BYTES // 4)}

    values = [secrets.mint(session, ttl_seconds=60, now=now)[0] for _ in range(6)]

    assert secrets.use(values[-1], now=now) == session
    with pytest.raises(Refusal):
        secrets.use(values[0], now=now)
