import asyncio
import time

import pytest
import sqlalchemy as sa

from app.audit import chain
from app.audit.events import Event, Personal, audit_events
from app.audit.log import BATCH, PATIENCE_SECONDS, AlreadyRecorded, Log, Scribe
from app.audit.stored import stored_rows
from app.base.db import Database
from app.base.errors import AuditUnavailable, UserDisabled
from app.base.ids import new_id
from app.base.postgres import PostgresDatabase
from app.base.sqlite import SqliteDatabase
from app.runtime import database_of, log_in
from app.settings import Settings
from tests.clock import StandingClock
from tests.conftest import on_postgresql
from tests.log_faults import refuse_commits, stopped
from tests.log_rows import rows


def an_event(**members: object) -> Event:
    return Event(**{"action": "test.act", "outcome": "succeeded", **members})  # type: ignore[arg-type]  # a table of members


async def faults_of(database: Database) -> list[chain.Fault]:
    return await database.read(lambda tx: list(chain.faults(stored_rows(tx))))


async def row_counts(database: Database) -> tuple[int, int]:
    """Count the rows of the log, and those of the table that the changes here write to."""

    def count(tx: sa.Connection) -> tuple[int, int]:
        rows = tx.exec_driver_sql("SELECT count(*) FROM audit_events").scalar_one()
        return rows, tx.exec_driver_sql("SELECT count(*) FROM installation").scalar_one()

    return await database.read(count)


