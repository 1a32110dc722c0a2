"""Writes the log into SQLite: one thread per process, one transaction for all that waits.

Rows go in together; an item that brings a change of other tables has a savepoint of its own, and so
has every item when the rows cannot all be taken, so that one that is refused harms no other. The
commit is ``synchronous=FULL``, and only then are those who wait released.
"""

import asyncio
import json
import queue
import sqlite3
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import sqlalchemy as sa
import structlog
from typing_extensions import override

from app.audit import chain
from app.audit.continuity import Continuity, Known
from app.audit.events import Event
from app.audit.log import BATCH, AlreadyRecorded, Item, Lookup, Scribe, Writer, allowed
from app.base.errors import AuditUnavailable
from app.base.metrics import Metrics
from app.base.sqlite import SqliteDatabase

ROWS_AT_ONCE = 32
"""Rows of one statement; few enough that the connection keeps them all prepared."""

LOCK_SECONDS = 0.8
"""Longest wait for another process that writes; with `BUSY_SECONDS` less than callers wait."""


class SqliteWriter(Writer):
    """The thread that writes.

    Args:
        database: Migrated.
        scribe: Puts events into words.
        metrics: Where the appends are timed.
        continuity: What has to be in the file.
    """

    def __init__(
        self,
        database: SqliteDatabase,
        scribe: Scribe,
        metrics: Metrics,
        continuity: Continuity,
    ) -> None:
        self._database = database
        self._scribe = scribe
        self._metrics = metrics
        self._continuity = continuity
        self._waiting: list[Item] = []
        self._writing = False
        self._batches: queue.SimpleQueue[Sequence[Item] | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._logger = structlog.get_logger(__name__)
        self._connection: tuple[sa.Connection, sqlite3.Connection] | None = None
        self._identity: object = None
        self._written_at = 0  # Unix µs, of the row that was put into words last
        self._thread = threading.Thread(target=self._write_for_ever, name="audit-log-writer")
        self._thread.start()

    # In the event loop --------------------------------------------------------------------------

    @override
    def put(self, item: Item) -> None:
        if not self._waiting and not self._writing:
            # Not at once: whatever else this turn of the loop brings goes into the same batch. The
            # thread could not do much meanwhile, for the loop holds Python's lock.
            self._loop.call_soon(self._hand_over)
        self._waiting.append(item)

    def _hand_over(self) -> None:
        batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
        if batch:
            self._writing = True
            self._batches.put(batch)

    def _written(self, batch: Sequence[Item]) -> None:
        self._writing = False
        for item in batch:
            item.release()
        if self._waiting:
            self._loop.call_soon(self._hand_over)

    @property
    @override
    def alive(self) -> bool:
        return self._thread.is_alive()

    @override
    async def close(self) -> None:
        if self._waiting:
            self._batches.put(self._waiting)
            self._waiting = []
        self._batches.put(None)
        await asyncio.to_thread(self._thread.join)

    # In the thread ------------------------------------------------------------------------------

    def _write_for_ever(self) -> None:
        while (batch := self._batches.get()) is not None:
            with self._metrics.log_append.time():
                self._write(batch)
            with suppress(RuntimeError):  # the loop is gone: nobody waits any more
                self._loop.call_soon_threadsafe(self._written, batch)
        with suppress(OSError), self._database.writing(timeout_seconds=LOCK_SECONDS):
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
        before = head = self._head(driver)
        plain = []
        for item in batch:
            if item.abandoned:
                continue
            if item.change is None:
                plain.append(item)
            else:
                head = self._write_alone(core, driver, item, head)
        plain = _judge(driver, plain)
        driver.execute("SAVEPOINT everything")
        try:
            head = self._append(driver, [event for item in plain for event in item.events], head)
        except sqlite3.IntegrityError:
            # One of them is there already. That is rare, so only now is it worth finding out which.
            driver.execute("ROLLBACK TO everything")
            for item in plain:
                head = self._write_alone(core, driver, item, head)
        driver.execute("RELEASE everything")
        driver.execute("COMMIT")
        if head != before:
            self._continuity.known = Known(head, at=self._written_at)

    def _head(self, driver: sqlite3.Connection) -> chain.Head:
        """Return the last row, having seen that nothing is missing before it.

        Raises:
            RolledBack: The file is not the one that was written to, or somebody set it back.
        """
        row = driver.execute(
            "SELECT seq, row_hash FROM audit_events ORDER BY seq DESC LIMIT 1"
        ).fetchone()
        head = chain.Head(*row) if row else chain.BEGINNING
        known = self._continuity.known.head
        if head != known or self._continuity.fault is not None:
            wanted = "SELECT row_hash FROM audit_events WHERE seq = ?"
            row = driver.execute(wanted, (known.seq,)).fetchone()
            if not self._continuity.confirm(known, row[0] if row else None):
                self._continuity.settle(driver.execute(self._continuity.explanations))
        return head

    def _write_alone(
        self, core: sa.Connection, driver: sqlite3.Connection, item: Item, head: chain.Head
    ) -> chain.Head:
        """Run one item inside its own savepoint; return the head of the chain after it."""
        driver.execute("SAVEPOINT item")
        try:
            if item.change is not None:
                item.result = item.change(core)
            head = self._append(driver, item.events, head)
        except Exception as error:
            if not driver.in_transaction:
                raise  # SQLite gave the whole transaction up, e.g. on a full disk
            driver.execute("ROLLBACK TO item")
            driver.execute("RELEASE item")
            if self._database.is_away(error):
                raise
            item.fault = _translated(error)
        else:
            driver.execute("RELEASE item")
        return head

    def _append(
        self, driver: sqlite3.Connection, events: Sequence[Event], head: chain.Head
    ) -> chain.Head:
        """Append a row for each of the *events*; return the head of the chain after them."""
        seq, previous = head
        rows, personal = [], []
        for event in events:
            written, recorded_at = self._scribe.write_out(event)
            seq += 1
            previous = chain.row_hash(
                previous, seq=seq, recorded_at=recorded_at, canon=written.canon
            )
            self._written_at = recorded_at
            rows.append((seq, recorded_at, written.canon, previous))
            if written.personal is not None:
                personal.append((written.event_id, written.salt, written.personal, seq))
        _insert(driver, "audit_personal (event_id, salt, data, seq)", personal)
        _insert(driver, "audit_events (seq, recorded_at, canon, row_hash)", rows)
        return chain.Head(seq, previous)

    def _connected(self) -> tuple[sa.Connection, sqlite3.Connection]:
        """Return the one connection, as SQLAlchemy has it and as the bare driver."""
        if self._database.identity != self._identity:
            self._disconnect()  # another file has taken the place of the one we have open
        if self._connection is None:
            self._identity = self._database.identity
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


def _judge(driver: sqlite3.Connection, items: Sequence[Item]) -> list[Item]:
    """Return the *items* whose guards let them pass; the others get their refusal."""
    guards = [item.guard for item in items if item.guard is not None]
    found: dict[str, Sequence[Any]] = {}
    for lookup in {guard.lookup for guard in guards}:
        keys = {guard.key for guard in guards if guard.lookup is lookup}
        (answer,) = driver.execute(_statement(lookup), (json.dumps(list(keys)),)).fetchone()
        found |= {row[0]: row for row in json.loads(answer)}
    return allowed(items, found)


@cache
def _statement(lookup: Lookup) -> str:
    """Return what finds the rows of many keys, both as JSON: that is one step, see `_insert`."""
    columns = ", ".join(lookup.columns)
    return (
        f"SELECT json_group_array(json_array({columns})) FROM {lookup.source}"  # noqa: S608 - constants of ours
        f" WHERE {lookup.columns[0]} IN (SELECT value FROM json_each(?))"
    )


def _insert(driver: sqlite3.Connection, into: str, rows: Sequence[Sequence[Any]]) -> None:
    """Insert *rows*, many with one statement.

    At each step of a statement the thread lets go of Python's lock, and under load it has to wait
    for the event loop to let go of it in turn. So a batch should have few steps.
    """
    for start in range(0, len(rows), ROWS_AT_ONCE):
        some = rows[start : start + ROWS_AT_ONCE]
        places = ", ".join([f"({', '.join('?' * len(some[0]))})"] * len(some))
        values = [value for row in some for value in row]
        driver.execute(f"INSERT INTO {into} VALUES {places}", values)  # noqa: S608 - placeholders and constants


def _translated(error: Exception) -> Exception:
    """Name the violations that callers know; what a change raised passes unaltered."""
    if isinstance(error, sqlite3.IntegrityError) and "has this event already" in str(error):
        return AlreadyRecorded(str(error))
    return error
