"""What only SQLite is asked: one file, one writer, triggers that REPLACE might slip past."""

import asyncio
import sqlite3

import pytest

from app.audit.events import Personal
from app.audit.log import Log
from app.base.errors import AuditUnavailable
from app.base.ids import new_id
from app.base.sqlite import SqliteDatabase
from tests.conftest import on_sqlite
from tests.test_log import an_event, faults_of

pytestmark = on_sqlite

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
