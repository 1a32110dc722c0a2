"""Spans of time that people ask for by name."""

from collections.abc import Callable, Mapping
from datetime import datetime, time, timedelta
from types import MappingProxyType
from typing import Literal, TypeAlias

Span: TypeAlias = Literal["1h", "today", "24h", "7d", "30d"]

_BEGINNINGS: Mapping[Span, Callable[[datetime], datetime]] = MappingProxyType(
    {
        "1h": lambda now: now - timedelta(hours=1),
        "today": lambda now: datetime.combine(now.date(), time(), now.tzinfo),
        "24h": lambda now: now - timedelta(hours=24),
        "7d": lambda now: now - timedelta(days=7),
        "30d": lambda now: now - timedelta(days=30),
    }
)


def beginning(span: Span, now: datetime) -> datetime:
    """Return when *span* began; it lasts until now.

    Args:
        span: Its name.
        now: In UTC, as our days are.
    """
    return _BEGINNINGS[span](now)
