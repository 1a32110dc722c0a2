"""Promise 12: more is asked than can be served, and what can be served still is."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import httpx
import pytest
from structlog.testing import capture_logs

from app.base.errors import Overloaded
from app.base.metrics import Metrics
from app.identity.users import User
from app.main import create_app
from app.minting.admission import Admission
from app.runtime import Runtime
from app.settings import Settings
from tests.conftest import PASSWORD, as_served, bearer_for, on_sqlite
from tests.fakes import FakeOpenAI
from tests.load import Load
from tests.log_rows import outcomes, rows
from tests.service import serving
from tests.upstream import playing_openai
from tests.waiting import until

EMAIL = "ada@example.com"


def admission(*, places: int, wait_seconds: float = 60) -> Admission:
    return Admission(places=places, metrics=Metrics(), wait_seconds=wait_seconds)


class Guest:
    """Somebody who takes a place, stays until told to go, and is told from outside."""

    def __init__(self, to: Admission) -> None:
        self.inside = asyncio.Event()
        self.may_go = asyncio.Event()
        self.task = asyncio.create_task(self._visit(to))

    async def _visit(self, to: Admission) -> None:
        async with to.place():
            self.inside.set()
            await self.may_go.wait()

    async def leave(self) -> None:
        self.may_go.set()
        await self.task


async def seated(guests: list[Guest]) -> list[bool]:
    """Let everybody do what they can, and return who has a place."""
    for _ in range(10):
        await asyncio.sleep(0)
    return [guest.inside.is_set() for guest in guests]


async def test_who_finds_no_place_waits_and_gets_one_in_order_of_arrival() -> None:
    door = admission(places=2)
    guests = [Guest(door) for _ in range(4)]
    assert await seated(guests) == [True, True, False, False]

    await guests[1].leave()
    assert await seated(guests) == [True, True, True, False]
    await guests[0].leave()
    assert await seated(guests) == [True, True, True, True]

    await guests[2].leave()
    await guests[3].leave()


async def test_as_many_may_wait_as_there_are_places_and_the_next_is_refused_at_once() -> None:
    door = admission(places=2)
    guests = [Guest(door) for _ in range(4)]
    await seated(guests)

    with pytest.raises(Overloaded) as refused:
        door.check()
    with pytest.raises(Overloaded):
        async with door.place():
            pytest.fail("there is no place")

    assert refused.value.retry_after_seconds == 1
    await guests[0].leave()
    await seated(guests)
    door.check()
    for guest in guests[1:]:
        await guest.leave()


async def test_a_wait_in_vain_ends_and_leaves_no_trace() -> None:
    door = admission(places=1, wait_seconds=0.01)
    guest = Guest(door)
    await seated([guest])

    with pytest.raises(Overloaded):
        async with asyncio.timeout(5), door.place():
            pytest.fail("there is no place")

    await guest.leave()
    async with door.place():
        door.check()


async def test_who_goes_away_while_waiting_takes_nobodys_place() -> None:
    door = admission(places=1)
    first, second, third = (Guest(door) for _ in range(3))
    await seated([first])
    third.task.cancel()  # was refused: one may wait
    with pytest.raises(Overloaded):
        await third.task

    second.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second.task
    fourth = Guest(door)
    await first.leave()

    assert await seated([fourth]) == [True]
    await fourth.leave()


async def test_who_goes_away_in_the_moment_of_getting_a_place_passes_it_on() -> None:
    door = admission(places=1)
    first, second = Guest(door), Guest(door)
    await seated([first, second])

    first.may_go.set()
    await asyncio.wait([first.task])  # the place is given; the second has not run yet
    second.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second.task

    third = Guest(door)
    assert await seated([third]) == [True]
    await third.leave()


async def test_a_mint_that_fails_gives_its_place_back() -> None:
    door = admission(places=1)
    for _ in range(3):
        with pytest.raises(RuntimeError):
            async with door.place():
                raise RuntimeError

    async with door.place():
        pass


# The service --------------------------------------------------------------------------------


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"max_mints_in_flight": 1})


@pytest.fixture
async def client(runtime: Runtime) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(runtime.settings)
    transport = httpx.ASGITransport(as_served(app, runtime), client=("192.0.2.7", 4711))
    async with httpx.AsyncClient(
        transport=transport, base_url=runtime.settings.public_url
    ) as client:
        yield client


@asynccontextmanager
async def full(
    client: httpx.AsyncClient, runtime: Runtime, openai: FakeOpenAI, headers: dict[str, str]
) -> AsyncIterator[list["asyncio.Task[httpx.Response]"]]:
    """Keep one mint at OpenAI and one waiting, which is all the service has places for."""
    answer = asyncio.Event()
    openai.meanwhile = answer.wait
    mints = [asyncio.create_task(client.post("/realtime/token", headers=headers)) for _ in range(2)]

    async def is_full() -> bool:
        try:
            runtime.admission.check()
        except Overloaded:
            return bool(openai.requests)
        return False

    await until(is_full)
    yield mints
    answer.set()
    await asyncio.wait(mints)


@pytest.mark.parametrize("credential", ["good", "forged", "none"])
async def test_a_full_service_refuses_before_it_looks_at_anything(
    client: httpx.AsyncClient,
    runtime: Runtime,
    openai: FakeOpenAI,
    alice: User,
    credential: str,
) -> None:
    good = await bearer_for(runtime, alice)
    brought = {"good": good, "forged": {"Authorization": "Bearer forged"}, "none": {}}[credential]
    async with full(client, runtime, openai, good) as mints:
        refused = await client.post(
            "/realtime/token",
            headers={**brought, "Origin": "http://localhost:5173"},
            json={"profile": "no such profile"},
        )

        assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
        assert refused.headers["Retry-After"] == "1"
        assert refused.headers["X-Request-ID"] == refused.json()["requestId"]
        assert await rows(runtime.database, outcome="denied") == []

    assert [mint.result().status_code for mint in mints] == [200, 200]
    await runtime.denials.settle(all_of_them=True)
    assert await outcomes(runtime.database) == ["requested", "issued"] * 2


@pytest.mark.slow
@on_sqlite
async def test_of_those_turned_away_one_a_second_leaves_a_line(
    client: httpx.AsyncClient, runtime: Runtime, openai: FakeOpenAI, alice: User
) -> None:
    headers = await bearer_for(runtime, alice)
    async with full(client, runtime, openai, headers) as mints:
        with capture_logs() as logs:
            names = {
                (await client.post("/realtime/token")).headers["X-Request-ID"] for _ in range(5)
            }
            await client.get("/realtime/profiles")
            await mints[1]  # has waited for a place, for a second and in vain
            await asyncio.sleep(0.2)  # now the first line is more than a second old
            again = [client.post("/realtime/token", headers=headers) for _ in range(2)]
            await asyncio.gather(*again)  # the first waits, the second finds no place to

    assert len(names) == 5
    lines = [(line["status"], line.get("left_out")) for line in logs if line["event"] == "request"]
    assert lines[:3] == [(503, 0), (401, None), (503, 5)]


async def test_a_full_service_does_everything_else(
    client: httpx.AsyncClient, runtime: Runtime, openai: FakeOpenAI, alice: User
) -> None:
    headers = await bearer_for(runtime, alice)
    form = {"grant_type": "password", "username": alice.email, "password": PASSWORD}
    async with full(client, runtime, openai, headers):
        answers = [
            await client.get("/livez"),
            await client.get("/readyz"),
            await client.get("/docs"),
            await client.post("/auth/token", data=form),
            await client.get("/realtime/profiles", headers=headers),
        ]

    assert [answer.status_code for answer in answers] == [200] * 5


async def test_strangers_take_no_place_from_those_who_may_mint(
    client: httpx.AsyncClient, runtime: Runtime, openai: FakeOpenAI, alice: User
) -> None:
    """A place to wait is free, and strangers are turned away without taking it."""
    headers = await bearer_for(runtime, alice)
    answer = asyncio.Event()
    openai.meanwhile = answer.wait
    first = asyncio.create_task(client.post("/realtime/token", headers=headers))

    async def is_asked() -> bool:
        return bool(openai.requests)

    await until(is_asked)
    strangers = [await client.post("/realtime/token") for _ in range(3)]
    second = asyncio.create_task(client.post("/realtime/token", headers=headers))
    answer.set()

    assert [stranger.status_code for stranger in strangers] == [401] * 3
    assert [(await mint).status_code for mint in (first, second)] == [200, 200]


# Overload -----------------------------------------------------------------------------------

PLACES = 20
UPSTREAM_SECONDS = 0.5
CAPACITY = PLACES / UPSTREAM_SECONDS  # mints per second, of a machine that takes no time itself


def per_second(load: Load, *, until: float) -> float:
    """Return how many mints were served each second, from the first placeful to the last."""
    served = [answer.at for answer in load.answers if answer.status == 200]
    rounds = [at for at in served[::PLACES] if at < until]
    return PLACES * (len(rounds) - 1) / (rounds[-1] - rounds[0])


def memory_mib(pid: int, what: Literal["VmRSS", "VmHWM"]) -> float:
    """Return what the process has now, or had at its peak."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    [size] = [int(line.split()[1]) for line in lines if line.startswith(f"{what}:")]
    return size / 1024


