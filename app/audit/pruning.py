"""Taking old rows out of the log on purpose, into files that prove themselves.

A segment is some thousand rows: one file, one transaction, one row that tells of it. What stays
behind of it in the database is a signed mark with its last row, from which the chain goes on.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import sqlalchemy as sa

from app.audit import chain, checkpoints
from app.audit.checkpoints import Checkpoint, Signer, audit_checkpoints
from app.audit.events import Event, audit_events, audit_personal
from app.audit.log import Log
from app.audit.segments import Exported, Exporter, FileVerification, new_file
from app.audit.stored import last_before
from app.base.clock import Clock, to_unix_microseconds
from app.base.db import Database

SEGMENT_ROWS = 2_000
"""Rows that are taken out in one transaction; writers wait for it."""

YOUNGEST_SECONDS = 24 * 60 * 60
"""Younger rows stay: attempts have their outcomes by then, and processes know younger rows."""


class CannotPrune(Exception):
    """Nothing was taken out; the message says why."""


class BeingPruned(CannotPrune):
    """Another process is at it."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows that were taken out."""

    first: int
    last: int
    path: Path


class Pruning:
    """Takes rows out of the log, oldest first.

    Args:
        database: Whose log. On PostgreSQL the role has to own its tables.
        log: Where it is written down.
        signer: Signs the files, and the mark from which the log goes on.
        clock: Tells how old rows are.
        segment_rows: Rows of a segment at the most.
    """

    def __init__(
        self,
        *,
        database: Database,
        log: Log,
        signer: Signer,
        clock: Clock,
        segment_rows: int = SEGMENT_ROWS,
    ) -> None:
        self._database = database
        self._log = log
        self._signer = signer
        self._clock = clock
        self._segment_rows = segment_rows
        self._exporter = Exporter(database, signer=signer, clock=clock)

    async def last_before(self, at: int) -> int:
        """Return the last row that was recorded before *at*, in Unix µs.

        Raises:
            CannotPrune: So young a row stays.
        """
        now = to_unix_microseconds(self._clock())
        if at > now - YOUNGEST_SECONDS * 1_000_000:
            raise CannotPrune("rows of the last 24 hours stay in the log")
        return await self._database.read(partial(last_before, at=at, now=now))

    async def run(
        self,
        up_to: int,
        folder: Path,
        *,
        by: str,
        progress: Callable[[Segment], None] = lambda _: None,
    ) -> list[Segment]:
        """Take out the rows up to *up_to*, segment by segment, and return what was.

        Args:
            up_to: Seq of the last row to go. The last row of all stays in any case.
            folder: Where the files go; made when it is not there.
            by: Who wants it.
            progress: Called for each segment.

        Raises:
            CannotPrune: A row is younger than a day, or the log is not as it was written.
            BeingPruned: Somebody else is at it.
            AuditUnavailable: The database is away. What was pruned before stays pruned.
            OSError: A file cannot be written.
        """
        now = to_unix_microseconds(self._clock())
        youngest = now - YOUNGEST_SECONDS * 1_000_000
        if up_to > await self._database.read(partial(last_before, at=youngest, now=now)):
            raise CannotPrune("rows of the last 24 hours stay in the log")
        # However old the last row is, it stays: the next one goes on from it.
        up_to = min(up_to, (await self._database.read(checkpoints.head_of)).seq - 1)
        await asyncio.to_thread(partial(folder.mkdir, parents=True, exist_ok=True))
        segments: list[Segment] = []
        async with self._database.claim_for_pruning() as alone:
            if not alone:
                raise BeingPruned("another process is taking rows out just now")
            while (segment := await self._prune_one(up_to, folder, by=by)) is not None:
                segments.append(segment)
                progress(segment)
        if segments:
            await self._database.scrub()  # personal data went with the rows
        return segments

    async def _prune_one(self, up_to: int, folder: Path, *, by: str) -> Segment | None:
        start = await self._database.read(self._start)
        last = min(up_to, start.seq + self._segment_rows)
        if last <= start.seq:
            return None
        path = folder / f"audit-{start.seq + 1:012}-{last:012}.jsonl"
        end = await self._export(path, start, last)
        for _ in ("vacuum", "analyze"):  # which may wait behind it
            await self._database.read(_await_vacuum)
        change = partial(self._take_out, start=start, end=end)
        event = Event(
            action="audit_log.prune",
            outcome="succeeded",
            actor=by,
            count=end.seq - start.seq,
            boundary_seq=end.seq,
            boundary_hash=end.row_hash.hex(),
        )
        await self._log.record([event], change)
        return Segment(start.seq + 1, end.seq, path)

    def _start(self, tx: sa.Connection) -> chain.Head:
        """Return the row behind which the log begins.

        Raises:
            CannotPrune: Not our ``SECRET_KEY`` has signed which one that is.
        """
        pruned = checkpoints.newest(tx, self._signer.public_key, "pruned")
        start = pruned.head if pruned else chain.BEGINNING
        if (marked := checkpoints.pruned_up_to(tx)) > start.seq:
            raise CannotPrune(
                f"that rows up to {marked} were pruned is not signed with this SECRET_KEY; if it"
                " was another one then, run first: realtime-tokens audit accept-rollback"
                ' --reason "new SECRET_KEY"'
            )
        return start

    async def _export(self, path: Path, start: chain.Head, last: int) -> chain.Head:
        """Write the rows down, see that the file proves what it has to, and return the last."""
        draft = path.with_name(f"{path.name}.new")
        draft.unlink(missing_ok=True)  # of a run that was ended
        try:
            with new_file(draft) as file:
                exported = await self._exporter.write(file, first=start.seq + 1, last=last)
            await asyncio.to_thread(self._keep, draft, path, exported)
        finally:
            draft.unlink(missing_ok=True)
        return exported.end

    def _keep(self, draft: Path, path: Path, exported: Exported) -> None:
        """Give the *draft* its name, if it proves what it has to."""
        verified = self._verified(draft)
        for fault in [*exported.findings.faults, *verified.findings.faults][:1]:
            raise CannotPrune(f"row {fault.seq}: {fault.what}; no more was taken out")
        if verified.rows_checked != exported.end.seq - exported.start.seq:
            raise CannotPrune(f"{draft} does not hold what the log holds")
        # One may be there, of a run that was ended between the file and the log.
        if path.exists() and self._verified(path).head != verified.head:
            raise CannotPrune(f"{path} is there and holds other rows; move it away")
        draft.replace(path)

    def _verified(self, path: Path) -> FileVerification:
        walk = FileVerification(self._signer.public_key)
        with path.open("rb") as lines:
            walk.run(lines)
        return walk

    def _take_out(self, tx: sa.Connection, *, start: chain.Head, end: chain.Head) -> None:
        """Delete what was exported, in the transaction of the row that tells of it."""
        c = audit_events.c
        if tx.dialect.name == "postgresql":
            # What appends holds this lock while it waits for the table: so it is taken first.
            tx.exec_driver_sql("SELECT pg_advisory_xact_lock(7245, 1)")
        if self._start(tx) != start:
            raise CannotPrune("rows were taken out meanwhile")
        if tx.scalar(sa.select(c.row_hash).where(c.seq == end.seq)) != end.row_hash:
            raise CannotPrune("the log has changed meanwhile")
        old = sa.select(c.event_id).where(c.seq <= end.seq)
        tx.execute(audit_personal.delete().where(audit_personal.c.event_id.in_(old)))
        with_deletion = _allowing_deletion_on[tx.dialect.name]
        with_deletion(tx, lambda: tx.execute(audit_events.delete().where(c.seq <= end.seq)))
        tx.execute(
            audit_checkpoints.delete().where(
                audit_checkpoints.c.seq <= end.seq, audit_checkpoints.c.kind == "checkpoint"
            )
        )
        mark = self._mark(tx, end)
        tx.execute(audit_checkpoints.insert(), mark.row)

    def _mark(self, tx: sa.Connection, end: chain.Head) -> Checkpoint:
        newest = checkpoints.newest(tx, self._signer.public_key)
        at = max(to_unix_microseconds(self._clock()), newest.at + 1 if newest else 0)
        return self._signer.sign("pruned", checkpoints.log_name(tx), end, at=at)


