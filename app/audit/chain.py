"""The hash chain: what makes an edit of the log visible."""

import hashlib
import json
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

GENESIS = bytes(32)
"""What stands for the previous hash before the first row."""


def row_hash(previous: bytes, *, seq: int, recorded_at: int, canon: str) -> bytes:
    """Return the hash that ties a row to all rows before it.

    Args:
        previous: ``row_hash`` of row ``seq - 1``; `GENESIS` for the first.
        seq: Position, from 1.
        recorded_at: Unix µs.
        canon: The row's text, to the letter as it is stored.
    """
    head = b"\x01" + previous + struct.pack(">QQ", seq, recorded_at)
    return hashlib.sha256(head + canon.encode()).digest()


def commitment(salt: bytes, personal: str) -> str:
    """Return what a row says of personal data that is kept, and may be erased, beside the chain.

    Args:
        salt: 16 random bytes of this row alone; without them nothing can be guessed.
        personal: The data as compact JSON.
    """
    return hashlib.sha256(b"\x02" + salt + personal.encode()).hexdigest()


class Head(NamedTuple):
    """A row as the next one knows it."""

    seq: int
    row_hash: bytes


BEGINNING = Head(0, GENESIS)
"""What the first row comes after."""


class Row(NamedTuple):
    """One stored row, with the personal data beside it unless that was erased."""

    seq: int
    recorded_at: int
    canon: str
    row_hash: bytes
    salt: bytes | None = None
    personal: str | None = None

    @property
    def head(self) -> Head:
        """The row as the next one knows it."""
        return Head(self.seq, self.row_hash)


@dataclass(frozen=True, slots=True)
class Fault:
    """A place where the log is not what was written."""

    seq: int
    what: str


class Walk:
    """Goes along the log, in order of ``seq``, and names every row that does not fit.

    After a fault the walk goes on from what is stored, so that one edit is named once and not
    repeated for all rows behind it. A cut-off end cannot be seen from the rows alone.

    Args:
        start: The row that the first one comes after.
    """

    def __init__(self, start: Head = BEGINNING) -> None:
        self.head = start

    def feed(self, rows: Iterable[Row]) -> Iterator[Fault]:
        """Go on along these *rows*; `head` is the last of them when all faults were taken."""
        last, previous = self.head
        for row in rows:
            if row.seq <= last:
                yield Fault(row.seq, "added: there is no place for it")
                continue
            if row.seq != last + 1:
                gap = "missing" if row.seq == last + 2 else f"missing, up to {row.seq - 1}"
                yield Fault(last + 1, gap)
            elif not _is_hashed(row, previous):
                yield Fault(row.seq, "changed: not the text, time and place that were hashed")
            if row.salt is not None and not _keeps_its_promise(row):
                yield Fault(row.seq, "personal data changed: not what the row committed to")
            last, previous = row.seq, row.row_hash
        self.head = Head(last, previous)


def faults(rows: Iterable[Row]) -> Iterator[Fault]:
    """Name every row of a whole log that does not fit, see `Walk`."""
    return Walk().feed(rows)


# Whoever edits the tables may leave values of any type and text of any form. That is a fault like
# any other, and must not end the walk.
_MISSHAPEN = (TypeError, ValueError, AttributeError, RecursionError, struct.error)


def _is_hashed(row: Row, previous: bytes) -> bool:
    try:
        computed = row_hash(previous, seq=row.seq, recorded_at=row.recorded_at, canon=row.canon)
    except _MISSHAPEN:
        return False
    return computed == row.row_hash


def _keeps_its_promise(row: Row) -> bool:
    try:
        kept = commitment(row.salt or b"", row.personal or "")
        # As we write it the promise stands last; parsing every row would take half of the time.
        if row.canon.endswith(f',"personal":"{kept}"}}'):
            return True
        return bool(json.loads(row.canon)["personal"] == kept)
    except (*_MISSHAPEN, KeyError):
        return False


_EVENT_ID = re.compile(r'\{"event_id":"(evt_[0-9A-Z]{26})",')  # stands first, as we write it


def personal_key(canon: str) -> str | None:
    """Return the event id in *canon*, by which its personal data are kept; None if it has none."""
    try:
        if found := _EVENT_ID.match(canon):
            return found[1]
        event_id = json.loads(canon)["event_id"]
    except (*_MISSHAPEN, KeyError):
        return None
    return event_id if isinstance(event_id, str) else None
