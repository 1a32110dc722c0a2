"""The one door for writes: a change and the rows that tell of it, in one commit.

How that is done is a matter of the database: see `sqlite_writer` and `postgres_writer`. Both take
whatever waits, write it at once and then release all who wait, so that at 50 callers one sync to
disk serves 50 rows.
"""

import abc
import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, overload

import sqlalchemy as sa

from app.audit.events import Event, Written, write_out
from app.base.clock import Clock, to_unix_microseconds
from app.base.errors import AuditUnavailable
from app.base.metrics import Metrics

T = TypeVar("T")

PATIENCE_SECONDS = 1.5
"""How long a caller waits for its row; a log that is down is answered within 2 s."""

BATCH = 256
"""Items written at once at the most; keeps one transaction in the low milliseconds."""

Change = Callable[[sa.Connection], T]
"""Alters our tables; what it raises takes it back, and reaches the caller of `Log.record`."""


class AlreadyRecorded(Exception):
    """The attempt has its outcome already."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """Finds rows by key, many at once and past SQLAlchemy: the hot path asks for them.

    Args:
        columns: Names with their tables; the key comes first, and is unique. Text and integers.
        source: What stands behind FROM.
    """

    columns: tuple[str, ...]
    source: str


@dataclass(frozen=True, slots=True)
class Guard:
    """What must hold in the database when the rows are written.

    *judge* gets the row found under *key*, the key first, or None; what it raises keeps the rows
    from being written, and reaches the caller of `Log.record`.
    """

    lookup: Lookup
    key: str
    judge: Callable[[Sequence[Any] | None], None]

    def look_up(self, tx: sa.Connection) -> Sequence[Any] | None:
        """Return the row to be judged, in a read of its own."""
        columns = ", ".join(self.lookup.columns)
        wanted = f"SELECT {columns} FROM {self.lookup.source} WHERE {self.lookup.columns[0]} = :key"  # noqa: S608 - constants of ours
        return tx.execute(sa.text(wanted), {"key": self.key}).first()


@dataclass(slots=True, eq=False)
class Item:
    """One call of `Log.record` on its way through the writer."""

    events: Sequence[Event]
    change: Change[Any] | None
    guard: Guard | None
    done: asyncio.Future[Any]
    abandoned: bool = False
    result: Any = None
    fault: BaseException | None = None
    patience: asyncio.TimerHandle | None = None

    def wait(self) -> None:
        """Let the caller's patience begin. Runs in the event loop."""
        if not self.done.done():
            loop = self.done.get_loop()
            self.patience = loop.call_later(PATIENCE_SECONDS, self.give_up)

    def release(self) -> None:
        """Tell the caller how it went. Runs in the event loop."""
        if self.done.done():
            return
        if self.fault is None:
            self.done.set_result(self.result)
        else:
            self.done.set_exception(self.fault)

    def give_up(self) -> None:
        """Tell the caller that it took too long; what the writer has not begun, it leaves out."""
        if not self.done.done():
            self.abandoned = True
            self.done.set_exception(AuditUnavailable(retry_after_seconds=2))


def allowed(items: Iterable[Item], found: Mapping[str, Sequence[Any]]) -> list[Item]:
    """Return the *items* whose guards let them pass; the others get their refusal.

    Args:
        items: Without changes.
        found: The rows that the guards ask for, by key.
    """
    passed = []
    for item in items:
        try:
            if item.guard is not None:
                item.guard.judge(found.get(item.guard.key))
        except Exception as refusal:  # noqa: BLE001 - it is the caller's
            item.fault = refusal
        else:
            passed.append(item)
    return passed


class Writer(abc.ABC):
    """Writes what waits, in order."""

    @abc.abstractmethod
    def put(self, item: Item) -> None:
        """Let *item* wait for its turn."""

    @property
    @abc.abstractmethod
    def alive(self) -> bool:
        """Whether anything that waits will ever be written."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Write what waits, then stop."""


class Log:
    """The append-only log.

    Args:
        writer: Made for the database at hand.
        metrics: Where those who wait are counted.
    """

    def __init__(self, writer: Writer, metrics: Metrics) -> None:
        self._writer = writer
        self._metrics = metrics

    @property
    def alive(self) -> bool:
        """Whether the writer runs."""
        return self._writer.alive

    @overload
    async def record(self, events: Sequence[Event], *, guard: Guard | None = None) -> None: ...

    @overload
    async def record(self, events: Sequence[Event], change: Change[T]) -> T: ...

    async def record(
        self,
        events: Sequence[Event],
        change: Change[Any] | None = None,
        *,
        guard: Guard | None = None,
    ) -> Any:
        """Commit *change* and append *events*, both or neither, and return what *change* returned.

        The write goes on when whoever waits for it is cancelled.

        Raises:
            AuditUnavailable: Not known to be written within `PATIENCE_SECONDS`.
            AlreadyRecorded: The attempt already has its outcome row.
            Exception: Whatever *change* or *guard* raised; nothing was written.
        """
        loop = asyncio.get_running_loop()
        item = Item(events, change, guard, loop.create_future())
        self._writer.put(item)
        loop.call_soon(item.wait)  # not at once: what else this turn of the loop does is no waiting
        try:
            with self._metrics.waiting("log"):
                return await item.done
        finally:
            if item.patience is not None:
                item.patience.cancel()

    async def close(self) -> None:
        """Write what waits, then stop the writer."""
        await self._writer.close()


@dataclass(frozen=True, slots=True)
class Scribe:
    """Turns events into rows: what both writers need to know of the installation.

    Args:
        environment: ``live`` or ``sandbox``; every row says it.
        clock: Gives ``recorded_at``.
    """

    environment: str
    clock: Clock

    def write_out(self, event: Event) -> tuple[Written, int]:
        """Return *event* as it is stored, and when that is, in Unix µs."""
        written = write_out(event, environment=self.environment)
        return written, to_unix_microseconds(self.clock())
