"""The roll-up: what the log says, added up by the hour, so that nobody has to read all of it.

It is filled beside the log and never while somebody waits for a token: `RollUp.catch_up` adds the
rows that have come since the last time. What it has not reached yet is read from the log itself, so
that figures are exact at any moment (see `app.audit.overview`).
"""

import asyncio
import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple

import sqlalchemy as sa
import structlog

from app.audit import chain
from app.audit.events import audit_events
from app.audit.log import Change, Log
from app.base.clock import to_unix_microseconds
from app.base.db import Database, metadata

HOUR = timedelta(hours=1) // timedelta(microseconds=1)
DAY = 24 * HOUR

AT_ONCE = 1_000
"""Rows that are added in one transaction; few enough that no mint notices that it waits for it."""

TOTAL, USER, PROFILE, MODEL, REASON, LATENCY = DIMENSIONS = (
    "total",
    "user",
    "profile",
    "model",
    "reason",
    "latency",
)
"""By what rows are counted. A count of the latency is one of mints that took OpenAI at most as many
milliseconds as its name says, and more than the next lower bound."""

BY_DAY = "/day"
"""Follows a dimension where the figures are those of a day and not of an hour. All but `TOTAL` have
them: users are many, and the hours of a month are, too."""

COUNTED = ("issued", "denied", "failed", "unknown")
"""The outcomes that are counted; the others tell of no token asked for in vain or not."""

LATENCY_BOUNDS = tuple(sorted({round(1.2**step) for step in range(55)}))
"""Milliseconds, from 1 to 19 s: each about a fifth above the one before, so that what is read off
them is a tenth off at the most."""

rolled_up = sa.Table(
    "audit_rolled_up",
    metadata,
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),  # one row, ever
    sa.Column("row_hash", sa.LargeBinary(32), nullable=False),  # of that row of the log
)

hours = sa.Table(
    "audit_hours",
    metadata,
    sa.Column("hour", sa.BigInteger, primary_key=True, autoincrement=False),  # Unix µs, its start
    sa.Column("first_seq", sa.BigInteger, nullable=False),
    sa.Column("last_seq", sa.BigInteger, nullable=False),
)

figures = sa.Table(
    "audit_figures",
    metadata,
    sa.Column("dimension", sa.String(16), primary_key=True),
    sa.Column("hour", sa.BigInteger, primary_key=True),  # or day; Unix µs, its start
    sa.Column("name", sa.Text, primary_key=True),  # of the user, the profile, …; empty for TOTAL
    sa.Column("outcome", sa.String(16), primary_key=True),
    sa.Column("count", sa.BigInteger, nullable=False),
)

_ADD = sa.text(
    "INSERT INTO audit_figures (dimension, hour, name, outcome, count)"
    " VALUES (:dimension, :hour, :name, :outcome, :count)"
    " ON CONFLICT (dimension, hour, name, outcome)"
    " DO UPDATE SET count = audit_figures.count + excluded.count"
)
_ADD_DAYS = sa.text(
    "INSERT INTO audit_figures (dimension, hour, name, outcome, count)"
    " SELECT dimension || :by_day, hour - hour % :day, name, outcome, sum(count)"
    " FROM audit_figures WHERE dimension <> :total GROUP BY 1, 2, 3, 4"
)
_STRETCH = sa.text(  # the clock may have been set back, but seq only rises
    "INSERT INTO audit_hours (hour, first_seq, last_seq) VALUES (:hour, :first_seq, :last_seq)"
    " ON CONFLICT (hour) DO UPDATE SET last_seq = excluded.last_seq"
)


class Figure(NamedTuple):
    """What is counted. The fields are those of `figures`."""

    dimension: str
    hour: int
    name: str
    outcome: str


class Mark(NamedTuple):
    """A row of the log: what was added last."""

    seq: int
    row_hash: bytes


class _Overtaken(Exception):
    """Another process has added these rows meanwhile."""


class RollUp:
    """Adds the log up."""

    def __init__(self, *, database: Database, log: Log) -> None:
        self._database = database
        self._log = log
        self._logger = structlog.get_logger(__name__)

    async def catch_up(self) -> None:
        """Add every row that was not there the last time.

        Any number of processes may do so at once: each row is added by one of them, and once.

        Raises:
            AuditUnavailable: The database is away; the next round goes on where this one stopped.
        """
        with suppress(_Overtaken):
            mark, standing = await self._database.read(_last_added)
            if not standing:
                # Rows that were added are gone, or are others now: the log was rolled back.
                self._logger.warning("roll_up_begins_anew", rolled_up_to=mark.seq)
                mark = await self._log.record([], partial(_start_again, mark=mark))
            while rows := await self._database.read(partial(_next, after=mark.seq)):
                added = await asyncio.to_thread(count, rows)
                following = Mark(rows[-1].seq, rows[-1].row_hash)
                await self._log.record([], _adding(mark, following, added, _spans(rows)))
                mark = following


def count(rows: Iterable[Any]) -> Counter[Figure]:
    """Return the figures of these *rows*, which have ``recorded_at`` and ``canon``."""
    counted: Counter[Figure] = Counter()
    for row in rows:
        # One that was tampered with may hold anything; to say so is for the verification.
        with suppress(TypeError, ValueError, LookupError, AttributeError, RecursionError):
            members = json.loads(row.canon)
            outcome = members["outcome"]
            if outcome in COUNTED:
                hour, times = _hour(row.recorded_at), int(members.get("count", 1))
                for dimension, name in _names(members):
                    counted[Figure(dimension, hour, name, outcome)] += times
    return counted


