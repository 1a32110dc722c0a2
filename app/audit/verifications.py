"""Verifying while the service runs: one walk at a time, beside everything else."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import sqlalchemy as sa
import structlog

from app.audit.checkpoint_file import CheckpointFile
from app.audit.checkpoints import PublicKey
from app.audit.events import Event
from app.audit.log import Log
from app.audit.matches import Filters
from app.audit.search import newest
from app.audit.verification import Verification
from app.base.clock import Clock
from app.base.db import Database
from app.base.errors import AuditUnavailable, Conflict

_STARTED, _FINISHED = "verification.start", "verification.finish"

_TO_THE_END = Filters(action=_FINISHED, outcome="succeeded")

PAUSE_SECONDS = 0.0005
"""Between a few rows each. The interpreter runs one thread at a time, and mints are to go first."""

LONGEST = timedelta(hours=1)
"""A walk without an end for so long was ended together with its process."""


@dataclass(slots=True)
class Run:
    """One walk that somebody asked for."""

    walk: Verification
    started_at: datetime
    event_ids: list[str]  # of the rows that tell of its start, and its end
    finished_at: datetime | None = None
    broken_off: bool = False  # the database or the file could not be read

    @property
    def ok(self) -> bool | None:
        """Whether everything is as it was written; None until that is known."""
        if self.finished_at is None or self.broken_off:
            return None
        return self.walk.findings.count == 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a walk ended, by what the log says of it."""

    at: datetime
    faults: int
    event_id: str  # of the row

    @property
    def ok(self) -> bool:
        """Whether everything was as it was written."""
        return self.faults == 0


class Verifications:
    """Starts walks and remembers the last one of this process; each leaves two rows.

    Args:
        keys: Whose checkpoints are believed.
        file: Where they stand outside of the database.
    """

    def __init__(
        self,
        *,
        keys: Sequence[PublicKey],
        file: CheckpointFile,
        database: Database,
        log: Log,
        clock: Clock,
    ) -> None:
        self._keys = keys
        self._file = file
        self._database = database
        self._log = log
        self._clock = clock
        self._busy = False
        self._task: asyncio.Task[None] | None = None
        self._logger = structlog.get_logger(__name__)
        self.current: Run | None = None
        """The walk that was asked for last, under way or finished; None before the first."""

    async def start(self, by: Mapping[str, Any]) -> Run:
        """Begin a walk.

        Args:
            by: Who asks, as members of `Event`.

        Raises:
            Conflict: One is under way.
            AuditUnavailable: It cannot be written down.
        """
        if self._busy:
            raise Conflict("A verification is under way. Wait until it is finished.")
        self._busy = True  # before anything is awaited
        try:
            event = Event(action=_STARTED, outcome="succeeded", **by)
            await self._log.record([event])
        except BaseException:
            self._busy = False
            raise
        walk = Verification(
            self._database, keys=self._keys, file=self._file, pause_seconds=PAUSE_SECONDS
        )
        run = self.current = Run(walk, self._clock(), [event.event_id])
        self._task = asyncio.create_task(self._go(run, by), name="verification")
        return run

    async def _go(self, run: Run, by: Mapping[str, Any]) -> None:
        """Walk, and write down how it ended."""
        try:
            await run.walk.run()
        except (AuditUnavailable, OSError) as error:
            run.broken_off = True
            self._logger.error("verification_broken_off", error=type(error).__name__)  # noqa: TRY400 - it is no bug
        except Exception:
            run.broken_off = True
            self._logger.exception("verification_failed")
        finally:
            run.finished_at = self._clock()
            self._busy = False
        for fault in run.walk.findings.faults:
            self._logger.error("audit_log_tampered_with", seq=fault.seq, what=fault.what)
        if run.broken_off:
            event = Event(action=_FINISHED, outcome="failed", reason="broken_off", **by)
        else:
            event = Event(
                action=_FINISHED,
                outcome="succeeded",
                reason=None if run.ok else "faults_found",
                count=run.walk.findings.count,
                **by,
            )
        run.event_ids.append(event.event_id)
        with suppress(AuditUnavailable):  # whoever noticed has said so
            await self._log.record([event])

    async def last(self) -> Verdict | None:
        """Return how the last walk that got to its end did, of whatever process; None for none.

        Raises:
            AuditUnavailable: The database is away.
        """
        found = await self._database.read(partial(newest, filters=_TO_THE_END))
        if not found:
            return None
        [row] = found
        return Verdict(row.recorded_at, row.members["count"], row.event_id)

    async def elsewhere(self) -> datetime | None:
        """Return when another process began the walk that it is taking; None when none is.

        Raises:
            AuditUnavailable: The database is away.
        """

        def find(tx: sa.Connection) -> datetime | None:
            started = newest(tx, Filters(action=_STARTED))
            finished = newest(tx, Filters(action=_FINISHED))
            if not started or (finished and finished[0].seq > started[0].seq):
                return None
            ours = self.current is not None and started[0].event_id in self.current.event_ids
            at = started[0].recorded_at
            return None if ours or self._clock() - at > LONGEST else at

        return await self._database.read(find)

    async def close(self) -> None:
        """End the walk that is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
