"""How many mints may be under way: so many at OpenAI, as many again waiting, and no more.

Beyond that a mint is refused at once, so that a service which is asked for ten times what it can do
still does what it can.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.base.errors import Overloaded
from app.base.metrics import Metrics

WAIT_SECONDS = 1.0
"""Longest wait for a place: about what a user would wait before asking again."""

RETRY_AFTER_SECONDS = 1
"""After which it makes sense to ask again: places come free all the time."""


class Admission:
    """The places for mints in this process.

    Args:
        places: Mints under way at once, 1 or more. As many may wait.
        metrics: Where it is counted.
        wait_seconds: Longest wait for a place.
    """

    def __init__(
        self, *, places: int, metrics: Metrics, wait_seconds: float = WAIT_SECONDS
    ) -> None:
        self._places = asyncio.Semaphore(places)  # serves in the order of arrival
        self._most_waiting = places
        self._waiting = 0
        self._wait_seconds = wait_seconds
        self._metrics = metrics
        self._refusals = metrics.limits_hit.labels("max_mints_in_flight")

    def check(self) -> None:
        """See that one more could at least wait. Costs next to nothing and holds nothing.

        Raises:
            Overloaded: All places are taken, and all places to wait.
        """
        if self._waiting >= self._most_waiting:
            self._refuse()

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold a place, after a short wait if need be.

        Raises:
            Overloaded: There is none, and too many wait already or the wait was in vain.
        """
        self.check()
        self._waiting += 1
        try:
            with self._metrics.waiting("mint"):
                if self._places.locked():
                    async with asyncio.timeout(self._wait_seconds):
                        await self._places.acquire()
                else:
                    await self._places.acquire()  # at once
        except TimeoutError:
            self._refuse()
        finally:
            self._waiting -= 1
        self._metrics.mints_in_flight.inc()
        try:
            yield
        finally:
            self._metrics.mints_in_flight.dec()
            self._places.release()

    def _refuse(self) -> None:
        self._refusals.inc()
        raise Overloaded(retry_after_seconds=RETRY_AFTER_SECONDS)
