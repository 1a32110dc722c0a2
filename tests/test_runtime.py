import sqlalchemy as sa

from app.audit.denials import ROWS_PER_MINUTE
from app.audit.events import Event, Personal
from app.base.db import Database
from app.housekeeping import housekeeping
from app.minting.mint import ACTION
from app.runtime import Runtime, database_of
from app.settings import Settings
from tests.clock import StandingClock
from tests.conftest import on_postgresql, on_sqlite, played
from tests.fakes import FakeOpenAI
from tests.log_lines import captured_log
from tests.log_rows import outcomes, rows
from tests.waiting import until

A_MOMENT = 0.01


async def leave_open(runtime: Runtime, name: str) -> None:
    """Begin an attempt whose process then dies."""
    await runtime.log.record([Event(action=ACTION, outcome="requested", attempt_id=name)])


async def refuse_often(runtime: Runtime) -> None:
    """Refuse somebody twice more than is written down one by one."""
    for _ in range(ROWS_PER_MINUTE + 2):
        await runtime.denials.record(
            Event(action="test.act", outcome="denied", personal=Personal(ip="192.0.2.1"))
        )


async def rename(database: Database, old: str, new: str) -> None:
    def change(tx: sa.Connection) -> None:
        tx.exec_driver_sql(f"ALTER TABLE {old} RENAME TO {new}")

    await database.alter(change)


async def counts(database: Database) -> list[int]:
    return [row["count"] for row in await rows(database, reason="repeated")]


async def test_lost_attempts_are_swept_again_and_again(
    runtime: Runtime, clock: StandingClock
) -> None:
    async def settled() -> bool:
        return (await outcomes(runtime.database))[-1] == "unknown"

    async with housekeeping(runtime, pause_seconds=A_MOMENT):
        for name in ("tok_first", "tok_second"):
            await leave_open(runtime, name)
            clock.advance(seconds=81)
            await until(settled)

    assert await outcomes(runtime.database) == ["requested", "unknown"] * 2


async def test_counted_refusals_are_written_when_their_minute_is_over(
    runtime: Runtime, clock: StandingClock
) -> None:
    async def counted() -> bool:
        return await counts(runtime.database) == [2]

    async with housekeeping(runtime, pause_seconds=A_MOMENT):
        await refuse_often(runtime)
        clock.advance(seconds=61)
        await until(counted)


async def test_counted_refusals_of_a_running_minute_are_written_at_the_end(
    settings: Settings, clock: StandingClock, openai: FakeOpenAI
) -> None:
    async with played(settings, clock=clock, openai=openai) as runtime:
        await refuse_often(runtime)

    database = database_of(settings)
    assert await counts(database) == [2]
    await database.close()


@on_sqlite
async def test_whoever_serves_alone_settles_at_once_what_an_earlier_process_left(
    runtime: Runtime,
) -> None:
    await leave_open(runtime, "tok_lost")

    async with housekeeping(runtime):
        assert await outcomes(runtime.database) == ["requested", "unknown"]


@on_postgresql
async def test_one_of_many_leaves_to_the_others_what_they_may_still_be_at(
    runtime: Runtime,
) -> None:
    await leave_open(runtime, "tok_of_another")

    async with housekeeping(runtime):
        assert await outcomes(runtime.database) == ["requested"]


async def test_a_round_that_fails_is_followed_by_the_next(
    runtime: Runtime, clock: StandingClock
) -> None:
    async def failed() -> bool:
        return "housekeeping_failed" in lines.text

    async def settled() -> bool:
        return await outcomes(runtime.database) == ["requested", "unknown"]

    with captured_log() as lines:
        async with housekeeping(runtime, pause_seconds=A_MOMENT):
            await leave_open(runtime, "tok_lost")
            await rename(runtime.database, "audit_events", "audit_away")
            clock.advance(seconds=81)
            await until(failed)
            await rename(runtime.database, "audit_away", "audit_events")
            await until(settled)
