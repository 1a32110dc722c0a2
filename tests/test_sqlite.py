"""What only SQLite is asked: one file, one writer, triggers that REPLACE might slip past."""

import asyncio
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from app.audit.events import Personal
from app.audit.log import Log
from app.base.errors import AuditUnavailable
from app.base.ids import new_id
from app.base.sqlite import SqliteDatabase
from app.settings import Settings
from tests.conftest import on_sqlite
from tests.log_rows import rows
from tests.test_log import an_event, faults_of

pytestmark = on_sqlite

ROOT = Path(__file__).parents[1]

COLUMNS = "INTO audit_events (seq, recorded_at, canon, row_hash)"
OTHER_ID = "json_set(canon, '$.event_id', 'evt_other')"
REFUSED = {
    "an update": "UPDATE audit_events SET canon = '{}'",
    "a delete": "DELETE FROM audit_events",
    "a gap": f"INSERT {COLUMNS} VALUES (9, 0, '{{}}', x'')",
    "a seq again": f"INSERT {COLUMNS} VALUES (1, 0, '{{}}', x'')",
    "a replacement by seq": f"INSERT OR REPLACE {COLUMNS} VALUES (2, 0, '{{}}', x'')",
    "a replacement by event": f"INSERT OR REPLACE {COLUMNS}"
    " SELECT 3, 0, canon, row_hash FROM audit_events WHERE seq = 1",
    "a replacement by intent": f"INSERT OR REPLACE {COLUMNS}"
    f" SELECT 3, 0, {OTHER_ID}, row_hash FROM audit_events WHERE seq = 1",
    "a replacement by outcome": f"INSERT OR REPLACE {COLUMNS}"
    f" SELECT 3, 0, {OTHER_ID}, row_hash FROM audit_events WHERE seq = 2",
    "an upsert": f"INSERT {COLUMNS} VALUES (1, 0, '{{}}', x'')"
    " ON CONFLICT (seq) DO UPDATE SET canon = excluded.canon",
    "an update of personal data": "UPDATE audit_personal SET data = '{}'",
    "a replacement of personal data": "INSERT OR REPLACE INTO audit_personal"
    " (event_id, salt, data) SELECT event_id, x'', '{}' FROM audit_personal",
}


@pytest.mark.parametrize("statement", REFUSED.values(), ids=REFUSED)
async def test_the_database_refuses_to_alter_the_log(
    database: SqliteDatabase, log: Log, statement: str
) -> None:
    attempt_id = new_id("tok")
    await log.record([an_event(outcome="requested", attempt_id=attempt_id, personal=Personal())])
    await log.record([an_event(outcome="issued", attempt_id=attempt_id)])
    connection = sqlite3.connect(database.path)  # a plain one, without our pragmas

    with pytest.raises(sqlite3.IntegrityError, match=r"append-only|only the next|already|once"):
        connection.execute(statement)

    connection.close()
    assert await faults_of(database) == []


async def test_a_locked_file_is_answered_in_time_and_the_log_comes_back(
    database: SqliteDatabase, log: Log
) -> None:
    await log.record([an_event()])
    intruder = sqlite3.connect(database.path, isolation_level=None)
    intruder.execute("BEGIN IMMEDIATE")

    with pytest.raises(AuditUnavailable):
        async with asyncio.timeout(2):
            await log.record([an_event()])

    intruder.execute("ROLLBACK")
    intruder.close()
    async with asyncio.timeout(5):
        await log.record([an_event()])
    assert await faults_of(database) == []


async def test_a_lock_file_that_cannot_be_opened_is_a_log_that_is_away(
    database: SqliteDatabase, log: Log
) -> None:
    await log.record([an_event()])
    lock = database.path.with_name(database.path.name + ".lock")
    lock.unlink()
    lock.mkdir()

    with pytest.raises(AuditUnavailable):
        await log.record([an_event()])
    await log.close()
    await database.close()


PRAGMAS = {
    "journal_mode": "wal",
    "synchronous": 2,  # FULL
    "foreign_keys": 1,
    "recursive_triggers": 1,
}