def begin_peak_anew(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # see proc(5)


@pytest.mark.outside
async def test_at_ten_times_the_capacity_most_of_it_is_served_and_the_rest_refused_quickly(
    tmp_path: Path,
) -> None:
    async with playing_openai() as upstream:
        upstream.delay_seconds = UPSTREAM_SECONDS
        with serving(
            tmp_path,
            OPENAI_API_KEY="sk-overload",
            OPENAI_BASE_URL=upstream.url,
            MAX_MINTS_IN_FLIGHT=PLACES,
            MINTS_PER_USER_PER_MINUTE=1_000_000,
            MINTS_PER_USER_PER_DAY=1_000_000,
        ) as service:
            added = service.run("users", "add", EMAIL, "--password-stdin", stdin=PASSWORD)
            assert added.returncode == 0, added.stderr
            headers = service.sign_in(EMAIL, PASSWORD)

            # What this machine can do at this hour: as many callers as places, nobody waits.
            alone = Load(service.url, "/realtime/token", headers)
            await alone.run(rate=10 * CAPACITY, connections=PLACES, seconds=4)
            pid = service.process.pid
            begin_peak_anew(pid)
            memory_before = memory_mib(pid, "VmRSS")
            load = Load(service.url, "/realtime/token", headers)
            await load.run(rate=10 * CAPACITY, connections=10 * PLACES, seconds=5)
            more_memory = memory_mib(pid, "VmHWM") - memory_before

    refused = sorted(answer.took for answer in load.answers if answer.status == 503)
    assert {answer.status for answer in alone.answers} == {200}
    assert {answer.status for answer in load.answers} == {200, 503}
    assert len(refused) > 0.6 * len(load.answers)  # it was overload indeed
    assert per_second(load, until=5) >= 0.8 * per_second(alone, until=4)
    assert upstream.most_at_once == PLACES
    # What is refused waits for nothing; generous all the same, others use this machine too.
    assert refused[len(refused) // 2] < 0.05
    assert refused[len(refused) * 99 // 100] < 0.25
    assert load.retry_after == {"1"}
    assert more_memory < 64
