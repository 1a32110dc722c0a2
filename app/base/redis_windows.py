"""Windows in Redis, which every process sees; while Redis is away, each has its own again."""

import asyncio
import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from time import monotonic
from typing import Any

import structlog
from pydantic import SecretStr
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from app.base.limits import Full, Taking, Windows
from app.base.metrics import Metrics

PATIENCE_SECONDS = 0.25
"""How long a caller waits for Redis; it answers within a millisecond when it is well."""

PAUSE_SECONDS = 1.0
"""After a failure Redis is left alone for so long; then one caller tries."""

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
_TAKE_SHA1 = hashlib.sha1(_TAKE.encode(), usedforsecurity=False).hexdigest()  # its name in Redis


@dataclass(slots=True, eq=False)
class _Question:
    """Commands on their way to Redis; their answers, or None when it is away."""

    commands: Sequence[tuple[str | int, ...]]
    answers: asyncio.Future[list[Any] | None]

    def settle(self, answers: list[Any] | None) -> None:
        """Let the caller go on, unless they have gone away."""
        if not self.answers.done():
            self.answers.set_result(answers)


class RedisWindows:
    """The windows of all processes with the same Redis and the same installation secret.

    There is one connection. While Redis answers what was asked, the next questions gather, and go
    out together: of many at once each costs little, and none waits for a connection.

    Args:
        url: ``redis://`` or ``rediss://``.
        key: Makes the names of the keys in Redis: who is counted cannot be read from them.
        otherwise: Where hits are kept while Redis is away.
        metrics: Where it says that Redis is away.
    """

    def __init__(self, url: SecretStr, *, key: bytes, otherwise: Windows, metrics: Metrics) -> None:
        self._redis = Redis.from_url(
            url.get_secret_value(),
            retry=Retry(NoBackoff(), 0),  # asking again after a lost answer might count twice
        )
        self._key = key
        self._otherwise = otherwise
        self._metrics = metrics
        self._waiting: list[_Question] = []
        self._asking: asyncio.Task[None] | None = None
        self._away = False
        self._not_before = 0.0
        self._logger = structlog.get_logger(__name__)

    async def take(self, takings: Sequence[Taking]) -> Full | None:
        """See `Windows`. One round trip, whatever the number of windows."""
        answers = await self._ask(self._script(takings, count=True))
        if answers is None:
            return await self._otherwise.take(takings)
        full, wait = answers[0]
        return Full(takings[full - 1][0], wait / 1_000_000) if full else None

    async def is_full(self, taking: Taking) -> bool:
        """See `Windows`."""
        answers = await self._ask(self._script([taking], count=False))
        if answers is None:
            return await self._otherwise.is_full(taking)
        full, _ = answers[0]
        return bool(full)

    async def give_back(
        self, *, once: Sequence[Taking] = (), all_of: Sequence[Taking] = ()
    ) -> None:
        """See `Windows`."""
        newest = [("LPOP", self._name(taking)) for taking in once]
        whole = [("DEL", self._name(taking)) for taking in all_of]
        if await self._ask(*newest, *whole) is None:
            await self._otherwise.give_back(once=once, all_of=all_of)

    async def close(self) -> None:
        """Close the connection. Nobody asks any more."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])
        await self._redis.aclose()

    def _script(self, takings: Sequence[Taking], *, count: bool) -> tuple[str | int, ...]:
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
        names = map(self._name, takings)
        return ("EVALSHA", _TAKE_SHA1, len(takings), *names, int(count), *numbers)

    def _name(self, taking: Taking) -> str:
        allowance, who = taking
        digest = hmac.digest(self._key, "\0".join(who).encode("utf-8", "replace"), hashlib.sha256)
        return f"{_PREFIX}:{allowance.name}:{digest[:16].hex()}"

    async def _ask(self, *commands: tuple[str | int, ...]) -> list[Any] | None:
        """Return the answers of Redis to *commands*, or None while it is away or slow."""
        if self._away:
            if monotonic() < self._not_before:
                return None
            self._not_before = monotonic() + PAUSE_SECONDS  # this one tries, others do not wait
        question = _Question(commands, asyncio.get_running_loop().create_future())
        self._waiting.append(question)
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask_on(), name="limits")
        return await question.answers

    async def _ask_on(self) -> None:
        """Ask Redis whatever waits, until nothing does."""
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                answers = iter(await self._answers([c for asked in batch for c in asked.commands]))
            except Exception as fault:  # noqa: BLE001 - whatever it is, there are other windows
                self._lost(fault)
                batch += self._waiting  # they would wait in vain
                self._waiting = []
                for question in batch:
                    question.settle(None)
            else:
                self._found()
                for question in batch:
                    question.settle(list(islice(answers, len(question.commands))))

    async def _answers(self, commands: Sequence[tuple[str | int, ...]]) -> list[Any]:
        """Ask Redis, in one round trip.

        Raises:
            TimeoutError: It did not answer in time.
            Exception: It is not there, or does not take the commands; as the client names it.
        """
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.script_load(_TAKE)  # it may have been started anew
            for command in commands:
                pipeline.execute_command(*command)
            asking = asyncio.ensure_future(pipeline.execute())
            try:
                # In two halves: when our own loop stalls, the answer is there after the first.
                for _ in range(2):
                    await asyncio.wait([asking], timeout=PATIENCE_SECONDS / 2)
                if not asking.done():
                    raise TimeoutError
            finally:
                asking.cancel()
                await asyncio.wait([asking])
        return asking.result()[1:]

    def _found(self) -> None:
        if self._away:
            self._away = False
            self._metrics.limits_degraded.set(0)
            self._logger.info("limits_shared_again")

    def _lost(self, fault: Exception) -> None:
        self._not_before = monotonic() + PAUSE_SECONDS
        if not self._away:
            self._away = True
            self._metrics.limits_degraded.set(1)
            # Its kind alone: what Redis and its client say may tell how they were reached.
            self._logger.warning("limits_degraded", fault=type(fault).__name__)
