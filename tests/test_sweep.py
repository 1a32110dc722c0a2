import asyncio
from datetime import timedelta

import pytest

from app.audit.events import Event
from app.audit.log import Log
from app.base.ids import new_id
from app.identity.users import User
from app.minting.mint import ACTION
from app.minting.profiles import Wish
from app.minting.sweep import AT_ONCE
from app.runtime import Runtime
from tests.clock import StandingClock
from tests.conftest import caller_for
from tests.log_faults import stopped
from tests.log_rows import outcomes, rows


async def begin(log: Log, *names: str) -> None:
    """Leave the intents of mints whose process then dies."""
    for name in names:
        await log.record([Event(action=ACTION, outcome="requested", attempt_id=name)])


async def test_what_stays_open_is_settled_after_80_seconds_and_before(
    runtime: Runtime, alice: User, clock: StandingClock
) -> None:
    await begin(runtime.log, "tok_lost")
    await runtime.minter.mint(await caller_for(runtime, alice), Wish())

    clock.advance(seconds=79)
    assert await runtime.sweep.run() == 0
    clock.advance(seconds=2)
    assert await runtime.sweep.run() == 1
    assert await runtime.sweep.run() == 0

    [_, swept] = await rows(runtime.database, attempt_id="tok_lost")
    assert (swept["action"], swept["outcome"], swept["reason"]) == (ACTION, "unknown", "swept")


async def test_the_outcome_says_whose_attempt_it_was_and_for_what(
    runtime: Runtime, clock: StandingClock
) -> None:
    requested = Event(
        action=ACTION,
        outcome="requested",
        attempt_id="tok_lost",
        actor="usr_1",
        credential="jti_1",
        request_id="req_1",
        profile="coach",
        model_asked="mini",
        model_used="gpt-realtime-2.1-mini",
    )
    await runtime.log.record([requested])
    clock.advance(seconds=81)

    await runtime.sweep.run()

    began, swept = await rows(runtime.database, attempt_id="tok_lost")
    differs = {name for name in began | swept if began.get(name) != swept.get(name)}
    assert differs == {"event_id", "outcome", "reason"}


async def test_an_attempt_that_began_before_one_that_is_settled_is_seen(
    runtime: Runtime, clock: StandingClock
) -> None:
    for name in ("tok_first", "tok_second", "tok_third"):
        await begin(runtime.log, name)
        clock.advance(seconds=60)

    assert await runtime.sweep.run() == 2
    clock.advance(seconds=60)
    assert await runtime.sweep.run() == 1


async def test_an_attempt_from_before_the_clock_was_set_back_is_settled_in_its_time(
    runtime: Runtime, clock: StandingClock
) -> None:
    clock.advance(hours=1)
    await begin(runtime.log, "tok_of_the_future")
    clock.advance(hours=-1)
    await begin(runtime.log, "tok_of_the_present")

    clock.advance(seconds=81)
    assert await runtime.sweep.run() == 1
    assert await rows(runtime.database, attempt_id="tok_of_the_future", outcome="unknown") == []

    clock.advance(hours=1)
    assert await runtime.sweep.run() == 1
    assert len(await rows(runtime.database, outcome="unknown")) == 2


async def test_more_than_one_sweep_can_settle_is_left_for_the_next(
    runtime: Runtime, clock: StandingClock
) -> None:
    for _ in range(0, AT_ONCE, 100):
        await asyncio.gather(*(begin(runtime.log, new_id("tok")) for _ in range(100)))
    await begin(runtime.log, *(new_id("tok") for _ in range(10)))
    clock.advance(seconds=81)

    assert [await runtime.sweep.run() for _ in range(3)] == [AT_ONCE, 10, 0]

    assert (await outcomes(runtime.database)).count("unknown") == AT_ONCE + 10


@pytest.mark.impatient
async def test_a_log_that_is_down_leaves_the_attempt_for_the_next_sweep(
    runtime: Runtime, clock: StandingClock
) -> None:
    await begin(runtime.log, "tok_first", "tok_second")
    clock.advance(seconds=81)

    async with stopped(runtime.database):
        assert await runtime.sweep.run() == 0
    await runtime.sweep.run()
    await runtime.sweep.run(patience=timedelta(0))

    assert await outcomes(runtime.database) == ["requested"] * 2 + ["unknown"] * 2
