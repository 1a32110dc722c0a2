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
        settled_up_to, lost = await self._database.read(lambda tx: self._lost(tx, before))
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
        self._settled_up_to = settled_up_to
        if lost:
            self._logger.warning("attempts_swept", count=len(lost))
        return len(lost)

    def _lost(self, tx: sa.Connection, before: int) -> tuple[int, Sequence[Any]]:
        """Return up to where no attempt is left open, and those that are lost.

        At the start this looks at every attempt there ever was. So it holds two indexes against
        each other, and reads a row only where the second has no outcome. Outcomes are written into
        the statement, not bound: only so do indexes of some of them serve.
        """
        began, ended = audit_events.alias("began"), audit_events.alias("ended")
        newest = tx.scalar(sa.select(sa.func.max(audit_events.c.seq))) or 0
        outcomes: list[sa.ColumnElement[str]] = [
            sa.literal_column(f"'{outcome}'") for outcome in OUTCOMES
        ]
        has_outcome = sa.exists().where(
            ended.c.attempt_id == began.c.attempt_id, ended.c.outcome.in_(outcomes)
        )
        is_open = (
            began.c.outcome == sa.literal_column("'requested'"),
            began.c.seq > self._settled_up_to,
            ~has_outcome,
        )
        seqs = tx.scalars(sa.select(began.c.seq).where(*is_open).order_by(began.c.seq)).all()
        c = audit_events.c
        lost: list[Any] = []
        columns = (c.attempt_id, c.actor, c.credential, c.request_id, c.profile)
        wanted = sa.select(c.seq, c.recorded_at, *columns, c.model_asked, c.model_used)
        for start in range(0, len(seqs), AT_ONCE):
            some = wanted.where(c.seq.in_(seqs[start : start + AT_ONCE])).order_by(c.seq)
            for row in tx.execute(some):
                # Times need not rise with seq, for clocks are set back.
                if row.recorded_at > before or len(lost) == AT_ONCE:
                    newest = min(newest, row.seq - 1)
                else:
                    lost.append(row)
        return newest, lost
