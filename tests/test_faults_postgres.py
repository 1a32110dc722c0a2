"""Promises 3 and 13 on PostgreSQL: whatever happens to it, callers are answered in time, nothing is
lost, and minting comes back by itself.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, ExitStack
from functools import partial

import httpx
import pytest
import pytest_asyncio

from tests.faults import (
    CUT_OFF,
    OURS,
    PostgresFault,
    PostgresTarget,
    Target,
    crashed,
    far_from,
    frozen,
    full,
    postgres_target,
    slowed,
    stalled,
    stopped,
    stuck_clients,
)
from tests.stage import (
    AWAY_SECONDS,
    BACK_SECONDS,
    DRAINED_SECONDS,
    EMAIL,
    PASSWORD,
    TOKEN,
    load,
)

pytestmark = [pytest.mark.outside, pytest.mark.asyncio(loop_scope="module")]

MOST_CONNECTIONS = 6  # the log's own and the pool
CUT_SHORT = "timeout graceful shutdown exceeded"  # what uvicorn calls the end of a stuck request


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def target(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PostgresTarget]:
    async with postgres_target(tmp_path_factory.mktemp("faults")) as target:
        yield target


FAULTS: list[PostgresFault] = [stopped, crashed, frozen, full, stalled]


@pytest.mark.parametrize("fault", FAULTS)
async def test_under_load_it_is_refused_in_time_and_minting_comes_back(
    target: PostgresTarget, fault: PostgresFault
) -> None:
    await assert_refused_and_back(target, fault(target))


async def test_a_server_slower_than_anybody_waits_is_one_that_is_away(
    target: PostgresTarget,
) -> None:
    async with far_from(target) as far:
        await assert_refused_and_back(far, slowed(far))


async def assert_refused_and_back(target: Target, fault: AbstractAsyncContextManager[None]) -> None:
    async with load(target.stage, target.service) as callers:
        async with fault:
            began = time.monotonic()
            await callers.refused(40)  # all of them at least once
            asked = len(target.stage.upstream.asked)
            await callers.refused(60)
            assert len(target.stage.upstream.asked) == asked, "OpenAI was asked all the same"
        await callers.next_token(within=BACK_SECONDS)

    assert callers.answers.keys() == {200, 503}
    assert callers.codes == {"audit_unavailable"}
    assert callers.slowest_refusal_seconds(since=began) < AWAY_SECONDS
    await target.stage.check()


@pytest.mark.parametrize("fault", FAULTS[:-1])  # who reads does not wait for the chain
async def test_what_only_reads_is_refused_in_time_too(
    target: PostgresTarget, fault: PostgresFault
) -> None:
    form = {"grant_type": "password", "username": EMAIL, "password": PASSWORD}
    async with httpx.AsyncClient(base_url=target.service.url, timeout=30) as client:
        async with fault(target):
            began = time.monotonic()
            ready, refused = await asyncio.gather(
                client.get("/readyz"), client.post("/auth/token", data=form)
            )
            took = time.monotonic() - began
        async with asyncio.timeout(BACK_SECONDS):
            while (await client.get("/readyz")).status_code != 200:
                pass
        welcome = await client.post("/auth/token", data=form)

    assert (ready.status_code, ready.json()["database"]) == (503, "failing")
    assert (refused.status_code, refused.json()["error"]) == (503, "temporarily_unavailable")
    assert took < AWAY_SECONDS
    assert welcome.status_code == 200


async def test_connections_that_are_cut_are_made_anew_unnoticed(target: PostgresTarget) -> None:
    async with load(target.stage, target.service) as callers:
        for _ in range(10):
            await target.sql(CUT_OFF)
            await callers.answered()  # a row that is cut off twice is given up

    assert callers.answers.keys() == {200}
    await target.stage.check()


async def test_a_restart_in_a_quiet_moment_is_not_noticed(target: PostgresTarget) -> None:
    async with httpx.AsyncClient(headers=target.stage.headers, timeout=30) as client:
        before = await client.post(target.service.url + TOKEN)
        async with stopped(target):
            pass
        after = await client.post(target.service.url + TOKEN)

    assert (before.status_code, after.status_code) == (200, 200)


async def test_a_token_whose_row_cannot_be_written_is_dropped(target: PostgresTarget) -> None:
    upstream = target.stage.upstream
    asked, minted = len(upstream.asked), len(upstream.minted)
    upstream.delay_seconds = 0.5
    async with httpx.AsyncClient(headers=target.stage.headers, timeout=30) as client:
        mint = asyncio.create_task(client.post(target.service.url + TOKEN))
        await upstream.reached(asked + 1)
        async with frozen(target):
            answer = await mint
    upstream.delay_seconds = 0.02

    assert answer.status_code == 503
    assert len(upstream.minted) == minted + 1
    assert upstream.minted[-1] not in answer.text
    await target.stage.check()


async def test_a_server_that_stutters_slows_minting_down_and_no_more(
    target: PostgresTarget,
) -> None:
    async def stutter() -> None:
        for _ in range(10):
            async with frozen(target):
                await asyncio.sleep(0.3)
            await asyncio.sleep(0.1)

    async with load(target.stage, target.service) as callers:
        began, before = time.monotonic(), callers.answers[200]
        await stutter()
        assert callers.answers[200] > before + 20

    assert callers.answers.keys() <= {200, 503}
    assert callers.slowest_refusal_seconds(since=began) < AWAY_SECONDS
    await target.stage.check()


async def test_a_server_that_is_far_away_slows_minting_down_and_no_more(
    target: PostgresTarget,
) -> None:
    async with far_from(target) as far, load(far.stage, far.service) as callers:
        far.line.delay_seconds = 0.1
        while callers.answers[200] < 100:
            await callers.next_token(within=BACK_SECONDS)

    assert callers.answers.keys() == {200}
    await target.stage.check()


async def test_a_start_has_more_patience_than_callers(target: PostgresTarget) -> None:
    stack = ExitStack()
    try:
        async with frozen(target):
            start = partial(stack.enter_context, target.stage.serving())
            starting = asyncio.create_task(asyncio.to_thread(start))
            await asyncio.sleep(4)  # it is at the database after one, and callers wait for one more
        service = await starting
        async with httpx.AsyncClient(base_url=service.url) as client:
            minted = await client.post("/realtime/token", headers=target.stage.headers)
    finally:
        await asyncio.to_thread(stack.close)

    assert minted.status_code == 200
    await target.stage.check()


async def test_waiting_for_the_chain_does_not_use_up_the_connections(
    target: PostgresTarget,
) -> None:
    async with load(target.stage, target.service) as callers, stalled(target):
        await callers.refused(80)  # four times each, and each time the writer gave up a connection
        ours = await target.sql(f"SELECT count(*) FROM pg_stat_activity WHERE {OURS}")

    assert isinstance(ours, int)
    assert ours <= MOST_CONNECTIONS


async def test_sigterm_ends_the_service_in_time_while_server_and_clients_are_stuck(
    target: PostgresTarget,
) -> None:
    bearer = target.stage.headers["Authorization"].encode()
    with target.stage.serving() as another:
        async with load(target.stage, another), frozen(target):
            with stuck_clients(another, bearer):
                began = time.monotonic()
                another.process.terminate()
                await asyncio.to_thread(another.process.wait, timeout=DRAINED_SECONDS)
                took = time.monotonic() - began

    assert took < DRAINED_SECONDS
    await target.stage.check()


async def test_after_all_that_its_log_is_whole_and_its_own_log_tells_of_no_bug(
    target: PostgresTarget,
) -> None:
    await target.stage.check()
    verified = await asyncio.to_thread(target.service.run, "audit", "verify")

    assert verified.returncode == 0, verified.stdout
    lines = (target.service.stdout.read_text() + target.service.banner).splitlines()
    bugs = [line for line in lines if "Traceback" in line and CUT_SHORT not in line]
    assert bugs == []
