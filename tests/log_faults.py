"""What may befall the log: somebody stands in the way, or the commit itself fails."""

import fcntl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import sqlalchemy as sa

from app.base.db import Database
from app.base.postgres import PostgresDatabase
from app.base.sqlite import SqliteDatabase
from tests.waiting import until

if TYPE_CHECKING:
    import asyncpg


@asynccontextmanager
async def stopped(database: Database) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Stand in the way of every write, as another process may.

    Yields:
        A function that returns once somebody waits to write.
    """
    if isinstance(database, SqliteDatabase):
        with database.writing(timeout_seconds=5):
            yield partial(until, partial(_the_turn_is_taken, database))
        return
    assert isinstance(database, PostgresDatabase)
    connection = await database.connect()
    await connection.execute("SELECT pg_advisory_lock(7245, 1)")  # the one of audit_append
    try:
        yield partial(until, partial(_the_chain_is_waited_for, connection))
    finally:
        await connection.close()


async def _the_turn_is_taken(database: SqliteDatabase) -> bool:
    with database._turn_path.open("r+b") as turn:
        try:
            fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


async def _the_chain_is_waited_for(connection: "asyncpg.Connection[asyncpg.Record]") -> bool:
    waiting: bool = await connection.fetchval("""
        SELECT EXISTS (
            SELECT FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database
            WHERE datname = current_database() AND locktype = 'advisory' AND NOT granted
        )
    """)
    return waiting


async def refuse_commits(database: Database, *, outcome: str) -> None:
    """Let each transaction that appends a row of this *outcome* fail at its COMMIT, not before."""
    statements = {
        "sqlite": (
            """
            CREATE TABLE orphans (
                id INTEGER PRIMARY KEY,
                parent INTEGER REFERENCES orphans (id) DEFERRABLE INITIALLY DEFERRED
            )
            """,
            f"""
            CREATE TRIGGER leave_an_orphan AFTER INSERT ON audit_events
            WHEN NEW.outcome = '{outcome}'
            BEGIN INSERT INTO orphans (parent) VALUES (0); END
            """,
        ),
        "postgresql": (
            """
            CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql
            AS $$ BEGIN RAISE EXCEPTION 'refused'; END $$
            """,
            f"""
            CREATE CONSTRAINT TRIGGER refuse_at_commit AFTER INSERT ON audit_events
            DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW WHEN (NEW.outcome = '{outcome}') EXECUTE FUNCTION refuse()
            """,
        ),
    }

    def make(tx: sa.Connection) -> None:
        for statement in statements[tx.dialect.name]:
            tx.exec_driver_sql(statement)

    await database.alter(make)
