"""A clock that stands still until it is told to go on."""

from datetime import datetime, timedelta


class StandingClock:
    """Gives the same instant until `advance` moves it."""

    def __init__(self, start: datetime) -> None:
        self._now = start

    def __call__(self) -> datetime:
        return self._now

    def advance(self, **units: float) -> None:
        self._now += timedelta(**units)
