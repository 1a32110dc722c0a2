"""Figures as stacked bars: where each part goes, in percent, so that it fits any window."""

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from datetime import datetime, timedelta

from app.audit.overview import Bucket, Counts, Overview

OUTCOMES = tuple(field.name for field in fields(Counts))
"""From the foot of a bar to its head."""

MOST_TICKS = 6
"""As many times fit below the bars on a phone."""

DAYS_WITH_DATES = 366
"""A chart of more days names months, with their years."""

_HOURS_BETWEEN_TICKS = (1, 2, 3, 4, 6, 12, 24)
_TOPS = (2, 4, 6, 8, 10)  # even, for the line halfway up is a whole number too


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a bar."""

    outcome: str
    count: int
    start: float  # percent of the whole length, from the foot
    size: float


@dataclass(frozen=True, slots=True)
class Bar:
    """What happened in an hour or a day."""

    begins_at: datetime
    counts: Counts
    x: float
    parts: Sequence[Part]


@dataclass(frozen=True, slots=True)
class Tick:
    """A time below the bars."""

    x: float  # of its middle
    label: str


@dataclass(frozen=True, slots=True)
class Chart:
    """Bars over time."""

    slot: float
    """How wide a bar is with the gap after it."""

    top: int
    """What a bar of full height stands for."""

    bars: Sequence[Bar]
    ticks: Sequence[Tick]


def chart_of(overview: Overview) -> Chart:
    """Return the counts of *overview* over time, as bars."""
    buckets = overview.buckets
    top = _top(max((total(bucket.counts) for bucket in buckets), default=0))
    slot = 100 / max(len(buckets), 1)
    return Chart(
        slot=slot,
        top=top,
        bars=[
            Bar(bucket.begins_at, bucket.counts, slot * place, stacked(bucket.counts, top))
            for place, bucket in enumerate(buckets)
        ],
        ticks=[
            Tick(slot * (place + 0.5), label) for place, label in _ticks(buckets, overview.bucket)
        ],
    )


def total(counts: Counts) -> int:
    """Return how many there are of all outcomes together."""
    return int(sum(astuple(counts)))


def stacked(counts: Counts, top: int) -> list[Part]:
    """Return the parts of one bar.

    Args:
        counts: What it shows.
        top: What its full length stands for; at least 1.
    """
    parts, start = [], 0.0
    for outcome, count in zip(OUTCOMES, astuple(counts), strict=True):
        size = 100 * count / top
        if count:
            parts.append(Part(outcome, count, start, size))
        start += size
    return parts


def _top(most: int) -> int:
    """Return a number that is easily read, at least *most*."""
    scale = 1
    while most > 10 * scale:
        scale *= 10
    return next(top * scale for top in _TOPS if top * scale >= most)


def _ticks(buckets: Sequence[Bucket], width: timedelta) -> Iterator[tuple[int, str]]:
    """Give the places of buckets below which a time stands, and how it is written."""
    step = -(-len(buckets) // MOST_TICKS)
    if width < timedelta(days=1):
        step = next(hours for hours in _HOURS_BETWEEN_TICKS if hours >= step)
        for place, bucket in enumerate(buckets):
            at = bucket.begins_at
            if at.hour % step == 0:
                yield place, f"{at:%d %b}" if at.hour == 0 else f"{at:%H:%M}"
    else:
        form = "%d %b" if len(buckets) <= DAYS_WITH_DATES else "%b %Y"
        for place in range(step // 2, len(buckets), step):
            yield place, f"{buckets[place].begins_at:{form}}"
