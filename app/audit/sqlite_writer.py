"""Writes the log into SQLite: one thread per process, one transaction for all that waits.

Each item runs inside its own savepoint, so that one that is refused harms no other. The commit is
``synchronous=FULL``, and only then are those who wait released.
"""

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Sequence
from contextlib import suppress

import sqlalchemy as sa
import structlog
from typing_extensions import override

from app.audit import chain
from app.audit.events import Event
from app.audit.log import BATCH, AlreadyRecorded, Item, Scribe, Writer
from app.base.errors import AuditUnavailable
from app.base.metrics import Metrics
from app.base.sqlite import SqliteDatabase

LOCK_SECONDS = 0.8
"""Longest wait for another process that writes; with `BUSY_SECONDS` less than callers wait."""


class SqliteWriter(Writer):
    """The thread that writes.

    Args:
        database: Migrated.
        scribe: Puts events into words.
        metrics: Where the appends are timed.
    """

    def __init__(self, database: SqliteDatabase, scribe: Scribe, metrics: Metrics) -> None:
        self._database = database
        self._scribe = scribe
        self._metrics = metrics
        self._waiting: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._logger = structlog.get_logger(__name__)
        self._connection: tuple[sa.Connection, sqlite3.Connection] | None = None
        self._thread = threading.Thread(target=self._write_for_ever, name="audit-log-writer")
        self._thread.start()

    @override
    def put(self, item: Item) -> None:
        self._waiting.put(item)

    @property
    @override
    def alive(self) -> bool:
        return self._thread.is_alive()

    @override
    async def close(self) -> None:
        self._waiting.put(None)
        await asyncio.to_thread(self._thread.join)

    def _write_for_ever(self) -> None:
        open_for_more = True
        while open_for_more:
            taken = [self._waiting.get()]
            while len(taken) < BATCH:
                try:
                    taken.append(self._waiting.get_nowait())
                except queue.Empty:
                    break
            open_for_more = None not in taken
            batch = [item for item in taken if item is not None and not item.abandoned]
            if batch:
                with self._metrics.log_append.time():
                    self._write(batch)
                with suppress(RuntimeError):  # the loop is gone: nobody waits any more
                    self._loop.call_soon_threadsafe(_release, batch)
        with suppress(TimeoutError), self._database.writing(timeout_seconds=LOCK_SECONDS):
            self._disconnect()

    def _write(self, batch: Sequence[Item]) -> None:
        """Append the whole *batch* in one transaction; on return every item has its result."""
        try:
            with self._database.writing(timeout_seconds=LOCK_SECONDS):
                try:
                    self._write_together(batch)
                except BaseException:
                    # Still under the lock: nobody may meet a transaction that is half done. The
                    # next batch starts with a fresh connection.
                    self._disconnect()
                    raise
        except Exception as error:  # noqa: BLE001 - every waiting caller has to be told
            # One line a batch, no traceback: a log that is down is down for every batch.
            self._logger.error(  # noqa: TRY400 - see above
                "audit_log_unavailable", error=type(error).__name__, reason=str(error)
            )
            for item in batch:
                item.fault = AuditUnavailable(retry_after_seconds=2)

    def _write_together(self, batch: Sequence[Item]) -> None:
        core, driver = self._connected()
        driver.execute("BEGIN IMMEDIATE")
        seq, previous = driver.execute(
            "SELECT seq, row_hash FROM audit_events ORDER BY seq DESC LIMIT 1"
        ).fetchone() or (0, chain.GENESIS)
        for item in batch:
            if not item.abandoned:
                seq, previous = self._write_item(core, driver, item, seq, previous)
        driver.execute("COMMIT")

    def _write_item(
        self,
        core: sa.Connection,
        driver: sqlite3.Connection,
        item: Item,
        seq: int,
        previous: bytes,
    ) -> tuple[int, bytes]:
        """Run one item inside its savepoint; return the head of the chain after it."""
        new_seq, head = seq, previous
        driver.execute("SAVEPOINT item")
        try:
            if item.guard is not None:
                found = driver.execute(item.guard.lookup.sqlite, (item.guard.key,)).fetchone()
                item.guard.judge(found)
            if item.change is not None:
                item.result = item.change(core)
            for event in item.events:
                new_seq += 1
                head = self._append(driver, event, new_seq, head)
        except Exception as error:
            if not driver.in_transaction:
                raise  # SQLite gave the whole transaction up, e.g. on a full disk
            driver.execute("ROLLBACK TO item")
            driver.execute("RELEASE item")
            if self._database.is_away(error):
                raise
            item.fault = _translated(error)
            return seq, previous
        driver.execute("RELEASE item")
        return new_seq, head

    def _append(self, driver: sqlite3.Connection, event: Event, seq: int, previous: bytes) -> bytes:
        written, recorded_at = self._scribe.write_out(event)
        if written.personal is not None:
            driver.execute(
                "INSERT INTO audit_personal (event_id, salt, data) VALUES (?, ?, ?)",
                (written.event_id, written.salt, written.personal),
            )
        digest = chain.row_hash(previous, seq=seq, recorded_at=recorded_at, canon=written.canon)
        driver.execute(
            "INSERT INTO audit_events (seq, recorded_at, canon, row_hash) VALUES (?, ?, ?, ?)",
            (seq, recorded_at, written.canon, digest),
        )
        return digest

    def _connected(self) -> tuple[sa.Connection, sqlite3.Connection]:
        """Return the one connection, as SQLAlchemy has it and as the bare driver."""
        if self._connection is None:
            driver = self._database.connect()
            engine = sa.create_engine(
                "sqlite+pysqlite://",
                creator=lambda: driver,
                poolclass=sa.StaticPool,
                hide_parameters=True,
                isolation_level="AUTOCOMMIT",  # we say BEGIN and COMMIT, in one place
            )
            self._connection = engine.connect(), driver
        return self._connection

    def _disconnect(self) -> None:
        """Close the connection, which rolls back what it has begun. Under the lock alone."""
        if self._connection is None:
            return
        (core, driver), self._connection = self._connection, None
        with suppress(Exception):
            core.close()
        with suppress(Exception):
            driver.close()


def _release(batch: Sequence[Item]) -> None:
    for item in batch:
        item.release()


def _translated(error: Exception) -> Exception:
    """Name the violations that callers know; what a change raised passes unaltered."""
    if isinstance(error, sqlite3.IntegrityError) and "has this event already" in str(error):
        return AlreadyRecorded(str(error))
    return error
