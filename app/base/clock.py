"""Time, as the service sees it: aware UTC datetimes from a clock that is passed in."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

Clock: TypeAlias = Callable[[], datetime]
"""Gives the present instant, aware, in UTC. Tests pass one that stands still."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def system_clock() -> datetime:
    """Return the present instant of this machine."""
    return datetime.now(UTC)


def to_unix_microseconds(at: datetime) -> int:
    """Return *at* as whole microseconds since 1970, exactly (no float in between)."""
    return (at - _EPOCH) // timedelta(microseconds=1)


def from_unix_microseconds(microseconds: int) -> datetime:
    """Return the instant *microseconds* after 1970, aware, in UTC."""
    return _EPOCH + timedelta(microseconds=microseconds)
