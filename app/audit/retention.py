"""How long things are kept: personal data for so many days, rows for so many more."""

from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import NamedTuple

import sqlalchemy as sa
import structlog

from app.audit.events import Event, audit_events
from app.audit.log import Log
from app.audit.matches import Filters
from app.audit.personal_data import delete_personal
from app.audit.pruning import BeingPruned, CannotPrune, Pruning
from app.audit.search import newest
from app.audit.segments import CannotExport
from app.audit.stored import last_before
from app.base.clock import Clock, to_unix_microseconds
from app.base.db import Database, reason_of
from app.base.errors import AuditUnavailable

EVERY = timedelta(days=1)

ROWS_AT_ONCE = 2_000
"""Rows whose personal data go in one transaction."""

BY = "service"
"""The actor of what is done without being asked."""

_ACTION = "personal_data.expire"


class _Taken(Exception):
    """Another instance has done it meanwhile."""


class Terms(NamedTuple):
    """How many days what is kept; None for ever."""

    personal_days: int | None
    days: int | None
    archive: Path  # folder for the rows that are taken out


class Retention:
    """Lets things go when their time is over, once a day, one instance at a time.

    Args:
        terms: What the operator has set.
    """

    def __init__(
        self, terms: Terms, *, pruning: Pruning, database: Database, log: Log, clock: Clock
    ) -> None:
        self.terms = terms
        self._pruning = pruning
        self._database = database
        self._log = log
        self._clock = clock
        self._next: datetime | None = None
        self._logger = structlog.get_logger(__name__)

    async def run(self) -> None:
        """Do what is due, unless that was done within the last day.

        Raises:
            AuditUnavailable: The database is away; the next round tries again.
        """
        now = self._clock()
        if self._next is not None and self._next - EVERY <= now < self._next:
            return  # a clock that was ahead, and was put right, does not put it off
        self._next = now + EVERY
        try:
            if self.terms.personal_days is not None:
                await self._expire_personal(now - timedelta(days=self.terms.personal_days))
            if self.terms.days is not None:
                await self._prune(now - timedelta(days=self.terms.days))
        except BeingPruned:
            pass  # another instance does it, or an operator
        except (CannotPrune, CannotExport, OSError, sa.exc.ProgrammingError) as error:
            reason = reason_of(error)  # on PostgreSQL mostly that the role may not
            self._logger.error("audit_retention_failed", reason=reason)  # noqa: TRY400 - it is no bug
        except AuditUnavailable:
            self._next = now  # the next round tries again
            raise

    async def _expire_personal(self, before: datetime) -> None:
        now = to_unix_microseconds(self._clock())
        wanted = partial(last_before, at=to_unix_microseconds(before), now=now)
        last = await self._database.read(wanted)
        while (done := await self._database.read(_expired_up_to)) < last:
            up_to = min(done + ROWS_AT_ONCE, last)
            event = Event(action=_ACTION, outcome="succeeded", actor=BY, boundary_seq=up_to)
            try:
                await self._log.record([event], partial(_expire, after=done, up_to=up_to))
            except _Taken:
                return
        await self._database.scrub()

    async def _prune(self, before: datetime) -> None:
        up_to = await self._pruning.last_before(to_unix_microseconds(before))
        segments = await self._pruning.run(up_to, self.terms.archive, by=BY)
        if segments:
            self._logger.info("audit_log_pruned", up_to=segments[-1].last)


def _expired_up_to(tx: sa.Connection) -> int:
    """Return the row up to which personal data are gone, by what the log says, or rows are."""
    last, first = (
        newest(tx, Filters(action=_ACTION)),
        tx.scalar(sa.select(sa.func.min(audit_events.c.seq))),
    )
    return max(last[0].members["boundary_seq"] if last else 0, (first or 1) - 1)


def _expire(tx: sa.Connection, *, after: int, up_to: int) -> None:
    if tx.dialect.name == "postgresql":
        tx.exec_driver_sql("SELECT pg_advisory_xact_lock(7245, 2)")
    if _expired_up_to(tx) != after:
        raise _Taken
    c = audit_events.c
    ids = tx.scalars(sa.select(c.event_id).where(c.seq > after, c.seq <= up_to)).all()
    delete_personal(tx, event_ids=ids)
