"""The sandbox alone, as a process of its own, on a bad day."""

import asyncio
import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, RateLimitError
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from app.sandbox.faults import FAULTS
from tests.sandbox_client import MINI, check
from tests.service import COMMAND, environment, free_port, run_command, serving

pytestmark = pytest.mark.outside

API_KEY = "sk-of-another-project"
BEARER = {"Authorization": f"Bearer {API_KEY}"}
MINT = {"session": {"type": "realtime", "model": MINI}}
PAGE = (Path(__file__).parents[1] / "docs" / "sandbox.md").read_text()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start `realtime-tokens sandbox`, in an empty folder and without a setting."""
    folder, port = tmp_path_factory.mktemp("nothing"), free_port()
    with standing_in(folder, "--port", str(port), "--api-key", API_KEY) as process:
        assert process.stdout
        assert f"http://127.0.0.1:{port}/v1" in process.stdout.readline().decode()
        yield f"http://127.0.0.1:{port}"
    assert list(folder.iterdir()) == []


@contextmanager
def standing_in(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [*COMMAND, "sandbox", *arguments]
    with subprocess.Popen(
        command, cwd=folder, env=environment(), stdout=subprocess.PIPE
    ) as process:
        yield process
        process.terminate()
        assert process.wait(timeout=10) in {0, -15}


def mint(base: str, **options: Any) -> httpx.Response:
    return httpx.post(f"{base}/realtime/client_secrets", headers=BEARER, json=MINT, **options)


def list_models(base: str) -> httpx.Response:
    return httpx.get(f"{base}/models", headers=BEARER)


def secret_from(base: str) -> str:
    value: str = mint(base).json()["value"]
    return value


def session(base: str, credential: str, query: str = "") -> connect:
    return connect(
        f"{base.replace('http', 'ws', 1)}/realtime{query}",
        additional_headers={"Authorization": f"Bearer {credential}"},
        proxy=None,
    )


async def everything_from(websocket: ClientConnection) -> list[dict[str, Any]]:
    """Receive until the server has hung up."""
    events = []
    try:
        async with asyncio.timeout(10):
            while True:
                events.append(json.loads(await websocket.recv()))
                check(events[-1])
    except ConnectionClosed:
        return events


REFUSALS = [
    ("invalid_api_key", 401, "invalid_request_error", 3000),
    ("ip_not_authorized", 401, "invalid_request_error", 3000),
    ("unsupported_country_region_territory", 403, "request_forbidden", 3000),
    ("insufficient_permissions", 403, "invalid_request_error", 3000),
    ("model_not_found", 404, "invalid_request_error", 4004),
    ("rate_limit_exceeded", 429, "rate_limit_error", 4000),
    ("slow_down", 429, "rate_limit_error", 4000),
    ("insufficient_quota", 429, "insufficient_quota", 4000),
    ("credit_balance_exhausted", 429, "insufficient_quota", 4000),
    ("organization_spend_limit_exceeded", 429, "insufficient_quota", 4000),
    ("project_spend_limit_exceeded", 429, "insufficient_quota", 4000),
    ("organization_usage_limit_exceeded", 429, "insufficient_quota", 4000),
    ("server_error", 500, "server_error", 4000),
    ("server_is_overloaded", 503, "service_unavailable_error", 4000),
]


@pytest.mark.parametrize(("code", "status", "kind", "close_code"), REFUSALS)
async def test_it_refuses_in_every_way_that_openai_does(
    address: str, code: str, status: int, kind: str, close_code: int
) -> None:
    plain = mint(f"{address}/faults/{code}/v1")
    patient = mint(f"{address}/faults/{code}/7/v1")
    listing = list_models(f"{address}/faults/{code}/v1")
    async with session(f"{address}/faults/{code}/v1", secret_from(f"{address}/v1")) as websocket:
        [event] = await everything_from(websocket)

    for answer in (plain, patient, listing):
        assert answer.status_code == status
        assert answer.headers["x-request-id"].startswith("req_")
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert (answer.json()["error"]["type"], answer.json()["error"]["code"]) == (kind, code)
    assert "Retry-After" not in plain.headers
    assert patient.headers["Retry-After"] == "7"
    assert event["error"]["code"] == code
    assert (websocket.close_code, websocket.close_reason) == (close_code, f"{kind}.{code}")


async def test_beside_the_faults_everything_works(address: str) -> None:
    async with session(f"{address}/v1", secret_from(f"{address}/v1")) as websocket:
        created = json.loads(await websocket.recv())

    assert created["session"]["model"] == MINI


async def test_it_is_slow_for_as_long_as_the_address_says(address: str) -> None:
    began = time.monotonic()
    answer = mint(f"{address}/faults/slow/1/v1")

    assert answer.status_code == 200
    assert time.monotonic() - began >= 1
    with pytest.raises(httpx.ReadTimeout):
        mint(f"{address}/faults/slow/v1", timeout=0.5)


async def test_it_cuts_off_an_answer_in_the_middle(address: str) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        mint(f"{address}/faults/cut_off/v1")


async def test_it_cuts_off_a_session_in_the_middle_of_a_response(address: str) -> None:
    secret = secret_from(f"{address}/v1")
    async with session(f"{address}/faults/cut_off/v1", secret) as websocket:
        await websocket.send(json.dumps({"type": "response.create"}))
        events = await everything_from(websocket)

    assert events[0]["type"] == "session.created"
    assert events[-1]["type"] == "response.output_audio_transcript.delta"
    assert websocket.close_code == 1001


async def test_it_lets_a_secret_in_once(address: str) -> None:
    secret = secret_from(f"{address}/v1")
    async with session(f"{address}/faults/single_use/v1", secret) as first:
        created = json.loads(await first.recv())
    async with session(f"{address}/faults/single_use/v1", secret) as second:
        [refused] = await everything_from(second)

    assert created["type"] == "session.created"
    assert refused["error"]["code"] == "invalid_api_key"
    assert second.close_code == 3000


@pytest.mark.parametrize(("query", "admitted"), [("", True), (f"?model={MINI}", False)])
async def test_it_takes_a_secret_at_the_bare_address_only(
    address: str, query: str, *, admitted: bool
) -> None:
    bare = f"{address}/faults/bare_address/v1"
    async with session(bare, secret_from(bare), query) as websocket:
        event = json.loads(await websocket.recv())

    assert event["type"] == ("session.created" if admitted else "error")
    if not admitted:
        assert event["error"]["code"] == "invalid_model"


async def test_a_session_hits_its_maximum_duration_soon(address: str) -> None:
    base = f"{address}/faults/session_expired/v1"
    async with session(base, secret_from(base)) as websocket:
        events = await everything_from(websocket)

    assert [event["type"] for event in events] == ["session.created", "error"]
    assert events[-1]["error"]["code"] == "session_expired"


async def test_the_official_sdk_waits_as_it_is_told_and_gives_up(address: str) -> None:
    base_url = f"{address}/faults/rate_limit_exceeded/1/v1"
    began = time.monotonic()
    async with AsyncOpenAI(api_key=API_KEY, base_url=base_url, max_retries=1) as backend:
        with pytest.raises(RateLimitError) as refused:
            await backend.models.list()

    assert refused.value.code == "rate_limit_exceeded"
    assert time.monotonic() - began >= 1


def test_the_service_itself_runs_against_it(address: str, tmp_path: Path) -> None:
    with serving(tmp_path, OPENAI_API_KEY=API_KEY, OPENAI_BASE_URL=f"{address}/v1") as service:
        password = "correct horse battery staple"
        add = ("users", "add", "ada@example.com", "--password-stdin")
        assert service.run(*add, stdin=password).returncode == 0
        bearer = service.sign_in("ada@example.com", password)
        minted = httpx.post(f"{service.url}/realtime/token", headers=bearer)

    assert minted.status_code == 200, minted.text
    assert minted.json()["connect"]["websocket"].endswith("/v1/realtime")


def test_a_port_that_is_taken_is_named(address: str, tmp_path: Path) -> None:
    port = address.rpartition(":")[2]

    refused = run_command(tmp_path, "sandbox", "--port", port)

    assert refused.returncode == 1
    assert refused.stderr.startswith(f"realtime-tokens: 127.0.0.1:{port} cannot be used: ")
    assert len(refused.stderr.splitlines()) == 1


def test_the_documentation_lists_every_fault() -> None:
    rows = "\n".join(re.findall(r"^\| `.*", PAGE, flags=re.MULTILINE))

    assert set(re.findall(r"`([a-z_]+)`", rows)) >= set(FAULTS)
    assert {code for code, *_ in REFUSALS} < set(FAULTS)
