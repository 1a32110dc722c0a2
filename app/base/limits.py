"""How often something may happen: moving windows, by the package ``limits``."""

import math
from collections import OrderedDict, deque
from dataclasses import dataclass

from limits import RateLimitItem, RateLimitItemPerDay, RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter

from app.base.clock import Clock
from app.base.errors import Problem, QuotaExceeded, RateLimited
from app.base.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Allowance:
    """So many times in any window, and the refusal beyond."""

    item: RateLimitItem
    refusal: type[Problem]

    @classmethod
    def per_minute(cls, name: str, times: int) -> "Allowance":
        """Allow *times* in any minute, separately for each *name*, that of the setting."""
        return cls(RateLimitItemPerMinute(times, namespace=name), RateLimited)

    @classmethod
    def per_day(cls, name: str, times: int) -> "Allowance":
        """Allow *times* in any 24 hours, separately for each *name*, that of the setting."""
        return cls(RateLimitItemPerDay(times, namespace=name), QuotaExceeded)


class Limits:
    """Counts in the memory of this process.

    Args:
        clock: The time of the windows.
        metrics: Where refusals are counted, by the name of the allowance.
    """

    def __init__(self, *, clock: Clock, metrics: Metrics | None = None) -> None:
        self._clock = clock
        self._metrics = metrics or Metrics()
        self._limiter = MovingWindowRateLimiter(_Windows(clock=clock))

    async def take(self, allowance: Allowance, *who: str) -> None:
        """Count one more time for *who*.

        Raises:
            RateLimited, QuotaExceeded: It is one too many, and is not counted. Says when to ask
                again, in whole seconds.
        """
        if await self._limiter.hit(allowance.item, *who):
            return
        self._metrics.limits_hit.labels(allowance.item.namespace).inc()
        window = await self._limiter.get_window_stats(allowance.item, *who)
        wait = max(1, math.ceil(window.reset_time - self._clock().timestamp()))
        raise allowance.refusal(
            f"{allowance.refusal.title}. Ask again in {wait} seconds.", retry_after_seconds=wait
        )


class _Windows(MemoryStorage):
    """The moving windows of this process, on our clock.

    The storage of the package walks over every key on each hit and takes a thread for each, which
    is slow as soon as there are many users; here a hit looks at its own window and forgets at most
    two that have passed.
    """

    def __init__(self, *, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self._by_length: dict[int, OrderedDict[str, deque[float]]] = {}

    async def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        now = self._clock().timestamp()
        windows = self._by_length.setdefault(expiry, OrderedDict())
        for _ in range(2):  # the least lately used stand first
            oldest = next(iter(windows), None)
            if oldest is None or windows[oldest][-1] > now - expiry:
                break
            del windows[oldest]
        hits = windows.get(key) or deque()
        while hits and not now - expiry < hits[0] <= now:  # past, or from before a clock was set
            hits.popleft()
        if len(hits) + amount > limit:
            return False
        hits.extend([now] * amount)
        windows[key] = hits
        windows.move_to_end(key)
        return True

    async def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        del limit  # the signature is the package's
        now = self._clock().timestamp()
        windows = self._by_length.get(expiry)
        hits = windows.get(key) if windows else None
        live = [at for at in hits or () if now - expiry < at <= now]
        return (live[0] if live else now), len(live)
