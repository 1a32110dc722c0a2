"""How often something may happen: moving windows, and waits that grow with each failure."""

import math
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn, Protocol

from app.base.clock import Clock
from app.base.errors import Problem, QuotaExceeded, RateLimited
from app.base.metrics import Metrics

_MINUTE, _DAY = 60, 24 * 60 * 60  # seconds

MOST_WAITING = 50_000
"""Windows with growing waits that one process remembers; strangers make them, so there is an end.
The one used least lately is forgotten first."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """So many times in any window, and the refusal beyond.

    Args:
        name: That of the setting; what has the same name is counted together.
        times: How many are counted without a wait.
        seconds: Length of the window; what is older does not count.
        refusal: What the caller is told.
        first_wait: Seconds. When given, nobody waits for the window to pass: the next time comes
            so long after the last one, and each time twice as long.
        longest_wait: Where that growth ends, in seconds.
    """

    name: str
    times: int
    seconds: int
    refusal: type[Problem]
    first_wait: int = 0
    longest_wait: int = 0

    @classmethod
    def per_minute(
        cls, name: str, times: int, *, refusal: type[Problem] = RateLimited
    ) -> "Allowance":
        """Allow *times* in any minute, separately for each *name*, that of the setting."""
        return cls(name, times, _MINUTE, refusal)

    @classmethod
    def per_day(cls, name: str, times: int) -> "Allowance":
        """Allow *times* in any 24 hours, separately for each *name*, that of the setting."""
        return cls(name, times, _DAY, QuotaExceeded)

    def wait(self, hits: Sequence[float], now: float) -> float:
        """Return the seconds until one more may be counted; 0 or less: at once.

        Args:
            hits: Those of the window, oldest first, in seconds.
            now: Likewise.
        """
        over = len(hits) - self.times
        if over < 0:
            return 0
        if self.first_wait:
            return hits[-1] + min(self.first_wait * 2.0**over, self.longest_wait) - now
        return hits[over] + self.seconds - now


Taking = tuple[Allowance, tuple[str, ...]]
"""What is counted, and for whom."""


@dataclass(frozen=True, slots=True)
class Full:
    """One of the windows has no room; *wait* is in seconds."""

    allowance: Allowance
    wait: float


class Windows(Protocol):
    """Where the hits are kept."""

    async def take(self, takings: Sequence[Taking]) -> Full | None:
        """Count one more in each window, or in none; then return the one with the longest wait."""

    async def is_full(self, taking: Taking) -> bool:
        """Tell whether the window has no room, and count nothing."""

    async def give_back(
        self, *, once: Sequence[Taking] = (), all_of: Sequence[Taking] = ()
    ) -> None:
        """Forget the newest hit in each of *once*, and every hit in *all_of*."""


class Limits:
    """Counts, and refuses what is too much.

    Args:
        windows: Where the hits are kept: in this process, or where others see them.
        metrics: Where refusals are counted, by the name of the allowance.
    """

    def __init__(self, windows: Windows, *, metrics: Metrics | None = None) -> None:
        self._windows = windows
        self._metrics = metrics or Metrics()

    async def take(self, allowance: Allowance, *who: str) -> None:
        """Count one more time for *who*.

        Raises:
            Problem: It is one too many, and is not counted: the refusal of *allowance*, which
                says when to ask again, in whole seconds.
        """
        await self.take_all((allowance, who))

    async def take_all(self, *takings: Taking) -> None:
        """Count one more time for each of *takings*, in one step: for all of them or for none.

        Raises:
            Problem: One is too many. The refusal is that of the longest wait.
        """
        full = await self._windows.take(takings)
        if full is not None:
            self.refuse(full)

    def refuse(self, full: Full) -> NoReturn:
        """Refuse with what *full* says, and count the refusal."""
        refusal = full.allowance.refusal
        self._metrics.limits_hit.labels(full.allowance.name).inc()
        wait = max(1, math.ceil(full.wait))
        raise refusal(f"{refusal.title}. Ask again in {wait} seconds.", retry_after_seconds=wait)

    async def note(self, allowance: Allowance, *who: str) -> None:
        """Count one more time for *who* while there is room; refuses nothing."""
        await self._windows.take([(allowance, who)])

    async def is_full(self, allowance: Allowance, *who: str) -> bool:
        """Tell whether one more would be too many for *who*. Counts nothing."""
        return await self._windows.is_full((allowance, who))

    async def give_back(
        self, *, once: Sequence[Taking] = (), all_of: Sequence[Taking] = ()
    ) -> None:
        """Undo the last time of each of *once*, and every time of each of *all_of*."""
        await self._windows.give_back(once=once, all_of=all_of)


class MemoryWindows:
    """The windows of this process.

    A hit looks at its own window and forgets at most two that have passed, so tidying up costs the
    same however many there are.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # The instants of each window, by the name of the allowance; the least lately used first.
        self._by_name: dict[str, OrderedDict[tuple[str, ...], deque[float]]] = {}

    async def take(self, takings: Sequence[Taking]) -> Full | None:
        """See `Windows`."""
        now = self._clock().timestamp()
        full: Full | None = None
        live = []
        for allowance, who in takings:
            hits = self._live(allowance, who, now)
            wait = allowance.wait(hits, now)
            if wait > 0 and (full is None or wait > full.wait):
                full = Full(allowance, wait)
            live.append(hits)
        if full is not None:
            return full
        for (allowance, who), hits in zip(takings, live, strict=True):
            hits.append(now)
            windows = self._by_name[allowance.name]
            windows[who] = hits
            windows.move_to_end(who)
            if allowance.first_wait and len(windows) > MOST_WAITING:
                windows.popitem(last=False)
        return None

    async def is_full(self, taking: Taking) -> bool:
        """See `Windows`."""
        allowance, who = taking
        now = self._clock().timestamp()
        return allowance.wait(self._live(allowance, who, now), now) > 0

    async def give_back(
        self, *, once: Sequence[Taking] = (), all_of: Sequence[Taking] = ()
    ) -> None:
        """See `Windows`."""
        for allowance, who in once:
            windows = self._by_name.get(allowance.name, OrderedDict())
            hits = windows.get(who)
            if hits:
                hits.pop()
            if not hits:
                windows.pop(who, None)
        for allowance, who in all_of:
            self._by_name.get(allowance.name, OrderedDict()).pop(who, None)

    def _live(self, allowance: Allowance, who: tuple[str, ...], now: float) -> deque[float]:
        """Return the hits of a window that still count; one that has none is not kept."""
        since = now - allowance.seconds
        windows = self._by_name.setdefault(allowance.name, OrderedDict())
        for _ in range(2):
            oldest = next(iter(windows), None)
            if oldest is None or windows[oldest][-1] > since:
                break
            del windows[oldest]
        hits = windows.get(who) or deque()
        while hits and not since < hits[0] <= now:  # past, or from before a clock was set
            hits.popleft()
        if not hits:
            windows.pop(who, None)
        return hits
