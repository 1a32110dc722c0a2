"""What the service tells about itself: `/metrics`, and the sums over several processes."""

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from app.base.errors import AuditUnavailable, Problem
from app.base.metrics import Metrics, share_between_workers
from app.identity.users import OPERATOR, User
from app.main import create_app
from app.minting.profiles import Wish
from app.runtime import Runtime
from app.settings import Settings
from tests.clock import StandingClock
from tests.conftest import (
    PASSWORD,
    as_served,
    bearer_for,
    caller_for,
    on_postgresql,
    on_sqlite,
    played,
)
from tests.fakes import FakeOpenAI
from tests.service import Service, serving
from tests.upstream import playing_openai

TOKEN = "metrics-" * 4


@dataclass
class Shown:
    """An exposition, read by the package's own parser."""

    text: str

    def __getitem__(self, name: str) -> dict[tuple[str, ...], float]:
        """Return the samples of this name by the values of their labels."""
        return {
            tuple(sample.labels.values()): sample.value
            for family in text_string_to_metric_families(self.text)
            for sample in family.samples
            if sample.name == f"realtime_tokens_{name}"
        }

    def mints(self, profile: str = "default") -> dict[str, float]:
        """Return how many mints of *profile* ended how, but for what never happened."""
        return {
            outcome: count
            for (outcome, name), count in self["mints_total"].items()
            if name == profile and count
        }


def shown(metrics: Metrics) -> Shown:
    return Shown(metrics.exposition().decode())


# What is counted ----------------------------------------------------------------------------


async def attempt(runtime: Runtime, user: User, wish: Wish | None = None) -> None:
    """Mint, or be refused."""
    caller = await caller_for(runtime, user)
    with suppress(Problem):
        await runtime.minter.mint(caller, wish or Wish())


async def test_a_mint_is_counted_and_timed(runtime: Runtime, alice: User) -> None:
    await attempt(runtime, alice)

    seen = shown(runtime.metrics)
    assert seen.mints() == {"issued": 1}
    assert seen["upstream_seconds_count"] == {("ok",): 1}
    assert seen["queue_wait_seconds_count"][("mint",)] == 1
    # Alice's account, her sign-in, `requested` and `issued`.
    assert seen["queue_wait_seconds_count"][("log",)] == 4
    assert seen["log_append_seconds_count"][()] == 4
    assert seen["queue_depth"] == {("mint",): 0, ("log",): 0}
    assert seen["mints_in_flight"] == {(): 0}


def refused(status: int) -> httpx.Response:
    return httpx.Response(status, json={"error": {"code": "canary", "message": "canary"}})


@pytest.mark.parametrize(
    ("reply", "outcome", "result"),
    [
        (refused(400), "failed", "upstream_rejected"),
        (refused(429), "failed", "upstream_rate_limited"),
        (httpx.ReadTimeout("late"), "unknown", "upstream_timeout"),
    ],
    ids=["refused", "too many", "no answer"],
)
async def test_what_openai_does_not_give_is_counted_by_what_became_of_it(
    runtime: Runtime,
    alice: User,
    openai: FakeOpenAI,
    reply: httpx.Response | Exception,
    outcome: str,
    result: str,
) -> None:
    openai.reply = reply

    await attempt(runtime, alice)

    seen = shown(runtime.metrics)
    assert seen.mints() == {outcome: 1}
    assert seen["upstream_seconds_count"] == {(result,): 1}


async def test_what_is_under_way_is_seen(runtime: Runtime, alice: User, openai: FakeOpenAI) -> None:
    during: list[Shown] = []

    async def look() -> None:
        during.append(shown(runtime.metrics))

    openai.meanwhile = look

    await attempt(runtime, alice)

    assert during[0]["mints_in_flight"] == {(): 1}
    assert during[0].mints() == {}


async def test_refusals_of_ours_are_counted_and_name_nothing_a_caller_made_up(
    runtime: Runtime, alice: User
) -> None:
    await attempt(runtime, alice, Wish(profile="canary"))
    await attempt(runtime, alice, Wish(language="canary"))
    await attempt(runtime, alice, Wish(voice="canary", variables={"canary": "canary"}))

    seen = shown(runtime.metrics)
    assert seen.mints(profile="") == {"denied": 1}
    assert seen.mints() == {"invalid": 2}
    assert "canary" not in seen.text


