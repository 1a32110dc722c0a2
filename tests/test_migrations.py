import sqlite3
from collections.abc import AsyncIterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from app.audit import chain
from app.audit.events import Event, Personal, write_out
from app.audit.matches import Filters
from app.audit.search import Search
from app.audit.stored import stored_rows
from app.base.clock import to_unix_microseconds
from app.base.db import Database, DatabaseFault, NotMigrated, alembic_config, metadata, revisions
from app.base.postgres import PostgresDatabase
from app.base.sqlite import SqliteDatabase
from tests.conftest import START

NOW = to_unix_microseconds(START)
TRIGGERS = {
    "sqlite": {
        "audit_events_no_update",
        "audit_events_no_delete",
        "audit_events_in_sequence",
        "audit_events_no_replace",
        "audit_personal_no_update",
        "audit_personal_no_replace",
    },
    "postgresql": {
        "audit_events_no_update",
        "audit_events_no_delete",
        "audit_events_no_truncate",
        "audit_events_in_sequence",
        "audit_personal_no_update",
        "audit_personal_no_truncate",
    },
}

Either = SqliteDatabase | PostgresDatabase


def test_the_files_are_named_by_the_order_in_which_they_run() -> None:
    walk = ScriptDirectory.from_config(alembic_config()).walk_revisions()

    assert revisions() == [script.revision for script in walk][::-1]


@pytest.fixture
async def empty(
    request: pytest.FixtureRequest, backend: str, tmp_path: Path
) -> AsyncIterator[Either]:
    """A database in which nothing has been made yet."""
    database: Either
    if backend == "sqlite":
        database = SqliteDatabase(tmp_path / "service.db")
    else:
        database = PostgresDatabase(request.getfixturevalue("postgres").new_database())
    yield database
    await database.close()


async def triggers(database: Database) -> set[str]:
    def find(tx: sa.Connection) -> set[str]:
        if tx.dialect.name == "sqlite":
            found = "SELECT name FROM sqlite_master WHERE type = 'trigger'"
        else:
            # Enabled ones alone: a trigger that is switched off protects nothing.
            found = "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal AND tgenabled = 'O'"
        return set(tx.exec_driver_sql(found).scalars())

    return await database.read(find)


@pytest.mark.parametrize("revision", revisions())
async def test_every_trigger_stands_after_every_migration(
    empty: Either, backend: str, revision: str
) -> None:
    await empty.migrate(environment="live", now=NOW, revision=revision)

    assert await triggers(empty) == TRIGGERS[backend]


async def test_the_tables_in_code_are_those_of_the_head(database: Either) -> None:
    differences = await database.read(
        lambda tx: compare_metadata(MigrationContext.configure(tx), metadata)
    )

    assert differences == []


NOT_FILLED = {
    "alembic_version",
    "installation",
    "audit_events",
    "audit_personal",
    "audit_rolled_up",
    "model_look",
}
"""Tables that have their rows from the migration itself, or from the log."""


def tables(tx: sa.Connection) -> list[sa.Table]:
    """Return all tables as they are now, each after those that it refers to."""
    found = sa.MetaData()
    found.reflect(tx)
    return found.sorted_tables


def fill(tx: sa.Connection, into: list[sa.Table], *, number: int) -> None:
    """Put a row into each table, whatever its columns; those of one number refer to each other."""
    for table in into:
        if table.name not in NOT_FILLED:
            tx.execute(table.insert(), {c.name: value_for(c, number) for c in table.columns})


def value_for(column: sa.Column[Any], number: int) -> object:
    if isinstance(column.type, sa.String):
        return str(number)
    if isinstance(column.type, sa.Integer):
        return number
    assert isinstance(column.type, sa.LargeBinary), f"what may stand in {column}?"
    return bytes([number]) * 32


Contents = dict[str, list[dict[str, Any]]]


def contents(tx: sa.Connection) -> Contents:
    """Return every row of every table."""
    return {
        table.name: [dict(row) for row in tx.execute(table.select()).mappings()]
        for table in tables(tx)
        if table.name != "alembic_version"
    }


def lost(before: Contents, after: Contents) -> Contents:
    """Return the rows that are no longer there, or have other values than before."""
    return {
        name: missing
        for name, rows in before.items()
        if (missing := [r for r in rows if not any(r.items() <= a.items() for a in after[name])])
    }


