"""Windows in Redis, which every process sees; while Redis is away, each has its own again."""

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from time import monotonic
from typing import TypeVar

import structlog
from pydantic import SecretStr
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from app.base.limits import Full, Taking, Windows
from app.base.metrics import Metrics

T = TypeVar("T")

PATIENCE_SECONDS = 0.25
"""How long a caller waits for Redis; it answers within a millisecond when it is well."""

PAUSE_SECONDS = 1.0
"""After a failure Redis is left alone for so long; then one caller tries."""

_CONNECTIONS = 32
_PREFIX = "realtime-tokens:limit"

# A window is a list of instants in Unix µs, the newest first; it expires with its newest. The clock
# is that of Redis, for those of the instances differ. Instants are written out in full, because Lua
# rounds when it makes texts of numbers.
#
# KEYS: windows. ARGV[1]: 1 to count one more in each, when all have room; then for each its times,
# seconds, first wait and longest wait, as `Allowance` has them.
# Returns 0, 0; or the number of the window with the longest wait, and that wait in µs.
_TAKE = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local full, longest = 0, 0
for i, key in ipairs(KEYS) do
  local times, seconds, first, last = unpack(ARGV, 4 * i - 2, 4 * i + 1)
  times = tonumber(times)
  if tonumber(redis.call('LINDEX', key, 0) or 0) > now then
    redis.call('DEL', key)  -- the clock was set back
  end
  while tonumber(redis.call('LINDEX', key, -1) or now) <= now - seconds * 1000000 do
    redis.call('RPOP', key)
  end
  local over = redis.call('LLEN', key) - times
  if over >= 0 then
    local ready
    if tonumber(first) > 0 then
      ready = redis.call('LINDEX', key, 0) + math.min(first * 2 ^ over, last) * 1000000
    else
      ready = redis.call('LINDEX', key, times - 1) + seconds * 1000000
    end
    if ready - now > longest then
      full, longest = i, ready - now
    end
  end
end
if full == 0 and ARGV[1] == '1' then
  for i, key in ipairs(KEYS) do
    redis.call('LPUSH', key, string.format('%.0f', now))
    redis.call('EXPIRE', key, ARGV[4 * i - 1])
  end
end
return {full, longest}
"""


class RedisWindows:
    """The windows of all processes with the same Redis and the same installation secret.

    Args:
        url: ``redis://`` or ``rediss://``.
        key: Makes the names of the keys in Redis: who is counted cannot be read from them.
        otherwise: Where hits are kept while Redis is away.
        metrics: Where it says that Redis is away.
    """

    def __init__(self, url: SecretStr, *, key: bytes, otherwise: Windows, metrics: Metrics) -> None:
        pool = ConnectionPool.from_url(
            url.get_secret_value(),
            max_connections=_CONNECTIONS,
            socket_connect_timeout=PATIENCE_SECONDS,
            # Asking again after a lost answer might count twice.
            retry=Retry(NoBackoff(), 0),
        )
        self._redis = Redis.from_pool(pool)
        self._take = self._redis.register_script(_TAKE)
        self._places = asyncio.Semaphore(_CONNECTIONS)  # in the order of arrival, unlike the pool
        self._key = key
        self._otherwise = otherwise
        self._metrics = metrics
        self._away = False
        self._not_before = 0.0
        self._logger = structlog.get_logger(__name__)

    async def take(self, takings: Sequence[Taking]) -> Full | None:
        """See `Windows`. One round trip, whatever the number of windows."""
        return await self._ask(
            lambda: self._run(takings, count=True), lambda: self._otherwise.take(takings)
        )

    async def is_full(self, taking: Taking) -> bool:
        """See `Windows`."""
        return await self._ask(lambda: self._full(taking), lambda: self._otherwise.is_full(taking))

    async def give_back(
        self, *, once: Sequence[Taking] = (), all_of: Sequence[Taking] = ()
    ) -> None:
        """See `Windows`."""

        async def forget() -> None:
            async with self._redis.pipeline(transaction=False) as commands:
                for taking in once:
                    commands.lpop(self._name(taking))
                for taking in all_of:
                    commands.delete(self._name(taking))
                await commands.execute()

        await self._ask(forget, lambda: self._otherwise.give_back(once=once, all_of=all_of))

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    async def _run(self, takings: Sequence[Taking], *, count: bool) -> Full | None:
        numbers = [
            number
            for allowance, _ in takings
            for number in (
                allowance.times,
                allowance.seconds,
                allowance.first_wait,
                allowance.longest_wait,
            )
        ]
        full, wait = await self._take(
            keys=[self._name(taking) for taking in takings], args=[int(count), *numbers]
        )
        return Full(takings[full - 1][0], wait / 1_000_000) if full else None

    async def _full(self, taking: Taking) -> bool:
        return await self._run([taking], count=False) is not None

    def _name(self, taking: Taking) -> str:
        allowance, who = taking
        digest = hmac.digest(self._key, "\0".join(who).encode("utf-8", "replace"), hashlib.sha256)
        return f"{_PREFIX}:{allowance.name}:{digest[:16].hex()}"

    async def _ask(
        self, redis: Callable[[], Awaitable[T]], otherwise: Callable[[], Awaitable[T]]
    ) -> T:
        """Ask *redis*, or *otherwise* while it is away or slow."""
        if self._away:
            if monotonic() < self._not_before:
                return await otherwise()
            self._not_before = monotonic() + PAUSE_SECONDS  # this one tries, the others do not wait
        try:
            async with asyncio.timeout(PATIENCE_SECONDS), self._places:
                answer = await redis()
        except (RedisError, OSError, TimeoutError) as fault:
            await self._lose(fault)
            return await otherwise()
        if self._away:
            self._away = False
            self._metrics.limits_degraded.set(0)
            self._logger.info("limits_shared_again")
        return answer

    async def _lose(self, fault: Exception) -> None:
        self._not_before = monotonic() + PAUSE_SECONDS
        with suppress(RedisError):  # idle connections that lead nowhere would each be tried in turn
            await self._redis.connection_pool.disconnect(inuse_connections=False)
        if not self._away:
            self._away = True
            self._metrics.limits_degraded.set(1)
            # Its kind alone: what Redis and its client say may tell how they were reached.
            self._logger.warning("limits_degraded", fault=type(fault).__name__)