async def test_a_limit_that_is_hit_is_named_by_its_setting(
    settings: Settings, clock: StandingClock, openai: FakeOpenAI
) -> None:
    settings = settings.model_copy(update={"mints_per_user_per_minute": 1})
    async with played(settings, clock=clock, openai=openai) as runtime:
        user = await runtime.users.add("x@y.z", role="user", password=PASSWORD, by=OPERATOR)
        for _ in range(3):
            await attempt(runtime, user)
        seen = shown(runtime.metrics)

    assert seen.mints() == {"issued": 1, "denied": 2}
    assert seen["limits_hit_total"] == {
        ("mints_per_user_per_minute",): 2,
        ("max_mints_in_flight",): 0,
    }


@pytest.mark.slow
@pytest.mark.impatient
async def test_a_log_that_is_away_is_seen(runtime: Runtime, alice: User) -> None:
    caller = await caller_for(runtime, alice)
    await runtime.log.close()  # nobody writes any more

    with pytest.raises(AuditUnavailable):
        await runtime.minter.mint(caller, Wish())

    assert shown(runtime.metrics).mints() == {"unrecorded": 1}


@on_sqlite
async def test_outcomes_are_there_before_they_happen(runtime: Runtime) -> None:
    """A first failure is then an increase from zero, which is what alerts look for."""
    outcomes = {outcome for outcome, _ in shown(runtime.metrics)["mints_total"]}

    assert outcomes == {"issued", "denied", "failed", "unknown", "invalid", "unrecorded"}


@on_sqlite
async def test_the_days_of_a_model_are_counted_down(runtime: Runtime, clock: StandingClock) -> None:
    today = shown(runtime.metrics)["model_end_days"]
    clock.advance(days=8)
    later = shown(runtime.metrics)["model_end_days"]

    assert today == {("gpt-4o-mini-transcribe",): 98}  # 2027-02-26, from 2026-11-20
    assert later == {("gpt-4o-mini-transcribe",): 90}


def test_the_documentation_has_every_metric() -> None:
    page = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text()
    documented = set(re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE))
    metrics = Metrics()
    metrics.watch_models(dict)
    metrics.watch_issuers(dict)

    names = re.findall(r"^# TYPE (\w+) ", metrics.exposition().decode(), flags=re.MULTILINE)

    assert documented == set(names)


# Who may read -------------------------------------------------------------------------------


