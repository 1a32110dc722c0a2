"""Figures of the log for a span of time: the roll-up, and row by row what it cannot tell."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from app.audit import rollup
from app.audit.events import audit_events
from app.audit.rollup import DAY, HOUR, LATENCY_BOUNDS, Figure, figures, hours
from app.base.clock import Clock, from_unix_microseconds, to_unix_microseconds
from app.base.db import Database
from app.base.errors import AuditUnavailable

TOP = 10
"""Users, profiles, … that are named."""

HOURLY_UP_TO = timedelta(days=3)
"""A longer span is told day by day."""

MOST_LATE = 50_000
"""Rows that the roll-up may lag behind; to read more takes longer than to wait for it."""

LONGEST_EMPTY = timedelta(days=366)
"""A span does not begin longer before the log does."""

EARLIEST = from_unix_microseconds(0) + LONGEST_EMPTY
"""An earlier end is this one: nothing was written by then."""

ROWS_AT_ONCE = 1_000


@dataclass(frozen=True, slots=True)
class Counts:
    """How often a token was asked for, or anything else refused, by what came of it."""

    issued: int = 0
    denied: int = 0  # a row that counts refusals is as many
    failed: int = 0
    unknown: int = 0


@dataclass(frozen=True, slots=True)
class Bucket:
    """What happened in an hour or a day."""

    begins_at: datetime
    counts: Counts


@dataclass(frozen=True, slots=True)
class Ranked:
    """What happened to a user, or with a profile, a model, or for a reason."""

    name: str
    counts: Counts


@dataclass(frozen=True, slots=True)
class Latency:
    """How long OpenAI took for the tokens it gave, in milliseconds; a tenth off at the most."""

    p50_ms: int
    p95_ms: int


@dataclass(frozen=True, slots=True)
class Overview:
    """The figures of a span of time."""

    since: datetime
    until: datetime
    bucket: timedelta
    buckets: Sequence[Bucket]
    totals: Counts
    users: Sequence[Ranked]
    profiles: Sequence[Ranked]
    models: Sequence[Ranked]
    reasons: Sequence[Ranked]
    latency: Latency | None  # None where no token was issued


class Overviews:
    """Tells what happened in a span of time."""

    def __init__(self, *, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def of(self, since: datetime | None, until: datetime | None) -> Overview:
        """Return the figures from *since* on and before *until*.

        They count each row that is in the log at this moment, those of now included. Rows that were
        pruned still count, with the whole of their hour.

        Args:
            since: None for the beginning of the log.
            until: None for now.

        Raises:
            AuditUnavailable: The database is away, or the log is still being added up: that takes
                a minute for some million rows after an update.
        """
        now = self._clock() + timedelta(microseconds=1)  # rows of this very moment are before it
        until = max(min(until or now, now), EARLIEST)
        return await self._database.read(lambda tx: _overview(tx, since, until))


def _overview(tx: sa.Connection, since: datetime | None, until: datetime) -> Overview:
    if tx.dialect.name == "postgresql":
        # Every read sees the same rows, and the same of them added up; in SQLite it does anyway.
        tx.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    beginning = min(_beginning(tx) or until, until)
    if since is None:
        since = beginning
    elif until - since > LONGEST_EMPTY:
        since = max(since, min(beginning, until - LONGEST_EMPTY))
    sums = _Sums(tx)
    sums.add_span(to_unix_microseconds(since), to_unix_microseconds(until))
    bucket = timedelta(hours=1) if until - since <= HOURLY_UP_TO else timedelta(days=1)
    return Overview(
        since=since,
        until=until,
        bucket=bucket,
        buckets=list(sums.buckets(since, until, bucket)),
        totals=sums.totals(),
        users=sums.ranked(rollup.USER),
        profiles=sums.ranked(rollup.PROFILE),
        models=sums.ranked(rollup.MODEL),
        reasons=sums.ranked(rollup.REASON),
        latency=sums.latency(),
    )


def _beginning(tx: sa.Connection) -> datetime | None:
    """Return when the log began, to the hour."""
    first = tx.scalar(sa.select(sa.func.min(hours.c.hour)))
    if first is None:
        c = audit_events.c
        first = tx.scalar(sa.select(c.recorded_at).order_by(c.seq).limit(1))
    return None if first is None else from_unix_microseconds(first)


class _Sums:
    """Adds figures up, in one read."""

    def __init__(self, tx: sa.Connection) -> None:
        self._tx = tx
        self._by_hour: Counter[tuple[int, str]] = Counter()  # and outcome
        self._by_name: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)  # and outcome

    def add_span(self, since: int, until: int) -> None:
        """Add what happened between two instants, in Unix µs: the first included."""
        newest = self._tx.scalar(sa.select(sa.func.max(audit_events.c.seq))) or 0
        rolled_up = rollup.rolled_up_to(self._tx)
        if newest - rolled_up > MOST_LATE:
            raise AuditUnavailable(
                "The log is still being added up. Ask again in a moment.", retry_after_seconds=10
            )
        first_whole, last_whole = since + -since % HOUR, until - until % HOUR
        if first_whole <= last_whole:
            self._add_hours(first_whole, last_whole)
            self._add_part_of_hour(since, first_whole)
            self._add_part_of_hour(last_whole, until)
        else:
            self._add_part_of_hour(since, until)
        self._add_rows(rolled_up + 1, newest, since, until)

    def _add_hours(self, since: int, until: int) -> None:
        """Add whole hours, as far as they were added up."""
        c = figures.c
        totals = sa.select(c.hour, c.outcome, c.count).where(*_between(rollup.TOTAL, since, until))
        for hour, outcome, count in self._tx.execute(totals):
            self._by_hour[hour, outcome] += count
        first_day, last_day = since + -since % DAY, until - until % DAY
        for dimension in rollup.DIMENSIONS:
            if dimension == rollup.TOTAL:
                continue
            if first_day < last_day:
                self._add_names(dimension, rollup.BY_DAY, first_day, last_day)
                self._add_names(dimension, "", since, first_day)
                self._add_names(dimension, "", last_day, until)
            else:
                self._add_names(dimension, "", since, until)

    def _add_names(self, dimension: str, width: str, since: int, until: int) -> None:
        c = figures.c
        summed = sa.select(c.name, c.outcome, sa.func.sum(c.count)).group_by(c.name, c.outcome)
        wanted = summed.where(*_between(dimension + width, since, until))
        for name, outcome, count in self._tx.execute(wanted):
            self._by_name[dimension][name, outcome] += int(count)

    def _add_part_of_hour(self, since: int, until: int) -> None:
        """Add from the rows themselves what happened within an hour, as far as it was added up."""
        hour = since - since % HOUR
        span = self._tx.execute(hours.select().where(hours.c.hour == hour)).first()
        if since == until or span is None:
            return
        if self._tx.scalar(sa.select(sa.func.min(audit_events.c.seq))) > span.first_seq:
            self._add_hours(hour, hour + HOUR)  # its rows were pruned
        else:
            self._add_rows(span.first_seq, span.last_seq, since, until)

    def _add_rows(self, first: int, last: int, since: int, until: int) -> None:
        for rows in _rows(self._tx, first, last, since, until):
            for figure, count in rollup.count(rows).items():
                self._add(figure, count)

    def _add(self, figure: Figure, count: int) -> None:
        if figure.dimension == rollup.TOTAL:
            self._by_hour[figure.hour, figure.outcome] += count
        else:
            self._by_name[figure.dimension][figure.name, figure.outcome] += count

    def buckets(self, since: datetime, until: datetime, bucket: timedelta) -> Iterator[Bucket]:
        """Give the counts of each hour or day of a span, those without any too."""
        width = bucket // timedelta(microseconds=1)
        counted: dict[int, Counter[str]] = defaultdict(Counter)
        for (hour, outcome), count in self._by_hour.items():
            counted[hour - hour % width][outcome] += count
        start, end = to_unix_microseconds(since), to_unix_microseconds(until)
        for begins_at in range(start - start % width, end, width):
            yield Bucket(from_unix_microseconds(begins_at), Counts(**counted[begins_at]))

    def totals(self) -> Counts:
        """Return the counts of the whole span."""
        counted: Counter[str] = Counter()
        for (_, outcome), count in self._by_hour.items():
            counted[outcome] += count
        return Counts(**counted)

    def ranked(self, dimension: str) -> list[Ranked]:
        """Return those of whom most is told, in order."""
        counted: dict[str, Counter[str]] = defaultdict(Counter)
        for (name, outcome), count in self._by_name[dimension].items():
            counted[name][outcome] += count
        in_order = sorted(counted, key=lambda name: (-counted[name].total(), name))
        return [Ranked(name, Counts(**counted[name])) for name in in_order[:TOP]]

    def latency(self) -> Latency | None:
        """Return how long OpenAI took; None when it gave no token."""
        counted: Counter[int] = Counter()
        for (bound, _), count in self._by_name[rollup.LATENCY].items():
            counted[int(bound)] += count
        if not counted:
            return None
        return Latency(p50_ms=_percentile(counted, 0.5), p95_ms=_percentile(counted, 0.95))


def _between(dimension: str, since: int, until: int) -> list[sa.ColumnElement[bool]]:
    c = figures.c
    return [c.dimension == dimension, c.hour >= since, c.hour < until]


def _rows(
    tx: sa.Connection, first: int, last: int, since: int, until: int
) -> Iterator[Sequence[Any]]:
    """Give the rows between two, both included, of a span of time, some at a time."""
    c = audit_events.c
    wanted = sa.select(c.seq, c.recorded_at, c.canon)
    wanted = wanted.where(c.seq <= last, c.recorded_at >= since, c.recorded_at < until)
    wanted = wanted.order_by(c.seq).limit(ROWS_AT_ONCE)
    while rows := tx.execute(wanted.where(c.seq >= first)).all():
        yield rows
        first = rows[-1].seq + 1


def _percentile(counted: Mapping[int, int], share: float) -> int:
    """Return what *share* of all is at most, reading between the bounds of the figures."""
    left = share * sum(counted.values())
    for bound in sorted(counted):
        if left <= counted[bound]:
            below = LATENCY_BOUNDS[max(LATENCY_BOUNDS.index(bound) - 1, 0)]
            return round(below + (bound - below) * left / counted[bound])
        left -= counted[bound]
    raise AssertionError("a share is at most 1")
