"""The log as it is stored, a chunk at a time: what whoever proves or exports it goes along."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from app.audit import chain
from app.audit.checkpoints import audit_checkpoints
from app.audit.events import audit_events, audit_personal
from app.audit.rollup import seqs_between
from app.base.clock import from_unix_microseconds

CHUNK = 1_000
"""Rows that are read at once; memory stays constant whatever the length of the log."""


class Chunk(NamedTuple):
    """Some rows, and what was signed about them as it stands in `audit_checkpoints`."""

    rows: Sequence[chain.Row]
    said: Sequence[sa.Row[Any]]


def read_chunk(tx: sa.Connection, *, after: int | None = None) -> Chunk:
    """Return the rows behind *after*, in order; those at the very beginning for None."""
    rows = _read_rows(tx, after)
    return Chunk(rows, _said(tx, rows[0].seq, rows[0].seq + CHUNK) if rows else [])


def stored_rows(tx: sa.Connection) -> Iterator[chain.Row]:
    """Give every row in order."""
    after = None
    while rows := _read_rows(tx, after):
        yield from rows
        after = rows[-1].seq


def _read_rows(tx: sa.Connection, after: int | None) -> Sequence[chain.Row]:
    """Return some rows behind *after*.

    Only what is stored is read: computed columns fail on a text that has been tampered with. All
    rows of some numbers are read, so that one which is there twice is seen.
    """
    c = audit_events.c
    first = sa.select(sa.func.min(c.seq))
    if after is not None:
        first = first.where(c.seq > after)
    if (begin := tx.scalar(first)) is None:
        return []
    wanted = sa.select(c.seq, c.recorded_at, c.canon, c.row_hash)
    wanted = wanted.where(c.seq >= begin, c.seq < begin + CHUNK).order_by(c.seq)
    rows = tx.execute(wanted).all()
    keys = [chain.personal_key(row[2]) for row in rows]
    beside = _personal_data(tx, [key for key in keys if key])
    nothing = (None, None)
    return [
        chain.Row(*row, *beside.get(key or "", nothing))
        for row, key in zip(rows, keys, strict=True)
    ]


def _personal_data(tx: sa.Connection, event_ids: Sequence[str]) -> dict[str, tuple[bytes, str]]:
    """Return salt and data of these events, as far as they have not been erased."""
    c = audit_personal.c
    theirs: sa.ColumnElement[bool] = c.event_id.in_(event_ids)
    if tx.dialect.name == "postgresql":  # which would plan for a thousand parameters each time
        theirs = c.event_id == sa.any_(sa.literal(event_ids, sa.ARRAY(sa.Text)))
    wanted = sa.select(c.event_id, c.salt, c.data).where(theirs)
    return {event_id: (salt, data) for event_id, salt, data in tx.execute(wanted)}


def _said(tx: sa.Connection, begin: int, end: int) -> Sequence[sa.Row[Any]]:
    """Return what was signed about the rows from *begin* and before *end*."""
    c = audit_checkpoints.c
    wanted = audit_checkpoints.select().where(c.seq >= begin, c.seq < end)
    return tx.execute(wanted.order_by(c.seq, c.at)).all()


def last_before(tx: sa.Connection, at: int, *, now: int) -> int:
    """Return the seq of the row before the first that was recorded from *at* to *now*; 0 for none.

    Clocks are wrong now and then, so rows are not in the order of their dates. Whatever date a row
    has, it counts as young when it stands behind one that is; rows of the future decide nothing.

    Args:
        tx: A read.
        at: Unix µs.
        now: Unix µs.
    """
    c = audit_events.c
    begin, _ = seqs_between(tx, from_unix_microseconds(at), None)
    young = sa.select(sa.func.min(c.seq)).where(c.seq >= begin, c.recorded_at.between(at, now))
    if (first := tx.scalar(young)) is None:
        first = (tx.scalar(sa.select(sa.func.max(c.seq))) or 0) + 1
    return int(first) - 1