def by_day(counted: Counter[Figure]) -> Counter[Figure]:
    """Return the figures of days that these figures of hours make."""
    days: Counter[Figure] = Counter()
    for figure, times in counted.items():
        if figure.dimension != TOTAL:
            day = figure.hour - figure.hour % DAY
            days[figure._replace(dimension=figure.dimension + BY_DAY, hour=day)] += times
    return days


def _names(members: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Give whatever a row with these *members* counts for."""
    yield TOTAL, ""
    for dimension, member in (
        (USER, "actor"),
        (PROFILE, "profile"),
        (MODEL, "model_used"),
        (REASON, "reason"),
    ):
        if member in members:
            yield dimension, str(members[member])
    if "upstream_ms" in members:
        place = bisect_left(LATENCY_BOUNDS, members["upstream_ms"])
        yield LATENCY, str(LATENCY_BOUNDS[min(place, len(LATENCY_BOUNDS) - 1)])


def rolled_up_to(tx: sa.Connection) -> int:
    """Return the seq of the row that was added last, 0 before the first."""
    return tx.scalar(sa.select(rolled_up.c.seq)) or 0


def seqs_between(
    tx: sa.Connection, since: datetime | None, until: datetime | None
) -> tuple[int, int | None]:
    """Return between which rows, both included, all lie that were written in a span of time.

    Others may lie there too. The last is None for whichever is the newest.

    Args:
        tx: A read.
        since: The beginning, included; None for that of the log.
        until: The end, excluded; None for the newest row.
    """
    c, first, last = hours.c, 1, None
    if since is not None:
        begun = sa.select(sa.func.min(c.first_seq)).where(c.hour >= hour_of(since))
        first = tx.scalar(begun) or rolled_up_to(tx) + 1
    if until is not None:
        e, end = audit_events.c, to_unix_microseconds(until)
        ended = sa.select(sa.func.max(c.last_seq)).where(c.hour < end)
        # Of the rows that were not added up yet, few and mostly later, each is looked at.
        late = sa.select(sa.func.max(e.seq)).where(e.seq > rolled_up_to(tx), e.recorded_at < end)
        last = tx.scalar(late) or tx.scalar(ended) or 0
    return first, last


def hour_of(at: datetime) -> int:
    """Return the beginning of the hour *at* lies in, UTC, in Unix µs."""
    return _hour(to_unix_microseconds(at))


def _hour(microseconds: int) -> int:
    return microseconds - microseconds % HOUR


def _last_added(tx: sa.Connection) -> tuple[Mark, bool]:
    """Return what was added last, and whether the log still has it, or has pruned it."""
    mark = Mark(*tx.execute(sa.select(rolled_up.c.seq, rolled_up.c.row_hash)).one())
    c = audit_events.c
    present = tx.scalar(sa.select(c.row_hash).where(c.seq == mark.seq))
    if present is not None:
        return mark, present == mark.row_hash
    newest = tx.scalar(sa.select(sa.func.max(c.seq))) or 0
    return mark, newest >= mark.seq


def _next(tx: sa.Connection, after: int) -> Sequence[Any]:
    c = audit_events.c
    wanted = sa.select(c.seq, c.recorded_at, c.canon, c.row_hash).where(c.seq > after)
    return tx.execute(wanted.order_by(c.seq).limit(AT_ONCE)).all()


def _spans(rows: Sequence[Any]) -> list[dict[str, int]]:
    """Return for each hour of *rows* the first and the last of its rows."""
    spans: dict[int, dict[str, int]] = {}
    for row in rows:
        hour = _hour(row.recorded_at)
        span = spans.setdefault(hour, {"hour": hour, "first_seq": row.seq})
        span["last_seq"] = row.seq
    return list(spans.values())


def _adding(
    mark: Mark, following: Mark, added: Counter[Figure], spans: list[dict[str, int]]
) -> Change[None]:
    def add(tx: sa.Connection) -> None:
        _move(tx, mark, following)
        tx.execute(_STRETCH, spans)
        if added:
            both = added + by_day(added)
            tx.execute(_ADD, [{**figure._asdict(), "count": n} for figure, n in both.items()])

    return add


def _move(tx: sa.Connection, mark: Mark, to: Mark) -> None:
    c = rolled_up.c
    here = (c.seq == mark.seq) & (c.row_hash == mark.row_hash)
    if tx.execute(rolled_up.update().where(here).values(**to._asdict())).rowcount == 0:
        raise _Overtaken


def _start_again(tx: sa.Connection, mark: Mark) -> Mark:
    """Forget what was added from rows that are still there, so that they are added again.

    What was pruned stays as it was added. Of the hour in which pruning stopped, that part is lost.
    """
    first = tx.scalar(sa.select(sa.func.min(audit_events.c.seq))) or 1
    again = sa.select(hours.c.hour).where(hours.c.last_seq >= first)
    tx.execute(figures.delete().where(figures.c.hour.in_(again)))
    tx.execute(hours.delete().where(hours.c.last_seq >= first))
    tx.execute(figures.delete().where(figures.c.dimension.endswith(BY_DAY)))
    tx.execute(_ADD_DAYS, {"total": TOTAL, "by_day": BY_DAY, "day": DAY})
    start = Mark(first - 1, chain.GENESIS)
    _move(tx, mark, start)
    return start