@asynccontextmanager
async def reading(runtime: Runtime, **changes: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Serve with other settings, to a client."""
    app = create_app(runtime.settings.model_copy(update=changes))
    transport = httpx.ASGITransport(as_served(app, runtime))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        yield client


@on_sqlite
async def test_without_a_token_there_are_no_metrics(runtime: Runtime) -> None:
    async with reading(runtime) as client:
        answer = await client.get("/metrics", headers={"Authorization": "Bearer "})

    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@on_sqlite
async def test_the_sandbox_shows_them_to_everybody(runtime: Runtime) -> None:
    async with reading(runtime, openai_api_key=None) as client:
        answer = await client.get("/metrics")

    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-store"
    assert Shown(answer.text)["mints_in_flight"] == {(): 0}


@pytest.mark.parametrize(
    ("authorization", "status", "code"),
    [
        (None, 401, "unauthenticated"),
        (b"Basic " + TOKEN.encode(), 401, "unauthenticated"),
        (b"Bearer " + TOKEN[:-1].encode(), 401, "invalid_token"),
        (b"Bearer " + TOKEN.encode() + b"x", 401, "invalid_token"),
        ("Bearer tökén".encode(), 401, "invalid_token"),
    ],
    ids=["none", "another scheme", "a part", "more", "not ASCII"],
)
@pytest.mark.parametrize("environment", ["live", "sandbox"])
@on_sqlite
async def test_with_a_token_nobody_reads_them_without_it(
    runtime: Runtime, environment: str, authorization: bytes | None, status: int, code: str
) -> None:
    headers = [(b"Authorization", authorization)] if authorization else []
    key = runtime.settings.openai_api_key if environment == "live" else None
    async with reading(runtime, metrics_token=SecretStr(TOKEN), openai_api_key=key) as client:
        answer = await client.get("/metrics", headers=headers)

    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")


@on_sqlite
async def test_the_token_opens_them_and_an_access_token_does_not(
    runtime: Runtime, admin: User
) -> None:
    async with reading(runtime, metrics_token=SecretStr(TOKEN)) as client:
        good = await client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
        other = await client.get("/metrics", headers=await bearer_for(runtime, admin))

    assert (good.status_code, other.status_code) == (200, 401)


# Several processes --------------------------------------------------------------------------

COUNTING = """
import sys
from app.base.metrics import Metrics
metrics = Metrics()
for _ in range(int(sys.argv[1])):
    with metrics.minting("default"), metrics.asking_upstream():
        pass
metrics.mints_in_flight.inc()
print("counted", flush=True)
sys.stdin.read()
"""
SHOWING = "from app.base.metrics import Metrics; print(Metrics().exposition().decode())"


@contextmanager
def worker(times: int) -> Iterator["subprocess.Popen[str]"]:
    """Start a process that counts so many mints and holds one more; stop it at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", COUNTING, str(times)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "counted\n"
        yield process
        process.kill()


def shown_by_a_process() -> Shown:
    run = subprocess.run(
        [sys.executable, "-c", SHOWING], capture_output=True, text=True, check=True, timeout=30
    )
    return Shown(run.stdout)


@pytest.mark.outside
def test_whoever_is_asked_answers_for_all_processes_and_forgets_what_the_dead_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")  # is put back at the end
    folder = tmp_path / "metrics"
    folder.mkdir()
    (folder / "counter_1.db").write_bytes(b"of an earlier run")
    share_between_workers(folder)

    with worker(3), worker(4) as second:
        both = shown_by_a_process()
        second.kill()
        second.wait()
        one = shown_by_a_process()

    assert both.mints() == one.mints() == {"issued": 7}
    assert both["upstream_seconds_count"] == one["upstream_seconds_count"] == {("ok",): 7}
    assert (both["mints_in_flight"], one["mints_in_flight"]) == ({(): 2}, {(): 1})


def issued_by_process(folder: Path) -> list[float]:
    """Return how many mints each worker has counted as issued."""
    return [
        sum(
            value
            for key, value, *_ in MmapedDict.read_all_values_from_file(file)  # type: ignore[no-untyped-call]  # it has no annotations
            if '"outcome": "issued"' in key
        )
        for file in folder.glob("counter_*.db")
    ]


@on_postgresql
async def test_several_workers_are_one_service(settings: Settings, tmp_path: Path) -> None:
    assert settings.database_url is not None
    async with playing_openai() as upstream:
        with serving(
            tmp_path,
            migrate=False,
            OPENAI_API_KEY="sk-workers",
            OPENAI_BASE_URL=upstream.url,
            DATABASE_URL=settings.database_url.get_secret_value(),
            WORKERS=2,
            METRICS_TOKEN=TOKEN,
            MINTS_PER_USER_PER_MINUTE=1_000_000,
            MINTS_PER_USER_PER_DAY=1_000_000,
        ) as service:
            added = service.run("users", "add", "a@b.c", "--password-stdin", stdin=PASSWORD)
            assert added.returncode == 0, added.stderr
            headers = service.sign_in("a@b.c", PASSWORD)

            minted = await mint_until(
                lambda: min(issued_by_process(tmp_path / "var" / "metrics")) > 0, service, headers
            )
            seen = await asyncio.gather(*(read(service) for _ in range(10)))

    assert [shown.mints() for shown in seen] == [{"issued": minted}] * 10
    assert {shown["upstream_seconds_count"][("ok",)] for shown in seen} == {minted}


async def mint_until(enough: Callable[[], bool], service: Service, headers: dict[str, str]) -> int:
    """Mint over a new connection each, several at a time, until it is *enough*; at most 500."""

    async def mint() -> None:
        async with httpx.AsyncClient() as client:
            answer = await client.post(f"{service.url}/realtime/token", headers=headers)
            assert answer.status_code == 200, answer.text

    minted = 0
    while not enough():
        assert minted < 500, "one of the workers gets nothing"
        await asyncio.gather(*(mint() for _ in range(10)))
        minted += 10
    return minted


async def read(service: Service) -> Shown:
    async with httpx.AsyncClient() as client:
        answer = await client.get(
            f"{service.url}/metrics", headers={"Authorization": f"Bearer {TOKEN}"}
        )
    assert answer.status_code == 200, answer.text
    return Shown(answer.text)
