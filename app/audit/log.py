"""The one door for writes: a change and the rows that tell of it, in one commit.

The writer is one thread per process. It takes whatever waits, runs it in one transaction with one
savepoint per item, commits with ``synchronous=FULL``, and only then releases all who wait: at 50
callers one sync to disk serves 50 rows.
"""

import asyncio
import json
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import Any, Generic, TypeVar, overload

import sqlalchemy as sa
import structlog

from app.audit import chain
from app.base.clock import Clock, to_unix_microseconds
from app.base.db import Database, metadata
from app.base.errors import AuditUnavailable
from app.base.ids import new_id

T = TypeVar("T")

PATIENCE_SECONDS = 1.5
"""How long a caller waits for its row; a log that is down is answered within 2 s."""

BATCH = 256
"""Items per commit at the most; keeps one transaction in the low milliseconds."""

_GENERATED = (
    "event_id",
    "attempt_id",
    "action",
    "outcome",
    "reason",
    "actor",
    "target",
    "credential",
    "request_id",
    "profile",
    "model_asked",
    "model_used",
    "token_fingerprint",
)


def _from_canon(name: str) -> sa.Column[str]:
    # Computed from the hashed text, so that what is searched cannot drift from what is proved.
    return sa.Column(
        name, sa.Text, sa.Computed(f"json_extract(canon, '$.{name}')", persisted=False)
    )


audit_events = sa.Table(
    "audit_events",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("recorded_at", sa.BigInteger, nullable=False),  # Unix µs
    sa.Column("canon", sa.Text, nullable=False),  # compact JSON, hashed as it stands
    sa.Column("row_hash", sa.LargeBinary(32), nullable=False),
    *map(_from_canon, _GENERATED),
    sa.Index("uq_audit_events_event_id", "event_id", unique=True),
    sa.Index(
        "uq_audit_events_requested",
        "attempt_id",
        unique=True,
        sqlite_where=sa.text("outcome = 'requested'"),
    ),
    sa.Index(
        "uq_audit_events_outcome",  # every attempt has exactly one
        "attempt_id",
        unique=True,
        sqlite_where=sa.text("outcome IN ('issued', 'failed', 'unknown')"),
    ),
    sa.Index("ix_audit_events_actor_seq", "actor", "seq"),
    sa.Index("ix_audit_events_action_seq", "action", "seq"),
    sa.Index("ix_audit_events_outcome_seq", "outcome", "seq"),
)

