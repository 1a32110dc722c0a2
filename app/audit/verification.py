"""Proving that nobody edited the log: one walk over it, and over what was signed about it."""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import sqlalchemy as sa

from app.audit import chain, checkpoints
from app.audit.chain import Fault
from app.audit.checkpoint_file import CheckpointFile
from app.audit.checkpoints import (
    Authority,
    Checkpoint,
    LogName,
    PublicKey,
    Unreadable,
    audit_checkpoints,
)
from app.audit.events import audit_events
from app.audit.stored import Chunk, read_chunk
from app.base.db import Database

MOST_FAULTS = 100
"""Faults that are named; the rest is counted."""

LINES_AT_ONCE = 500

ROWS_AT_ONCE = 50
"""Rows that are judged between two pauses."""


class Findings:
    """What is amiss: the first of it by name, all of it by number."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.count = 0

    def add(self, fault: Fault) -> None:
        """Take note of a *fault*."""
        self.count += 1
        if len(self.faults) < MOST_FAULTS:
            self.faults.append(fault)


class _PrunedMeanwhile(Exception):
    """The log begins somewhere else by now."""


class Signatures:
    """Holds what was signed against the rows that are there.

    Args:
        authority: Tells whose signatures are good.
        findings: Takes each fault.
    """

    def __init__(self, authority: Authority, findings: Findings) -> None:
        self._authority = authority
        self._findings = findings
        self._confirmed = 0  # the last row that a good checkpoint speaks of as it is
        self._named = False  # that rows were rewritten: all that was signed later says so too

    def compare(self, one: Checkpoint, found: bytes | None, *, source: str) -> bool:
        """Compare what was said with the hash that was *found*; tell whether it was said by us.

        Args:
            one: What was signed.
            found: None where there is no such row; the walk has named that.
            source: Where it was read.
        """
        if fault := self._authority.fault(one):
            self._findings.add(Fault(one.seq, f"{source}: a checkpoint of {one.when} is {fault}"))
            return False
        if found == one.row_hash:
            self._confirmed = max(self._confirmed, one.seq)
        elif found is not None and not self._named:
            self._named = True
            since = min(self._confirmed + 1, one.seq)
            row = "it" if since == one.seq else f"it or a row since {since}"
            self._findings.add(
                Fault(one.seq, f"{row} was rewritten: not what was signed at {one.when}")
            )
        return True


@dataclass(frozen=True, slots=True)
class Bounds:
    """From where to where the log goes, and which checkpoints count."""

    log: LogName
    start: chain.Head  # the row before the first
    end: int  # seq of the last row
    pruned: int  # rows that were pruned so far end here, whoever says so
    since: int  # when what counts was signed, Unix µs: with the newest acceptance
    until: int  # when the newest of it was signed


class Verification:
    """One walk, and how far it has come.

    It holds no transaction open: rows are read a thousand at a time, and judged in a thread.

    Args:
        database: Whose log.
        keys: Whose checkpoints are believed.
        file: Where they stand outside of the database.
        pause_seconds: After a few rows each, so that others in this process have their turn.
    """

    def __init__(
        self,
        database: Database,
        *,
        keys: Sequence[PublicKey],
        file: CheckpointFile,
        pause_seconds: float = 0,
    ) -> None:
        self._pause_seconds = pause_seconds
        self._database = database
        self._keys = keys
        self._file = file
        self._beyond: Checkpoint | None = None
        self.rows_checked = 0
        self.total = 0
        self.checkpoints_checked = 0
        self.checkpoints_in_file = 0
        """How many of these stand in the file; none, when somebody has taken it away."""
        self.findings = Findings()

    async def run(self, progress: Callable[[], None] = lambda: None) -> None:
        """Look at everything; afterwards `findings` has what is amiss.

        Args:
            progress: Called for each chunk.

        Raises:
            AuditUnavailable: The database cannot be read.
            OSError: The file cannot be read.
        """
        while True:
            self.rows_checked = self.checkpoints_checked = self.checkpoints_in_file = 0
            self.findings, self._beyond = Findings(), None
            try:
                return await self._run(progress)
            except _PrunedMeanwhile:
                continue

    async def _run(self, progress: Callable[[], None]) -> None:
        size = await asyncio.to_thread(lambda: self._file.size)
        accepted, newest = await asyncio.to_thread(self._survey, size)
        bounds = await self._database.read(partial(self._bounds, accepted=accepted, newest=newest))
        self.total = bounds.end - bounds.start.seq
        signatures = Signatures(Authority(*self._keys, log=bounds.log), self.findings)
        await self._walk(bounds, signatures, progress)
        await self._look_behind_the_end(bounds, signatures)
        await self._compare_file(bounds, signatures, size)
        if self._beyond is not None:
            last = self._beyond
            first = bounds.end + 1
            gap = "missing" if last.seq == first else f"missing, up to {last.seq} at least"
            self.findings.add(Fault(first, f"{gap}, as was signed at {last.when}"))

    # From where to where ------------------------------------------------------------------------

    def _survey(self, size: int) -> tuple[int, int]:
        """Return when the file's log was accepted last, and when its newest line was signed."""
        accepted, newest, authority = 0, None, Authority(*self._keys)
        for _, one in self._file.lines(size=size):
            if isinstance(one, Unreadable):
                continue
            newest = one
            if one.kind == "accepted" and authority.fault(one) is None:
                accepted = max(accepted, one.at)
        return accepted, newest.at if newest and authority.fault(newest) is None else 0

    def _bounds(self, tx: sa.Connection, *, accepted: int, newest: int) -> Bounds:
        # Before the mark is looked for: what is pruned meanwhile is found out by that.
        start, pruned = chain.BEGINNING, checkpoints.pruned_up_to(tx)
        for key in self._keys:
            if one := checkpoints.newest(tx, key):
                newest = max(newest, one.at)
            if one := checkpoints.newest(tx, key, "accepted"):
                accepted = max(accepted, one.at)
            if (one := checkpoints.newest(tx, key, "pruned")) and one.seq > start.seq:
                start = one.head
        return Bounds(
            log=checkpoints.log_name(tx),
            start=start,
            end=checkpoints.head_of(tx).seq,  # read last: all that was spoken of is there by now
            pruned=pruned,
            since=accepted,
            until=newest,
        )

    # Along the rows -----------------------------------------------------------------------------

    async def _walk(
        self, bounds: Bounds, signatures: Signatures, progress: Callable[[], None]
    ) -> None:
        walk = chain.Walk(bounds.start)
        chunk = await self._database.read(partial(_next, bounds=bounds, after=None))
        while chunk is not None:
            following = partial(_next, bounds=bounds, after=chunk.rows[-1].seq)
            # The database finds the next rows while these are judged.
            found, _ = await asyncio.gather(
                self._database.read(following),
                asyncio.to_thread(self._judge, walk, chunk, bounds, signatures),
            )
            self.rows_checked += len(chunk.rows)
            chunk = found
            progress()

    def _judge(
        self, walk: chain.Walk, chunk: Chunk, bounds: Bounds, signatures: Signatures
    ) -> None:
        for begin in range(0, len(chunk.rows), ROWS_AT_ONCE):
            for fault in walk.feed(chunk.rows[begin : begin + ROWS_AT_ONCE]):
                self.findings.add(fault)
            time.sleep(self._pause_seconds)
        said = list(self._read(chunk.said, bounds))
        if said:
            hashes = {row.seq: row.row_hash for row in chunk.rows}
            for one in said:
                signatures.compare(one, hashes.get(one.seq), source="database")

    def _read(self, said: Iterable[sa.Row[Any]], bounds: Bounds) -> Iterator[Checkpoint]:
        """Give what can be read of it and counts."""
        for row in said:
            # In SQLite somebody may have put values of any type into any column.
            seq = row.seq if isinstance(row.seq, int) else 0
            at = row.at if isinstance(row.at, int) else bounds.since
            if at < bounds.since or 0 < seq <= bounds.start.seq:
                continue
            self.checkpoints_checked += 1
            try:
                yield checkpoints.read_row(row)
            except Unreadable as fault:
                self.findings.add(Fault(seq, f"database: a checkpoint {fault}"))

    async def _look_behind_the_end(self, bounds: Bounds, signatures: Signatures) -> None:
        c = audit_checkpoints.c
        wanted = audit_checkpoints.select().where(c.seq > bounds.end)
        wanted = wanted.order_by(c.seq.desc()).limit(LINES_AT_ONCE)
        said = await self._database.read(lambda tx: tx.execute(wanted).all())
        for one in self._read(said, bounds):
            good = signatures.compare(one, None, source="database")
            if good and one.at <= bounds.until:  # else it came while we looked
                self._note_beyond(one)

    def _note_beyond(self, one: Checkpoint) -> None:
        if self._beyond is None or one.seq > self._beyond.seq:
            self._beyond = one

    # Along the file -----------------------------------------------------------------------------

    async def _compare_file(self, bounds: Bounds, signatures: Signatures, size: int) -> None:
        lines = self._file.lines(size=size)
        while some := await asyncio.to_thread(lambda: list(islice(lines, LINES_AT_ONCE))):
            seqs = {one.seq for _, one in some if isinstance(one, Checkpoint)}
            hashes = await self._database.read(partial(_hashes, seqs=seqs, bounds=bounds))
            await asyncio.to_thread(self._compare_lines, some, hashes, bounds, signatures)

    def _compare_lines(
        self,
        lines: Sequence[tuple[int, Checkpoint | Unreadable]],
        hashes: Mapping[int, bytes],
        bounds: Bounds,
        signatures: Signatures,
    ) -> None:
        for number, one in lines:
            source = f"line {number} of {self._file.path.name}"
            if isinstance(one, Unreadable):
                self.findings.add(Fault(0, f"{source}: {one}"))
            elif one.at >= bounds.since and one.seq > bounds.start.seq:
                self.checkpoints_checked += 1
                self.checkpoints_in_file += 1
                good = signatures.compare(one, hashes.get(one.seq), source=source)
                if good and one.seq > bounds.end:
                    self._note_beyond(one)


def _next(tx: sa.Connection, *, bounds: Bounds, after: int | None) -> Chunk | None:
    """Return the chunk behind *after*, as far as the log went at the start; None at the end.

    Raises:
        _PrunedMeanwhile: What was looked at may be gone.
    """
    chunk = read_chunk(tx, after=after)
    if checkpoints.pruned_up_to(tx) != bounds.pruned:
        raise _PrunedMeanwhile
    rows = [row for row in chunk.rows if row.seq <= bounds.end]
    said = [row for row in chunk.said if row.seq <= bounds.end]
    return Chunk(rows, said) if rows else None


def _hashes(tx: sa.Connection, *, seqs: Iterable[int], bounds: Bounds) -> dict[int, bytes]:
    c = audit_events.c
    rows = tx.execute(sa.select(c.seq, c.row_hash).where(c.seq.in_(list(seqs))))
    found: dict[int, bytes] = {row.seq: row.row_hash for row in rows}
    if checkpoints.pruned_up_to(tx) != bounds.pruned:
        raise _PrunedMeanwhile
    return found
