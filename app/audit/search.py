"""Reading the log: pages that neither skip nor repeat, and one attempt's rows."""

import base64
import hashlib
import hmac
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import sqlalchemy as sa

from app.audit import chain
from app.audit.events import audit_events, audit_personal
from app.audit.matches import NO_ROW, Filters, Matches
from app.base.clock import from_unix_microseconds
from app.base.db import Database
from app.base.errors import InvalidCursor
from app.base.ids import is_id

LARGEST_PAGE = 200

MOST_COUNTED = 10_000
"""Up to so many matches are counted; beyond, it is only known that there are more."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the log, read back. ``personal`` is None once it has been erased."""

    seq: int
    recorded_at: datetime
    members: dict[str, Any]  # what was hashed, parsed
    row_hash: str  # hex
    personal: dict[str, str | None] | None

    @property
    def event_id(self) -> str:
        """Its identifier, `evt_…`."""
        return str(self.members["event_id"])


@dataclass(frozen=True, slots=True)
class Beside:
    """Where a page begins: next to a row that is not on it."""

    seq: int
    newer: bool = False  # on which side


@dataclass(frozen=True, slots=True)
class Page:
    """Rows newest first, where the pages beside it begin, and how much there is."""

    entries: Sequence[Entry]
    newer: str | None  # cursor of the page with later rows; None when there are none
    older: str | None
    matches: int  # at most `MOST_COUNTED`
    more: bool  # there are more than that


class Search:
    """Answers questions about the log.

    Args:
        cursor_key: Signs the page markers, so that none but ours are taken.
    """

    def __init__(self, database: Database, *, cursor_key: bytes) -> None:
        self._database = database
        self._cursor_key = cursor_key

    async def page(self, filters: Filters, *, limit: int, cursor: str | None = None) -> Page:
        """Return up to *limit* rows, newest first.

        A cursor names a row, and which side of it is wanted. Rows that arrive meanwhile have a
        higher seq, so that they neither shift nor repeat a page.

        Raises:
            InvalidCursor: *cursor* is not one of an earlier page.
        """
        beside = self._read(cursor) if cursor is not None else Beside(NO_ROW)

        def find(tx: sa.Connection) -> Page:
            matches = Matches.of(tx, filters)
            if beside.newer:
                seqs = matches.oldest(tx, after=beside.seq, limit=limit + 1)
            else:
                seqs = matches.newest(tx, before=beside.seq, limit=limit + 1)
            shown = sorted(seqs[:limit], reverse=True)
            beyond, came_from = len(seqs) > limit, beside.seq != NO_ROW
            newer, older = (beyond, came_from) if beside.newer else (came_from, beyond)
            # An empty page lies between the row that the cursor named and nothing.
            first = shown[0] if shown else beside.seq - 1
            last = shown[-1] if shown else beside.seq + 1
            counted = len(shown)
            if newer or older:  # else all matches are shown
                counted = matches.count(tx, most=MOST_COUNTED + 1)
            return Page(
                entries_of(tx, shown),
                newer=self._written(Beside(first, newer=True)) if newer else None,
                older=self._written(Beside(last)) if older else None,
                matches=min(counted, MOST_COUNTED),
                more=counted > MOST_COUNTED,
            )

        return await self._database.read(find)

    async def event(self, event_id: str) -> Entry | None:
        """Return one row."""
        found = await self._by_id(event_id)
        return found[0] if found else None

    async def attempt(self, attempt_id: str) -> list[Entry]:
        """Return every row of one attempt, in the order they were written."""
        found = await self._by_id(attempt_id)
        return [entry for entry in found[::-1] if entry.members.get("attempt_id") == attempt_id]

    async def newest(self, filters: Filters) -> Entry | None:
        """Return the newest row that matches, if there is one."""
        found = await self._database.read(partial(newest, filters=filters))
        return found[0] if found else None

    async def event_ids(self, seqs: Collection[int]) -> dict[int, str]:
        """Return the ids of these rows, as far as they are there, also where they were edited."""
        c = audit_events.c
        wanted = sa.select(c.seq, c.canon).where(c.seq.in_(seqs))  # the others are computed from it
        rows = await self._database.read(lambda tx: tx.execute(wanted).all())
        ids = {row.seq: chain.personal_key(row.canon) for row in rows}
        return {seq: found for seq, found in ids.items() if found and is_id(found, "evt")}

    async def _by_id(self, wanted: str) -> list[Entry]:
        """Return the newest rows in which an id stands, newest first."""

        def find(tx: sa.Connection) -> list[Entry]:
            matches = Matches.of(tx, Filters(id=wanted))
            return entries_of(tx, matches.newest(tx, limit=LARGEST_PAGE))

        return await self._database.read(find)

    def _written(self, beside: Beside) -> str:
        number = (beside.seq << 1 | beside.newer).to_bytes(8, "big")
        return base64.urlsafe_b64encode(number + self._mark(number)).decode()

    def _read(self, cursor: str) -> Beside:
        try:
            raw = base64.b64decode(cursor, altchars=b"-_", validate=True)
        except ValueError:
            raise InvalidCursor from None
        number, mark = raw[:8], raw[8:]
        if not hmac.compare_digest(mark, self._mark(number)):
            raise InvalidCursor
        seq, newer = divmod(int.from_bytes(number, "big"), 2)
        return Beside(seq, newer=bool(newer))

    def _mark(self, number: bytes) -> bytes:
        return hmac.digest(self._cursor_key, b"beside" + number, hashlib.sha256)[:16]


_JOINED = audit_events.outerjoin(
    audit_personal, audit_personal.c.event_id == audit_events.c.event_id
)


def newest(tx: sa.Connection, filters: Filters, *, limit: int = 1) -> list[Entry]:
    """Return the newest rows that match, newest first; by index, however long the log is."""
    return entries_of(tx, Matches.of(tx, filters).newest(tx, limit=limit))


def entries_of(tx: sa.Connection, seqs: Sequence[int]) -> list[Entry]:
    """Return these rows, newest first."""
    c = audit_events.c
    wanted = sa.select(c.seq, c.recorded_at, c.canon, c.row_hash, audit_personal.c.data)
    wanted = wanted.select_from(_JOINED).where(c.seq.in_(seqs)).order_by(c.seq.desc())
    return [_entry(row) for row in tx.execute(wanted)]


def _entry(row: Any) -> Entry:
    return Entry(
        seq=row.seq,
        recorded_at=from_unix_microseconds(row.recorded_at),
        members=json.loads(row.canon),
        row_hash=row.row_hash.hex(),
        personal=json.loads(row.data) if row.data else None,
    )
