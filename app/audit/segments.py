"""Parts of the log as files, which prove themselves: to the file and a public key alone.

JSON Lines. The first line is a checkpoint of the row before the first, the last one of the last
row, both of the kind ``exported``; between them stand the rows in order, each followed by what was
signed about it.
"""

import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import sqlalchemy as sa

from app.audit import chain, checkpoints
from app.audit.chain import Fault
from app.audit.checkpoints import Authority, Checkpoint, PublicKey, Signer, Unreadable
from app.audit.events import audit_events
from app.audit.stored import Chunk, read_chunk
from app.audit.verification import Findings, Signatures
from app.base.clock import Clock, to_unix_microseconds
from app.base.db import Database


class CannotExport(Exception):
    """What was asked for is not in the log; the message says what is."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What went into a file."""

    start: chain.Head  # before the first row
    end: chain.Head  # the last row
    findings: Findings


class Exporter:
    """Writes parts of the log down.

    Args:
        database: Whose log.
        signer: Signs the first line and the last.
        clock: Tells when.
    """

    def __init__(self, database: Database, *, signer: Signer, clock: Clock) -> None:
        self._database = database
        self._signer = signer
        self._clock = clock

    async def write(
        self,
        file: BinaryIO,
        *,
        first: int | None = None,
        last: int | None = None,
        personal: bool = False,
        progress: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> Exported:
        """Write the rows from *first* to *last*, a chunk at a time.

        The rows are held against each other and against what was signed about them; a fault does
        not end the export, and is found again by whoever verifies the file.

        Args:
            file: Where to.
            first: Seq of the first row; None for all that the log has.
            last: Seq of the last; None for what the log has now.
            personal: With addresses, user agents and e-mail addresses, as far as they are kept.
            progress: Called with how many rows are written, and of how many.

        Raises:
            CannotExport: There are no such rows, or they were pruned meanwhile.
            AuditUnavailable: The database is away.
        """
        log, accepted, start, end = await self._database.read(
            partial(self._range, first=first, last=last)
        )
        findings = Findings()
        walk = chain.Walk(start)
        signatures = Signatures(Authority(self._signer.public_key, log=log), findings)
        opening = self._signer.sign("exported", log, start, at=self._now())
        file.write(f"{opening.line}\n".encode())
        while walk.head.seq < end:
            chunk = await self._database.read(partial(read_chunk, after=walk.head.seq))
            rows = [row for row in chunk.rows if row.seq <= end]
            if not rows or rows[0].seq > walk.head.seq + 1:
                await self._see_that_nothing_was_pruned(behind=walk.head.seq)
            if not rows:
                break
            for fault in walk.feed(rows):
                findings.add(fault)
            said = _by_seq(chunk, since=accepted)
            for row in rows:
                file.write(_line_of(row, personal=personal))
                for one in said.get(row.seq, ()):
                    if signatures.compare(one, row.row_hash, source="database"):
                        file.write(f"{one.line}\n".encode())
            progress(walk.head.seq - start.seq, end - start.seq)
        closing = self._signer.sign("exported", log, walk.head, at=self._now())
        file.write(f"{closing.line}\n".encode())
        return Exported(start, walk.head, findings)

    async def _see_that_nothing_was_pruned(self, *, behind: int) -> None:
        pruned = partial(checkpoints.newest, key=self._signer.public_key, kind="pruned")
        mark = await self._database.read(pruned)
        if mark is not None and mark.seq > behind:
            raise CannotExport(f"rows up to {mark.seq} were pruned meanwhile; export again")

    def _now(self) -> int:
        return to_unix_microseconds(self._clock())

    def _range(
        self, tx: sa.Connection, *, first: int | None, last: int | None
    ) -> tuple[checkpoints.LogName, int, chain.Head, int]:
        """Return which log it is, what of its checkpoints counts, and where to begin and end."""
        key = self._signer.public_key
        accepted = checkpoints.newest(tx, key, "accepted")
        pruned = checkpoints.newest(tx, key, "pruned")
        start = pruned.head if pruned else chain.BEGINNING
        head = checkpoints.head_of(tx)
        end = head.seq if last is None else min(last, head.seq)
        if first is not None and first > start.seq + 1:
            c = audit_events.c
            before = tx.scalar(sa.select(c.row_hash).where(c.seq == first - 1))
            if before is None:
                raise CannotExport(f"the log has no row {first - 1} to begin behind")
            start = chain.Head(first - 1, before)
        elif first is not None and first <= start.seq:
            raise CannotExport(
                f"the log begins with row {start.seq + 1}; what was before is pruned"
            )
        if end <= start.seq:
            raise CannotExport(f"there is no row behind row {start.seq} to export")
        return checkpoints.log_name(tx), accepted.at if accepted else 0, start, end


def _by_seq(chunk: Chunk, *, since: int) -> dict[int, list[Checkpoint]]:
    """Return what was signed about each row, as far as it can be read and counts."""
    said: dict[int, list[Checkpoint]] = {}
    for one in checkpoints.readable(chunk.said):
        if one.at >= since and one.kind in {"checkpoint", "accepted"}:
            said.setdefault(one.seq, []).append(one)
    return said


def _line_of(row: chain.Row, *, personal: bool) -> bytes:
    members: dict[str, Any] = {"seq": row.seq, "recorded_at": row.recorded_at, "canon": row.canon}
    try:
        members["row_hash"] = row.row_hash.hex()
        if personal and row.salt is not None:
            members |= {"salt": row.salt.hex(), "personal": row.personal}
        return f"{_compact(members)}\n".encode()
    except (TypeError, AttributeError, UnicodeEncodeError):
        raise CannotExport(
            f"row {row.seq} holds what no row holds; see: realtime-tokens audit verify"
        ) from None


_compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


# Elsewhere, later ------------------------------------------------------------------------------


class FileVerification:
    """One walk along a file; needs nothing but the file and the public key.

    Args:
        key: Of the installation that wrote it.
    """

    def __init__(self, key: PublicKey) -> None:
        self._key = key
        self._log: checkpoints.LogName | None = None
        self._walk: chain.Walk | None = None
        self._signatures: Signatures | None = None
        self.closing: Checkpoint | None = None
        """The last line, when it is what it has to be."""
        self.first: int | None = None
        self.rows_checked = 0
        self.checkpoints_checked = 0
        self.findings = Findings()

    @property
    def head(self) -> chain.Head | None:
        """The last row; None before the first line was understood."""
        return self._walk.head if self._walk else None

    @property
    def last(self) -> int:
        """Seq of the last row."""
        return self.head.seq if self.head else 0

    def run(self, lines: Iterable[bytes]) -> None:
        """Look at every one of the *lines*; afterwards `findings` has what is amiss."""
        for number, line in enumerate(lines, start=1):
            self.closing = None
            try:
                self._look_at(line, number)
            except Unreadable as fault:
                self.findings.add(Fault(self.last, f"line {number} {fault}"))
        if self.closing is None:
            self.findings.add(Fault(self.last + 1, "the file does not end as it was written"))

    def _look_at(self, line: bytes, number: int) -> None:
        try:
            members = json.loads(line)
        except (ValueError, RecursionError):
            raise Unreadable("is not JSON") from None
        if isinstance(members, dict) and "checkpoint" in members:
            self._take_checkpoint(Checkpoint.read_line(line), number)
        elif self._walk is None:
            raise Unreadable("comes before the checkpoint with which a file begins")
        else:
            self._take_row(self._walk, members)

    def _take_checkpoint(self, one: Checkpoint, number: int) -> None:
        self.checkpoints_checked += 1
        if self._walk is None or self._signatures is None:
            authority = Authority(self._key)
            if fault := authority.fault(one):
                raise Unreadable(f"holds a checkpoint {fault}")
            self._walk = chain.Walk(one.head)
            self._signatures = Signatures(Authority(self._key, log=one.log), self.findings)
            return
        head = self._walk.head
        if one.seq > head.seq:
            self.findings.add(Fault(head.seq + 1, f"missing, up to {one.seq}, by line {number}"))
            return
        found = head.row_hash if one.seq == head.seq else None
        good = self._signatures.compare(one, found, source=f"line {number}")
        if good and found == one.row_hash and one.kind == "exported":
            self.closing = one

    def _take_row(self, walk: chain.Walk, members: Any) -> None:
        try:
            salt = members.get("salt")
            row = chain.Row(
                seq=_integer(members["seq"]),
                recorded_at=_integer(members["recorded_at"]),
                canon=members["canon"],
                row_hash=bytes.fromhex(members["row_hash"]),
                salt=None if salt is None else bytes.fromhex(salt),
                personal=members.get("personal"),
            )
        except (TypeError, KeyError, ValueError, AttributeError):
            raise Unreadable("is neither a row nor a checkpoint") from None
        for fault in walk.feed([row]):
            self.findings.add(fault)
        if self.first is None:
            self.first = row.seq
        self.rows_checked += 1


def _integer(value: object) -> int:
    if type(value) is not int:
        raise TypeError
    return value


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Write *path* whole or not at all, for its owner alone, and sync it to disk.

    Raises:
        FileExistsError: There is such a file.
        OSError: It cannot be written.
    """
    if not path.name:
        raise IsADirectoryError(f"{path} is a folder; name a new file in it")
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        path.hardlink_to(draft)  # atomic, and refuses to replace
    finally:
        draft.unlink()
    folder = os.open(path.absolute().parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)
