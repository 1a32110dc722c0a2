"""Gives an outcome to attempts whose process died, or whose outcome could not be written."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
import structlog

from app.audit.events import Event, audit_events
from app.audit.log import AlreadyRecorded, Log
from app.base.clock import Clock, to_unix_microseconds
from app.base.db import Database
from app.base.errors import AuditUnavailable
from app.minting.mint import ACTION

PATIENCE = timedelta(seconds=80)
"""When an attempt counts as lost, so that with the time between two sweeps every attempt has its
outcome within 90 s. The longest mint takes 8 s upstream and two writes."""

AT_ONCE = 1_000
"""Attempts settled in one sweep; the rest waits for the next."""

OUTCOMES = ("issued", "failed", "unknown")


class Sweep:
    """Appends ``unknown`` to attempts that stay without an outcome.

    A mint that is slower than the sweep finds its outcome taken and drops its secret, so that no
    client ever holds one that the log does not call issued.
    """

    def __init__(self, *, database: Database, log: Log, clock: Clock) -> None:
        self._database = database
        self._log = log
        self._clock = clock
        self._settled_up_to = 0  # every attempt that began at or before this seq has its outcome
        self._logger = structlog.get_logger(__name__)

    async def run(self, *, patience: timedelta = PATIENCE) -> int:
        """Settle what is older than *patience*; return how many attempts that were."""
        before = to_unix_microseconds(self._clock() - patience)
        newest, lost = await self._database.read(lambda tx: self._lost(tx, before))
        for row in lost:
            event = Event(
                action=ACTION,
                outcome="unknown",
                reason="swept",
                attempt_id=row.attempt_id,
                actor=row.actor,
                credential=row.credential,
                request_id=row.request_id,
                profile=row.profile,
                model_asked=row.model_asked,
                model_used=row.model_used,
            )
            try:
                await self._log.record([event])
            except AlreadyRecorded:
                continue  # it ended while we looked
            except AuditUnavailable:
                return 0  # the next sweep sees it again
        if len(lost) < AT_ONCE:
            self._settled_up_to = newest
        if lost:
            self._logger.warning("attempts_swept", count=len(lost))
        return len(lost)

    def _lost(self, tx: sa.Connection, before: int) -> tuple[int, Sequence[Any]]:
        began, ended = audit_events.alias("began"), audit_events.alias("ended")
        requested = (
            (began.c.outcome == "requested")
            & (began.c.seq > self._settled_up_to)
            & (began.c.recorded_at <= before)
        )
        newest: int | None = tx.scalar(sa.select(sa.func.max(began.c.seq)).where(requested))
        if newest is None:
            return self._settled_up_to, []
        # Times need not rise with seq, for clocks are set back: the mark stays before the first
        # attempt that is still too young.
        young = sa.select(sa.func.min(began.c.seq)).where(
            began.c.outcome == "requested",
            began.c.seq > self._settled_up_to,
            began.c.recorded_at > before,
        )
        newest = min(newest, (tx.scalar(young) or newest + 1) - 1)
        # Written into the statement, not bound: only so does the partial index serve it.
        outcomes: sa.BindParameter[str] = sa.bindparam(
            "outcomes", OUTCOMES, expanding=True, literal_execute=True
        )
        has_outcome = sa.exists().where(
            ended.c.attempt_id == began.c.attempt_id, ended.c.outcome.in_(outcomes)
        )
        lost = sa.select(
            began.c.attempt_id,
            began.c.actor,
            began.c.credential,
            began.c.request_id,
            began.c.profile,
            began.c.model_asked,
            began.c.model_used,
        )
        lost = lost.where(requested, ~has_outcome).order_by(began.c.seq).limit(AT_ONCE)
        return newest, tx.execute(lost).all()
