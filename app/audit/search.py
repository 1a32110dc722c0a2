"""Reading the log: filters, pages that neither skip nor repeat, and one attempt's rows."""

import base64
import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from app.audit.events import audit_events, audit_personal
from app.base.clock import from_unix_microseconds, to_unix_microseconds
from app.base.db import Database
from app.base.errors import InvalidCursor

LARGEST_PAGE = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Which rows are wanted; every member left at ``None`` lets all pass."""

    actor: str | None = None
    credential: str | None = None
    action: str | None = None
    outcome: str | None = None
    profile: str | None = None
    model: str | None = None  # asked or used
    token_fingerprint: str | None = None
    since: datetime | None = None  # from here on, inclusive
    until: datetime | None = None  # up to here, exclusive

    def where(self) -> list[sa.ColumnElement[bool]]:
        """Return the conditions, for a select from `audit_events`."""
        c = audit_events.c
        wanted: list[sa.ColumnElement[bool]] = [
            column == value
            for column, value in (
                (c.actor, self.actor),
                (c.credential, self.credential),
                (c.action, self.action),
                (c.outcome, self.outcome),
                (c.profile, self.profile),
                (c.token_fingerprint, self.token_fingerprint),
            )
            if value is not None
        ]
        if self.model is not None:
            wanted.append((c.model_used == self.model) | (c.model_asked == self.model))
        if self.since is not None:
            wanted.append(c.recorded_at >= to_unix_microseconds(self.since))
        if self.until is not None:
            wanted.append(c.recorded_at < to_unix_microseconds(self.until))
        return wanted


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the log, read back. ``personal`` is None once it has been erased."""

    seq: int
    recorded_at: datetime
    members: dict[str, Any]  # what was hashed, parsed
    row_hash: str  # hex
    personal: dict[str, str | None] | None


@dataclass(frozen=True, slots=True)
class Page:
    """Rows newest first, and where the next page begins."""

    entries: Sequence[Entry]
    next_cursor: str | None


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

        Rows that arrive meanwhile have a higher seq, so that they neither shift nor repeat a page.

        Raises:
            InvalidCursor: *cursor* is not the ``next_cursor`` of an earlier page.
        """
        wanted = _entries().where(*filters.where())
        if cursor is not None:
            wanted = wanted.where(audit_events.c.seq < self._seq_of(cursor))
        wanted = wanted.order_by(audit_events.c.seq.desc()).limit(limit + 1)
        rows = await self._database.read(lambda tx: tx.execute(wanted).all())
        entries = [_entry(row) for row in rows[:limit]]
        more = len(rows) > limit
        return Page(entries, self._cursor_after(entries[-1].seq) if more else None)

    async def event(self, event_id: str) -> Entry | None:
        """Return one row."""
        wanted = _entries().where(audit_events.c.event_id == event_id)
        row = await self._database.read(lambda tx: tx.execute(wanted).first())
        return _entry(row) if row else None

    async def attempt(self, attempt_id: str) -> list[Entry]:
        """Return every row of one attempt, in the order they were written."""
        wanted = _entries().where(audit_events.c.attempt_id == attempt_id)
        wanted = wanted.order_by(audit_events.c.seq)
        rows = await self._database.read(lambda tx: tx.execute(wanted).all())
        return [_entry(row) for row in rows]

    def _cursor_after(self, seq: int) -> str:
        number = seq.to_bytes(8, "big")
        return base64.urlsafe_b64encode(number + self._mark(number)).decode()

    def _seq_of(self, cursor: str) -> int:
        try:
            raw = base64.b64decode(cursor, altchars=b"-_", validate=True)
        except ValueError:
            raise InvalidCursor from None
        number, mark = raw[:8], raw[8:]
        if not hmac.compare_digest(mark, self._mark(number)):
            raise InvalidCursor
        return int.from_bytes(number, "big")

    def _mark(self, number: bytes) -> bytes:
        return hmac.digest(self._cursor_key, number, hashlib.sha256)[:16]


_JOINED = audit_events.outerjoin(
    audit_personal, audit_personal.c.event_id == audit_events.c.event_id
)


def _entries() -> sa.Select[Any]:
    c = audit_events.c
    columns = sa.select(c.seq, c.recorded_at, c.canon, c.row_hash, audit_personal.c.data)
    return columns.select_from(_JOINED)


def _entry(row: sa.Row[Any]) -> Entry:
    return Entry(
        seq=row.seq,
        recorded_at=from_unix_microseconds(row.recorded_at),
        members=json.loads(row.canon),
        row_hash=row.row_hash.hex(),
        personal=json.loads(row.data) if row.data else None,
    )