def append_as_the_first_release_did(tx: sa.Connection) -> None:
    last = tx.execute(sa.text("SELECT seq, row_hash FROM audit_events ORDER BY seq DESC")).first()
    seq, previous = last or (0, chain.GENESIS)
    event = Event(action="a.b", outcome="done", personal=Personal(ip="192.0.2.1"))
    written = write_out(event, environment="live")
    row_hash = chain.row_hash(previous, seq=seq + 1, recorded_at=NOW, canon=written.canon)
    row = {"seq": seq + 1, "at": NOW, "canon": written.canon, "row_hash": row_hash}
    columns = "audit_events (seq, recorded_at, canon, row_hash)"
    tx.execute(sa.text(f"INSERT INTO {columns} VALUES (:seq, :at, :canon, :row_hash)"), row)
    personal = {"event_id": written.event_id, "salt": written.salt, "data": written.personal}
    columns = "audit_personal (event_id, salt, data)"
    tx.execute(sa.text(f"INSERT INTO {columns} VALUES (:event_id, :salt, :data)"), personal)


@pytest.mark.slow
async def test_going_back_and_forth_keeps_what_the_older_tables_know(
    empty: Either,
) -> None:
    known: dict[str, Contents] = {}
    for number, revision in enumerate(revisions(), start=1):
        await empty.migrate(environment="live", now=NOW, revision=revision)
        for before in known.values():
            assert lost(before, await empty.read(contents)) == {}
        await empty.alter(partial(fill, into=await empty.read(tables), number=number))
        await empty.alter(append_as_the_first_release_did)
        known[revision] = await empty.read(contents)
    rows = await empty.read(lambda tx: list(stored_rows(tx)))

    for revision in revisions()[-2::-1]:
        await empty.downgrade(revision=revision)
        assert lost(known[revision], await empty.read(contents)) == {}
        assert await empty.read(lambda tx: list(stored_rows(tx))) == rows
    await empty.migrate(environment="live", now=NOW)

    assert lost(known[revisions()[0]], await empty.read(contents)) == {}
    assert await empty.read(lambda tx: list(stored_rows(tx))) == rows
    found = await Search(empty, cursor_key=b"").page(Filters(address="192.0.2.1"), limit=100)
    assert [entry.seq for entry in found.entries] == [row.seq for row in rows[::-1]]
    assert len(rows) == len(revisions())
    assert list(chain.faults(rows)) == []
    await empty.downgrade(revision="base")
    left = await empty.read(lambda tx: sa.inspect(tx).get_table_names())
    assert left == ["alembic_version"]


@pytest.mark.parametrize(("previous", "revision"), list(pairwise(revisions())))
async def test_the_previous_release_may_go_on_writing_and_reading_after_a_migration(
    empty: Either, previous: str, revision: str
) -> None:
    await empty.migrate(environment="live", now=NOW, revision=previous)
    as_it_knows_them = await empty.read(tables)

    await empty.migrate(environment="live", now=NOW, revision=revision)
    await empty.alter(partial(fill, into=as_it_knows_them, number=1))

    def read(tx: sa.Connection) -> dict[str, int]:
        return {table.name: len(tx.execute(table.select()).all()) for table in as_it_knows_them}

    found = await empty.read(read)
    assert {n: c for n, c in found.items() if n not in NOT_FILLED and c != 1} == {}


async def test_a_failed_migration_leaves_the_database_as_it_was(empty: Either) -> None:
    if isinstance(empty, SqliteDatabase):
        empty.path.touch()
    await empty.alter(lambda tx: tx.execute(sa.text("CREATE TABLE sign_ins (a int)")).close())

    with pytest.raises(DatabaseFault, match=r"cannot be migrated: .*sign_ins"):
        await empty.migrate(environment="live", now=NOW)

    left = await empty.read(lambda tx: sa.inspect(tx).get_table_names())
    assert left == ["sign_ins"]


async def test_an_unmigrated_database_is_said_to_be_unmigrated(empty: Either) -> None:
    if isinstance(empty, SqliteDatabase):
        empty.path.touch()

    with pytest.raises(NotMigrated, match="run: realtime-tokens migrate"):
        await empty.check(environment="live")


async def test_a_database_remembers_its_environment(database: Either) -> None:
    with pytest.raises(DatabaseFault, match="belongs to the live environment, this is sandbox"):
        await database.check(environment="sandbox")

    await database.migrate(environment="sandbox", now=NOW)  # again, and it keeps its mind
    await database.check(environment="live")


# Files ----------------------------------------------------------------------------------------


async def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path / "none.db")

    with pytest.raises(DatabaseFault, match="does not exist yet; run: realtime-tokens migrate"):
        await database.check(environment="live")

    assert not database.path.exists()
    await database.close()


async def test_a_file_that_is_no_database_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "service.db").write_text("this is a letter, not a database" * 100)
    database = SqliteDatabase(tmp_path / "service.db")

    with pytest.raises(DatabaseFault, match="cannot be read"):
        await database.check(environment="live")

    await database.close()


async def test_one_process_serves_a_file(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "service.db").close()
    first, second = (SqliteDatabase(tmp_path / "service.db") for _ in range(2))
    assert first.claim_for_serving()

    with pytest.raises(DatabaseFault, match="another service already runs"):
        second.claim_for_serving()

    await first.close()
    await second.close()