async def tamper(database: SqliteDatabase | PostgresDatabase, *statements: str) -> None:
    """Edit the tables as somebody with all rights on them would: past the triggers."""

    def edit(tx: sa.Connection) -> None:
        if tx.dialect.name == "sqlite":
            triggers = "SELECT name FROM sqlite_master WHERE type = 'trigger'"
            for name in tx.exec_driver_sql(triggers).scalars().all():
                tx.exec_driver_sql(f"DROP TRIGGER {name}")
        else:
            for table in ("audit_events", "audit_personal"):
                tx.exec_driver_sql(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        for statement in statements:
            tx.exec_driver_sql(statement)

    await database.alter(edit)


async def test_rows_form_a_chain_that_verifies(database: Database, log: Log) -> None:
    for number in range(20):
        await log.record([an_event(count=number, personal=Personal(ip="192.0.2.1"))])

    assert await faults_of(database) == []


async def test_the_hash_is_the_documented_one() -> None:
    digest = chain.row_hash(
        chain.GENESIS, seq=1, recorded_at=1_795_132_800_000_000, canon='{"event_id":"evt_1"}'
    )

    # printf '\x01' + 32 zero bytes + 8 + 8 bytes big-endian + the text | sha256sum
    assert digest.hex() == "dbb0d2a7ac1544fbad76c06f798c96f574537acae4de3068b4fa887ab61200aa"


@pytest.mark.slow
@pytest.mark.impatient
async def test_a_loop_that_is_busy_with_other_things_uses_up_nobodys_patience(log: Log) -> None:
    recording = asyncio.create_task(log.record([an_event()]))
    asyncio.get_running_loop().call_soon(time.sleep, PATIENCE_SECONDS + 0.1)

    await recording


async def test_many_callers_at_once_get_a_gapless_chain(database: Database, log: Log) -> None:
    await asyncio.gather(*(log.record([an_event(), an_event()]) for _ in range(200)))

    seqs = await database.read(lambda tx: tx.scalars(sa.select(audit_events.c.seq)).all())
    assert sorted(seqs) == list(range(1, 401))
    assert await faults_of(database) == []


MOVE_UP = "UPDATE audit_events SET seq = -seq WHERE seq > 4"
FORGE = """
    INSERT INTO audit_events (seq, recorded_at, canon, row_hash)
    SELECT 5, 0, '{"event_id":"evt_forged"}', row_hash FROM audit_events WHERE seq = 1
"""
MOVE_BACK = "UPDATE audit_events SET seq = 1 - seq WHERE seq < 0"
EDIT_PERSONAL = """
    UPDATE audit_personal SET data = replace(data, '192.0.2.1', '192.0.2.2')
    WHERE event_id = (SELECT event_id FROM audit_events WHERE seq = 4)
"""


def of_row_4(assignment: str) -> str:
    return f"UPDATE audit_events SET {assignment} WHERE seq = 4"


def move(old: int, new: int) -> str:
    return f"UPDATE audit_events SET seq = {new} WHERE seq = {old}"


@pytest.mark.parametrize(
    ("how", "statements", "named"),
    [
        ("edited text", [of_row_4("canon = replace(canon, 'test.act', 'x.y')")], [4]),
        ("edited time", [of_row_4("recorded_at = recorded_at + 1")], [4]),
        (
            "edited hash",
            [of_row_4("row_hash = (SELECT row_hash FROM audit_events WHERE seq = 1)")],
            [4, 5],
        ),
        ("deleted", ["DELETE FROM audit_events WHERE seq = 4"], [4]),
        ("deleted first", ["DELETE FROM audit_events WHERE seq = 1"], [1]),
        ("swapped", [move(4, 100), move(6, 4), move(100, 6)], [4, 5, 6, 7]),
        ("inserted", [MOVE_UP, FORGE, MOVE_BACK], [5, 6, 7, 8, 9, 10, 11]),
        ("personal data", [EDIT_PERSONAL], [4]),
    ],
)
async def test_tampering_is_found_and_the_row_is_named(
    database: SqliteDatabase | PostgresDatabase,
    log: Log,
    how: str,
    statements: list[str],
    named: list[int],
) -> None:
    for number in range(10):
        await log.record([an_event(count=number, personal=Personal(ip="192.0.2.1"))])

    await tamper(database, *statements)

    assert [fault.seq for fault in await faults_of(database)] == named, how


async def test_erasing_personal_data_leaves_the_chain_whole(database: Database, log: Log) -> None:
    await log.record([an_event(personal=Personal(ip="192.0.2.1", email="ada@example.com"))])

    await log.record(
        [an_event()], lambda tx: tx.exec_driver_sql("DELETE FROM audit_personal").rowcount
    )

    assert await faults_of(database) == []


async def test_an_attempt_has_one_outcome(log: Log) -> None:
    attempt_id = new_id("tok")
    await log.record([an_event(outcome="requested", attempt_id=attempt_id)])
    await log.record([an_event(outcome="unknown", attempt_id=attempt_id)])

    with pytest.raises(AlreadyRecorded):
        await log.record([an_event(outcome="issued", attempt_id=attempt_id)])


async def test_a_second_outcome_harms_no_other_row_of_its_batch(
    database: Database, log: Log
) -> None:
    attempt_id = new_id("tok")
    await log.record([an_event(outcome="unknown", attempt_id=attempt_id, personal=Personal())])

    written = await asyncio.gather(
        log.record([an_event(personal=Personal(ip="192.0.2.1"))]),
        log.record([an_event(outcome="issued", attempt_id=attempt_id, personal=Personal())]),
        log.record([an_event(personal=Personal(ip="192.0.2.2"))]),
        return_exceptions=True,
    )

    assert [type(result) for result in written] == [type(None), AlreadyRecorded, type(None)]
    assert len(await rows(database)) == 3
    assert await faults_of(database) == []


async def test_what_is_searched_is_what_is_hashed(database: Database, log: Log) -> None:
    await log.record([an_event(actor="usr_x", profile="coach", reason="why")])

    row = await database.read(lambda tx: tx.execute(audit_events.select()).one())

    assert (row.actor, row.profile, row.reason, row.target) == ("usr_x", "coach", "why", None)


async def test_a_change_and_its_row_are_one(database: Database, log: Log) -> None:
    def change(tx: sa.Connection) -> str:
        tx.exec_driver_sql("INSERT INTO installation VALUES ('test', 0)")
        return "done"

    assert await log.record([an_event()], change) == "done"
    assert await row_counts(database) == (1, 2)


async def test_a_refused_change_takes_its_row_back_and_harms_nobody_else(
    database: Database, log: Log
) -> None:
    def refuse(tx: sa.Connection) -> None:
        tx.exec_driver_sql("INSERT INTO installation VALUES ('test', 0)")
        raise UserDisabled

    outcomes = await asyncio.gather(
        log.record([an_event()]),
        log.record([an_event()], refuse),
        log.record([an_event()]),
        return_exceptions=True,
    )

    assert [type(outcome) for outcome in outcomes] == [type(None), UserDisabled, type(None)]
    assert await row_counts(database) == (2, 1)
    assert await faults_of(database) == []


async def test_a_failing_row_takes_the_change_back(database: Database, log: Log) -> None:
    event = an_event()
    await log.record([event])

    with pytest.raises(AlreadyRecorded):
        await log.record(
            [event],
            lambda tx: tx.exec_driver_sql("INSERT INTO installation VALUES ('test', 0)").rowcount,
        )

    assert await row_counts(database) == (1, 1)


async def test_commands_beside_the_service_share_the_chain(
    database: Database, log: Log, settings: Settings, clock: StandingClock
) -> None:
    other = database_of(settings)
    beside = log_in(other, Scribe("live", clock))

    await asyncio.gather(*(one.record([an_event()]) for _ in range(50) for one in (log, beside)))

    await beside.close()
    await other.close()
    assert len(await database.read(lambda tx: tx.execute(audit_events.select()).all())) == 100
    assert await faults_of(database) == []


async def test_what_cannot_be_hashed_any_more_is_named_too(
    database: SqliteDatabase | PostgresDatabase, log: Log
) -> None:
    for _ in range(5):
        await log.record([an_event(personal=Personal(ip="192.0.2.1"))])

    await tamper(
        database,
        "UPDATE audit_events SET recorded_at = -1 WHERE seq = 2",
        "UPDATE audit_personal SET data = '7'",
    )

    assert sorted({fault.seq for fault in await faults_of(database)}) == [1, 2, 3, 4, 5]


# What befalls the log ---------------------------------------------------------------------------


async def test_when_the_commit_fails_everybody_in_it_is_told_and_nobody_else(
    database: Database, log: Log
) -> None:
    await refuse_commits(database, outcome="issued")
    async with stopped(database) as somebody_waits:
        before = asyncio.create_task(log.record([an_event()]))
        await somebody_waits()
        together = [
            asyncio.create_task(log.record([an_event(outcome=outcome, attempt_id=new_id("tok"))]))
            for outcome in ("requested", "issued", "failed")
        ]
        await asyncio.sleep(0)  # now they wait behind the first, for one commit

    await before
    outcomes = await asyncio.gather(*together, return_exceptions=True)

    assert [type(outcome) for outcome in outcomes] == [AuditUnavailable] * 3
    await log.record([an_event()])
    assert (await row_counts(database))[0] == 2
    assert await faults_of(database) == []


async def test_a_change_whose_commit_fails_is_not_there(database: Database, log: Log) -> None:
    await refuse_commits(database, outcome="issued")

    def change(tx: sa.Connection) -> None:
        tx.exec_driver_sql("INSERT INTO installation VALUES ('test', 0)")

    with pytest.raises(AuditUnavailable):
        await log.record([an_event(outcome="issued", attempt_id=new_id("tok"))], change)

    assert await row_counts(database) == (0, 1)


async def test_a_caller_who_goes_away_leaves_the_row(database: Database, log: Log) -> None:
    left = an_event()
    async with stopped(database) as somebody_waits:
        recording = asyncio.create_task(log.record([left]))
        await somebody_waits()
        recording.cancel()
        with pytest.raises(asyncio.CancelledError):
            await recording

    await log.record([an_event()])  # whose turn comes later

    assert len(await rows(database, event_id=left.event_id)) == 1


async def test_closing_writes_what_waits(database: Database, log: Log) -> None:
    async with stopped(database) as somebody_waits:
        recording = [asyncio.create_task(log.record([an_event()]))]
        await somebody_waits()
        recording += [asyncio.create_task(log.record([an_event()])) for _ in range(BATCH + 1)]
        await asyncio.sleep(0)  # now they wait, too many for one commit
        closing = asyncio.create_task(log.close())
        await asyncio.sleep(0)

    await closing

    await asyncio.gather(*recording)
    assert (await row_counts(database))[0] == BATCH + 2
    assert not log.alive


async def test_closing_waits_for_a_change_under_way(database: Database, log: Log) -> None:
    def change(tx: sa.Connection) -> None:
        tx.exec_driver_sql("INSERT INTO installation VALUES ('test', 0)")

    async with stopped(database) as somebody_waits:
        changing = asyncio.create_task(log.record([an_event()], change))
        await somebody_waits()
        closing = asyncio.create_task(log.close())
        done, _ = await asyncio.wait([closing], timeout=0.1)
        assert not done

    await closing

    await changing
    assert await row_counts(database) == (1, 2)


@on_postgresql
async def test_a_change_whose_connection_is_cut_is_told_that_the_log_is_away(
    database: PostgresDatabase, log: Log
) -> None:
    def cut_off(tx: sa.Connection) -> None:
        tx.exec_driver_sql("INSERT INTO installation VALUES ('test', 0)")
        tx.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")

    with pytest.raises(AuditUnavailable):
        await log.record([an_event()], cut_off)

    await log.record([an_event()])
    assert await row_counts(database) == (1, 1)


@on_postgresql
async def test_a_commit_is_durable_whatever_the_database_defaults_to(
    database: PostgresDatabase,
) -> None:
    careless = await database.connect()
    name = await careless.fetchval("SELECT current_database()")
    await careless.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    await careless.execute(
        f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'"
    )
    await careless.close()

    connection = await database.connect()

    assert await connection.fetchval("SHOW synchronous_commit") == "on"
    assert await connection.fetchval("SHOW transaction_isolation") == "read committed"
    await connection.close()
