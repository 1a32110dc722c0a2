"""Promises 1, 2 and 13: whatever ends a process, the log tells of every token, and it ends in time.

What clients hold ⊆ issued rows ⊆ calls made ⊆ requested rows, checked by `Stage.check`.
"""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError
from websockets.frames import CloseCode

from tests.chaos import end_with_stuck_clients, kill_and_start, kill_the_service
from tests.postgres import PostgresServer
from tests.service import Service, is_gone, serving
from tests.stage import DRAINED_SECONDS, SETTLED_SECONDS, TOKEN, Stage, stage

DEMO = "demo@example.com"  # whom the sandbox makes

pytestmark = [pytest.mark.outside, pytest.mark.asyncio(loop_scope="module")]


@dataclass(frozen=True)
class Aftermath:
    """A service that runs again, and what the kills before have left."""

    stage: Stage
    left_open: set[str]
    started: float  # of the monotonic clock


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def on_postgresql(
    tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer
) -> AsyncIterator[Aftermath]:
    """Kill all workers at once under load, three times.

    First of all, because there the sweep takes an attempt for lost after 80 s only.
    """
    folder, url = tmp_path_factory.mktemp("killed"), postgres.new_database()
    async with stage(folder, DATABASE_URL=url) as one:
        toll = await kill_the_service(one, rounds=3, workers=2)
        started = time.monotonic()
        with one.serving():
            yield Aftermath(one, toll.left_open, started)


async def test_ten_kills_under_load_keep_the_invariant(tmp_path: Path) -> None:
    async with stage(tmp_path) as one:
        toll = await kill_and_start(one, rounds=10)

    assert toll.left_open, "no kill hit anything: it proves nothing"


# SIGTERM ------------------------------------------------------------------------------------


@pytest.fixture
def installed(backend: str, postgres: PostgresServer) -> dict[str, str]:
    """What the service is told of its database."""
    return {} if backend == "sqlite" else {"DATABASE_URL": postgres.new_database()}


async def end(service: Service) -> float:
    """Send SIGTERM; return how many seconds it takes to end."""
    began = time.monotonic()
    service.process.terminate()
    await asyncio.to_thread(service.process.wait, timeout=DRAINED_SECONDS)
    return time.monotonic() - began


async def test_sigterm_lets_the_mints_under_way_finish(
    tmp_path: Path, installed: dict[str, str]
) -> None:
    async with stage(tmp_path, **installed) as one:
        one.upstream.delay_seconds = 1.0
        with one.serving() as service:
            async with httpx.AsyncClient(headers=one.headers, timeout=30) as client:
                mints = [asyncio.create_task(client.post(service.url + TOKEN)) for _ in range(10)]
                await one.upstream.reached(10)
                took = await end(service)
                answers = await asyncio.gather(*mints)

        assert [answer.status_code for answer in answers] == [200] * 10
        assert took < 5
        one.held |= {minted["id"]: minted["token"] for minted in map(httpx.Response.json, answers)}
        assert await one.check() == set()


async def test_sigterm_ends_in_time_whatever_clients_and_openai_do(
    tmp_path: Path, installed: dict[str, str]
) -> None:
    async with stage(tmp_path, **installed) as one:
        toll = await end_with_stuck_clients(one, rounds=1)

    assert max(toll.ended_in) < DRAINED_SECONDS


async def test_sigterm_ends_the_sessions_of_the_sandbox(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        headers = service.sign_in(DEMO, service.password_of(DEMO))
        async with httpx.AsyncClient(headers=headers) as client:
            minted = (await client.post(service.url + TOKEN)).json()
        bearer = {"Authorization": f"Bearer {minted['token']}"}
        async with connect(minted["connect"]["websocket"], additional_headers=bearer) as session:
            await session.recv()
            took = await end(service)
            with pytest.raises(ConnectionClosedError):
                await session.recv()

    assert took < 5
    assert session.close_code == CloseCode.SERVICE_RESTART


async def test_sigterm_lets_all_workers_finish_and_ends_them(on_postgresql: Aftermath) -> None:
    one = on_postgresql.stage
    one.upstream.delay_seconds = 1.0
    asked = len(one.upstream.asked)
    with one.serving(WORKERS=3) as service:
        workers = await service.workers(3)
        async with httpx.AsyncClient(headers=one.headers, timeout=30) as client:
            mints = [asyncio.create_task(client.post(service.url + TOKEN)) for _ in range(20)]
            await one.upstream.reached(asked + 20)
            took = await end(service)
            answers = await asyncio.gather(*mints)
    one.upstream.delay_seconds = 0.02

    assert [answer.status_code for answer in answers] == [200] * 20
    assert took < DRAINED_SECONDS
    assert all(map(is_gone, workers))
    assert await one.check() <= on_postgresql.left_open


async def test_sigterm_ends_a_worker_too_that_does_not_get_on(on_postgresql: Aftermath) -> None:
    with on_postgresql.stage.serving(WORKERS=2) as service:
        workers = await service.workers(2)
        os.kill(workers[0], signal.SIGSTOP)
        took = await end(service)

    assert took < DRAINED_SECONDS
    assert all(map(is_gone, workers))


# What the kills on PostgreSQL left ------------------------------------------------------------


async def test_attempts_left_open_on_postgresql_get_their_outcome_within_90_seconds(
    on_postgresql: Aftermath,
) -> None:
    assert on_postgresql.left_open, "no kill hit anything: it proves nothing"

    await on_postgresql.stage.settled(
        on_postgresql.left_open, by=on_postgresql.started + SETTLED_SECONDS
    )