VACUUM_SECONDS = 4
"""Longest wait for PostgreSQL to break off a vacuum of its own; it does after its
``deadlock_timeout``, a second unless it is told otherwise."""


def _await_vacuum(tx: sa.Connection) -> None:
    """See that no vacuum of PostgreSQL's own is under way in the log.

    It would have to be waited for when the trigger is switched off, and all who append would wait
    behind that. In this mode nobody does, and it gives way all the same.
    """
    if tx.dialect.name == "postgresql":
        tx.exec_driver_sql(f"SET LOCAL lock_timeout = '{VACUUM_SECONDS}s'")
        tx.exec_driver_sql("LOCK TABLE audit_events IN SHARE UPDATE EXCLUSIVE MODE")


_TRIGGER = "audit_events_no_delete"


def _on_sqlite(tx: sa.Connection, delete: Callable[[], object]) -> None:
    named = "SELECT sql FROM sqlite_master WHERE type = 'trigger' AND name = ?"
    trigger = tx.exec_driver_sql(named, (_TRIGGER,)).scalar()
    if trigger is None:
        raise CannotPrune(f"the trigger {_TRIGGER} is missing: the log was not protected")
    tx.exec_driver_sql(f"DROP TRIGGER {_TRIGGER}")
    delete()
    tx.exec_driver_sql(trigger)


def _on_postgresql(tx: sa.Connection, delete: Callable[[], object]) -> None:
    tx.exec_driver_sql(f"ALTER TABLE audit_events DISABLE TRIGGER {_TRIGGER}")
    delete()
    tx.exec_driver_sql(f"ALTER TABLE audit_events ENABLE TRIGGER {_TRIGGER}")


_allowing_deletion_on = {"sqlite": _on_sqlite, "postgresql": _on_postgresql}