async def test_what_is_committed_survives_a_power_cut(database: SqliteDatabase) -> None:
    def pragmas(tx: sa.Connection) -> dict[str, object]:
        return {name: tx.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in PRAGMAS}

    writer = database.connect()
    of_writer = {name: writer.execute(f"PRAGMA {name}").fetchone()[0] for name in PRAGMAS}
    writer.close()

    assert of_writer == PRAGMAS
    assert await database.read(pragmas) == PRAGMAS


async def test_a_reader_writes_nothing(database: SqliteDatabase) -> None:
    def write(tx: sa.Connection) -> None:
        with pytest.raises(sa.exc.OperationalError, match="readonly"):
            tx.exec_driver_sql("DELETE FROM installation")

    await database.read(write)


@pytest.mark.slow
@pytest.mark.impatient
async def test_what_its_caller_gave_up_is_left_out(database: SqliteDatabase, log: Log) -> None:
    begun, may_go_on = threading.Event(), threading.Event()

    def take_long(_: sa.Connection) -> None:
        begun.set()
        may_go_on.wait(10)

    slow, given_up = an_event(), an_event()
    recording = asyncio.create_task(log.record([slow], take_long))
    await asyncio.to_thread(begun.wait, 10)

    with pytest.raises(AuditUnavailable):
        await log.record([given_up])
    with pytest.raises(AuditUnavailable):
        await recording
    may_go_on.set()
    await log.record([an_event()])

    assert await rows(database, event_id=given_up.event_id) == []
    assert len(await rows(database, event_id=slow.event_id)) == 1  # its turn had come


# The lock file, between processes ---------------------------------------------------------------

ENTER = """
import sys, time
from itertools import count
from pathlib import Path
from app.base.sqlite import SqliteDatabase

database = SqliteDatabase(Path(sys.argv[1]))
"""
ENTER_ONCE = f"""{ENTER}
try:
    with database.writing(timeout_seconds=float(sys.argv[2])):
        print("inside")
except TimeoutError as error:
    print(error)
"""
STAY = f"""{ENTER}
with database.writing(timeout_seconds=5):
    print("inside", flush=True)
    sys.stdin.read()
"""
COME_BACK_AT_ONCE = f"""{ENTER}
with open(sys.argv[2], "ab", buffering=0) as turns:
    for turn in count():
        with database.writing(timeout_seconds=5):
            turns.write(b".")
            if turn == 0:
                print("inside", flush=True)
            time.sleep(0.005)
"""


def says(script: str, *arguments: object) -> str:
    """Run *script* to its end in another process and return what it prints."""
    ran = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return ran.stdout.strip()


@contextmanager
def inside(script: str, *arguments: object) -> Iterator[None]:
    """Run *script* in another process, from when it is inside the lock until the end."""
    with subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "inside\n"
            yield
        finally:
            process.kill()


@pytest.mark.outside
def test_of_two_processes_one_is_inside_the_lock(settings: Settings) -> None:
    database = SqliteDatabase(settings.database_path)

    with database.writing(timeout_seconds=1):
        refused = says(ENTER_ONCE, database.path, 0.1)
    let_in = says(ENTER_ONCE, database.path, 0.1)

    assert (refused, let_in) == ("service.db is locked by another process", "inside")


@pytest.mark.outside
def test_a_process_that_dies_inside_the_lock_gives_it_back(settings: Settings) -> None:
    database = SqliteDatabase(settings.database_path)

    with (
        inside(STAY, database.path),
        pytest.raises(TimeoutError),
        database.writing(timeout_seconds=0.1),
    ):
        pass

    with database.writing(timeout_seconds=1):
        pass


@pytest.mark.outside
def test_whoever_waits_beside_a_busy_writer_is_next(settings: Settings, tmp_path: Path) -> None:
    database = SqliteDatabase(settings.database_path)
    turns = tmp_path / "turns"
    overtaken = 0

    with inside(COME_BACK_AT_ONCE, database.path, turns):
        for _ in range(20):
            before = turns.stat().st_size
            while turns.stat().st_size == before:  # until the other is inside once more
                time.sleep(0.001)
            before = turns.stat().st_size
            with database.writing(timeout_seconds=10):
                overtaken += turns.stat().st_size - before

    # Once at the most for each turn of ours; whoever is not next waits for dozens.
    assert overtaken <= 40
