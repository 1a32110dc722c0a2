import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from app.audit import chain
from app.audit.log import Event, Log, Personal
from app.audit.search import stored_rows
from app.base.clock import to_unix_microseconds
from app.base.db import Database, DatabaseFault, NotMigrated, alembic_config, metadata
from tests.clock import StandingClock
from tests.conftest import START

NOW = to_unix_microseconds(START)
TRIGGERS = {
    "audit_events_no_update",
    "audit_events_no_delete",
    "audit_events_in_sequence",
    "audit_events_no_replace",
    "audit_personal_no_update",
    "audit_personal_no_replace",
}


def revisions() -> list[str]:
    """Return every revision, oldest first."""
    walk = ScriptDirectory.from_config(alembic_config()).walk_revisions()
    return [script.revision for script in walk][::-1]


def triggers(path: Path) -> set[str]:
    connection = sqlite3.connect(path)
    found = connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall()
    connection.close()
    return {name for (name,) in found}


@pytest.mark.parametrize("revision", revisions())
def test_every_trigger_stands_after_every_migration(tmp_path: Path, revision: str) -> None:
    database = Database(tmp_path / "service.db")

    database.migrate(environment="live", now=NOW, revision=revision)

    assert triggers(database.path) == TRIGGERS
    database.close()


def test_the_tables_in_code_are_those_of_the_head(database: Database) -> None:
    engine = sa.create_engine("sqlite+pysqlite://", creator=database.connect)
    with engine.connect() as tx:
        differences = compare_metadata(MigrationContext.configure(tx), metadata)
    engine.dispose()

    assert differences == []


async def test_going_back_and_forth_keeps_what_the_older_tables_know(
    tmp_path: Path, clock: StandingClock
) -> None:
    database = Database(tmp_path / "service.db")
    for revision in revisions():
        database.migrate(environment="live", now=NOW, revision=revision)
        log = Log(database, environment="live", clock=clock)
        await log.record([Event(action="a.b", outcome="done", personal=Personal(ip="192.0.2.1"))])
        await log.close()
    rows = await database.read(lambda tx: list(stored_rows(tx)))

    for revision in revisions()[-2::-1]:
        database.downgrade(revision=revision)
        assert await database.read(lambda tx: list(stored_rows(tx))) == rows
    database.migrate(environment="live", now=NOW)

    assert await database.read(lambda tx: list(stored_rows(tx))) == rows
    assert list(chain.faults(rows)) == []
    database.downgrade(revision="base")
    left = await database.read(lambda tx: sa.inspect(tx).get_table_names())
    assert left == ["alembic_version"]
    database.close()


def test_a_failed_migration_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "service.db"
    database = Database(path)
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE sign_ins (in_the_way)")
    connection.commit()

    with pytest.raises(sa.exc.OperationalError, match="sign_ins"):
        database.migrate(environment="live", now=NOW)

    tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    assert tables == [("sign_ins",)]
    connection.close()
    database.close()


async def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    database = Database(tmp_path / "none.db")

    with pytest.raises(DatabaseFault, match="does not exist yet; run: realtime-tokens migrate"):
        await database.check(environment="live")

    assert not database.path.exists()
    database.close()


async def test_an_unmigrated_file_is_said_to_be_unmigrated(tmp_path: Path) -> None:
    (tmp_path / "service.db").touch()
    database = Database(tmp_path / "service.db")

    with pytest.raises(NotMigrated, match="run: realtime-tokens migrate"):
        await database.check(environment="live")

    database.close()


async def test_a_file_that_is_no_database_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "service.db").write_text("this is a letter, not a database" * 100)
    database = Database(tmp_path / "service.db")

    with pytest.raises(DatabaseFault, match="cannot be read"):
        await database.check(environment="live")

    database.close()


async def test_a_database_remembers_its_environment(database: Database) -> None:
    with pytest.raises(DatabaseFault, match="belongs to the live environment, this is sandbox"):
        await database.check(environment="sandbox")

    database.migrate(environment="sandbox", now=NOW)  # migrating again does not change its mind
    await database.check(environment="live")


def test_one_process_serves_a_file(database: Database) -> None:
    second = Database(database.path)
    database.claim_for_serving()

    with pytest.raises(DatabaseFault, match="another service already runs"):
        second.claim_for_serving()

    second.close()