audit_personal = sa.Table(
    "audit_personal",
    metadata,
    sa.Column("event_id", sa.String(40), primary_key=True),  # evt_…
    sa.Column("salt", sa.LargeBinary(16), nullable=False),
    sa.Column("data", sa.Text, nullable=False),  # compact JSON, as it was committed to
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Personal:
    """What identifies a person; kept beside the chain, so that it can be erased."""

    ip: str | None = None
    user_agent: str | None = None
    email: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One row to be. Members left at ``None`` are not written.

    ``actor`` is who did it (a user's id, or ``operator`` for the command line), ``target`` whom it
    was done to when that is somebody else, ``credential`` the id of what was shown (a ``jti``).
    """

    action: str  # noun.verb
    outcome: str  # requested, then issued, failed or unknown; denied; succeeded
    reason: str | None = None
    attempt_id: str | None = None
    actor: str | None = None
    target: str | None = None
    credential: str | None = None
    request_id: str | None = None
    role: str | None = None
    profile: str | None = None
    model_asked: str | None = None
    model_used: str | None = None
    transcription_model: str | None = None
    language: str | None = None
    ttl_seconds: int | None = None
    expires_at: int | None = None
    config_digest: str | None = None
    upstream_status: int | None = None
    upstream_code: str | None = None
    upstream_request_id: str | None = None
    upstream_session_id: str | None = None
    upstream_ms: int | None = None
    token_fingerprint: str | None = None
    count: int | None = None
    personal: Personal | None = None
    event_id: str = field(default_factory=lambda: new_id("evt"))


_PLAIN = tuple(f.name for f in fields(Event) if f.name not in {"personal", "event_id"})


class AlreadyRecorded(Exception):
    """The attempt has its outcome already, or the event its row."""


@dataclass(frozen=True, slots=True)
class Transaction:
    """The writer's open transaction, as a change sees it: SQLAlchemy Core, or the bare driver."""

    core: sa.Connection
    driver: sqlite3.Connection


Change = Callable[[Transaction], T]
"""Alters our tables; what it raises takes it back, and reaches the caller of `Log.record`."""


@dataclass(slots=True)
class _Item(Generic[T]):
    change: Change[T] | None
    events: Sequence[Event]
    done: asyncio.Future[T | None]
    abandoned: bool = False
    result: T | None = None
    fault: BaseException | None = None


class Log:
    """The append-only log and the thread that writes it.

    Args:
        database: Migrated.
        environment: ``live`` or ``sandbox``; every row says it.
        clock: Gives ``recorded_at``.
    """

    def __init__(self, database: Database, *, environment: str, clock: Clock) -> None:
        self._database = database
        self._environment = environment
        self._clock = clock
        self._waiting: queue.SimpleQueue[_Item[Any] | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._logger = structlog.get_logger(__name__)
        self._tx: Transaction | None = None
        self._thread = threading.Thread(target=self._write_for_ever, name="audit-log-writer")
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the writer runs."""
        return self._thread.is_alive()

    @overload
    async def record(self, events: Sequence[Event]) -> None: ...

    @overload
    async def record(self, events: Sequence[Event], change: Change[T]) -> T: ...

    async def record(self, events: Sequence[Event], change: Change[Any] | None = None) -> Any:
        """Commit *change* and append *events*, both or neither, and return what *change* returned.

        Raises:
            AuditUnavailable: Not written within `PATIENCE_SECONDS`.
            AlreadyRecorded: The attempt already has its outcome row.
            Exception: Whatever *change* raised; nothing was written.
        """
        item: _Item[Any] = _Item(change, events, self._loop.create_future())
        self._waiting.put(item)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                return await asyncio.shield(item.done)
        except TimeoutError:
            item.abandoned = True  # what the writer has not begun, it leaves out
            raise AuditUnavailable(retry_after_seconds=2) from None

    async def close(self) -> None:
        """Write what waits, then stop the writer."""
        self._waiting.put(None)
        await asyncio.to_thread(self._thread.join)

    # The writer thread ----------------------------------------------------------------------

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
                self._write(batch)
                with suppress(RuntimeError):  # the loop is gone: nobody waits any more
                    self._loop.call_soon_threadsafe(_release, batch)
        self._disconnect()

    def _write(self, batch: Sequence[_Item[Any]]) -> None:
        """Append the whole *batch* in one transaction; on return every item has its result."""
        try:
            with self._database.writing(timeout_seconds=1.0):
                tx = self._connected()
                tx.driver.execute("BEGIN IMMEDIATE")
                seq, previous = tx.driver.execute(
                    "SELECT seq, row_hash FROM audit_events ORDER BY seq DESC LIMIT 1"
                ).fetchone() or (0, chain.GENESIS)
                for item in batch:
                    seq, previous = self._write_item(tx, item, seq, previous)
                tx.driver.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - every waiting caller has to be told
            # One line a batch, no traceback: a log that is down is down for every batch.
            self._logger.error(  # noqa: TRY400 - see above
                "audit_log_unavailable", error=type(error).__name__, reason=str(error)
            )
            for item in batch:
                item.fault = AuditUnavailable(retry_after_seconds=2)
            self._disconnect()  # the next batch starts with a fresh connection

    def _write_item(
        self, tx: Transaction, item: _Item[Any], seq: int, previous: bytes
    ) -> tuple[int, bytes]:
        """Run one item inside its savepoint; return the head of the chain after it."""
        driver = tx.driver
        first = seq
        head = previous
        driver.execute("SAVEPOINT item")
        try:
            if item.change is not None:
                item.result = item.change(tx)
            for event in item.events:
                seq += 1
                head = self._append(driver, event, seq, head)
        except Exception as error:
            if not driver.in_transaction:
                raise  # SQLite gave the whole transaction up, e.g. on a full disk
            driver.execute("ROLLBACK TO item")
            driver.execute("RELEASE item")
            if isinstance(error, sqlite3.OperationalError | sa.exc.OperationalError):
                raise
            item.fault = _translated(error)
            return first, previous
        driver.execute("RELEASE item")
        return seq, head

    def _append(self, driver: sqlite3.Connection, event: Event, seq: int, previous: bytes) -> bytes:
        members: dict[str, Any] = {"event_id": event.event_id, "environment": self._environment}
        for name in _PLAIN:
            value = getattr(event, name)
            if value is not None:
                members[name] = value
        if event.personal is not None:
            salt = os.urandom(16)
            personal = _compact(
                {
                    "ip": event.personal.ip,
                    "user_agent": event.personal.user_agent,
                    "email": event.personal.email,
                }
            )
            members["personal"] = chain.commitment(salt, personal)
            driver.execute(
                "INSERT INTO audit_personal (event_id, salt, data) VALUES (?, ?, ?)",
                (event.event_id, salt, personal),
            )
        canon = _compact(members)
        recorded_at = to_unix_microseconds(self._clock())
        digest = chain.row_hash(previous, seq=seq, recorded_at=recorded_at, canon=canon)
        driver.execute(
            "INSERT INTO audit_events (seq, recorded_at, canon, row_hash) VALUES (?, ?, ?, ?)",
            (seq, recorded_at, canon, digest),
        )
        return digest

    def _connected(self) -> Transaction:
        if self._tx is None:
            driver = self._database.connect()
            engine = sa.create_engine(
                "sqlite+pysqlite://",
                creator=lambda: driver,
                poolclass=sa.StaticPool,
                isolation_level="AUTOCOMMIT",  # we say BEGIN and COMMIT, in one place
            )
            self._tx = Transaction(engine.connect(), driver)
        return self._tx

    def _disconnect(self) -> None:
        if self._tx is None:
            return
        tx, self._tx = self._tx, None
        with suppress(Exception), self._database.writing(timeout_seconds=1.0):
            tx.core.close()
            tx.core.engine.dispose()


def _release(batch: Sequence[_Item[Any]]) -> None:
    for item in batch:
        if item.done.done():
            continue
        if item.fault is None:
            item.done.set_result(item.result)
        else:
            item.done.set_exception(item.fault)
            if item.abandoned:
                item.done.exception()  # nobody listens any more; that is no news


def _translated(error: Exception) -> Exception:
    """Name the violations that callers know; what a change raised passes unaltered."""
    if isinstance(error, sqlite3.IntegrityError) and "has this event already" in str(error):
        return AlreadyRecorded(str(error))
    return error


_compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
