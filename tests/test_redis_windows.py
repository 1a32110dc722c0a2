"""Windows in a real Redis: one count for all, and a count of one's own while it is away."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from time import monotonic

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from structlog.testing import capture_logs

from app.base.clock import system_clock
from app.base.errors import QuotaExceeded, RateLimited
from app.base.limits import Allowance, Full, Limits, MemoryWindows, Taking
from app.base.metrics import Metrics
from app.base.redis_windows import PATIENCE_SECONDS, RedisWindows
from tests.clients.tls import tls_proxy
from tests.redis_server import PASSWORD, RedisServer, redis_server
from tests.service import free_port
from tests.waiting import until

pytestmark = pytest.mark.outside

KEY = b"0123456789abcdef"
THREE = Allowance.per_minute("test", 3)
TEN_A_DAY = Allowance.per_day("a_day", 10)
SHORT = Allowance("short", 2, 1, RateLimited)
GROWING = Allowance("growing", 2, 60, RateLimited, 1, 4)


@pytest.fixture(scope="module")
def one_server() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
async def redis(one_server: RedisServer) -> AsyncIterator[Redis]:
    """The server past our own code, with nothing in it."""
    redis = Redis.from_url(one_server.url, decode_responses=True)
    await redis.flushall()
    yield redis
    await redis.aclose()


class Process:
    """What one process of the service has: windows, metrics and what it writes of them."""

    def __init__(self, url: str, *, key: bytes = KEY) -> None:
        self.metrics = Metrics()
        otherwise = MemoryWindows(system_clock)
        self.windows = RedisWindows(
            SecretStr(url), key=key, otherwise=otherwise, metrics=self.metrics
        )
        self.limits = Limits(self.windows, metrics=self.metrics)

    @property
    def degraded(self) -> bool:
        return "\nrealtime_tokens_limits_degraded 1.0\n" in self.metrics.exposition().decode()

    async def may(self, *takings: Taking) -> bool:
        return await self.windows.take(takings) is None


@pytest.fixture
async def processes(one_server: RedisServer, redis: Redis) -> AsyncIterator[list[Process]]:
    two = [Process(one_server.url) for _ in range(2)]
    yield two
    for process in two:
        await process.windows.close()


async def test_two_processes_count_together(processes: list[Process]) -> None:
    one, other = processes
    await one.limits.take(THREE, "alice")
    await other.limits.take(THREE, "alice")
    await one.limits.take(THREE, "alice")

    with pytest.raises(RateLimited) as caught:
        await other.limits.take(THREE, "alice")
    await other.limits.take(THREE, "bob")

    assert caught.value.retry_after_seconds in {59, 60}
    assert not one.degraded


async def test_of_many_at_once_as_many_pass_as_the_limit_says(processes: list[Process]) -> None:
    fifty = Allowance.per_minute("fifty", 50)

    passed = await asyncio.gather(
        *(process.may((fifty, ("alice",))) for _ in range(100) for process in processes)
    )

    assert passed.count(True) == 50
    assert not any(process.degraded for process in processes)


async def test_a_window_moves(processes: list[Process]) -> None:
    one, other = processes
    assert await one.may((SHORT, ()))
    await asyncio.sleep(0.5)
    assert await other.may((SHORT, ()))
    assert not await one.may((SHORT, ()))

    await asyncio.sleep(0.55)
    assert await one.may((SHORT, ()))
    assert not await one.may((SHORT, ()))


async def test_several_are_taken_in_one_trip_all_or_none_and_the_longest_wait_is_told(
    processes: list[Process], redis: Redis
) -> None:
    one, other = processes
    both = ((THREE, ("alice",)), (TEN_A_DAY, ("alice",)))
    assert await one.may(*both)
    for _ in range(2):
        reads = (await redis.info("stats"))["total_reads_processed"]
        assert await one.may(*both)
        # One is that of the mint, the other asks for the figure.
        assert (await redis.info("stats"))["total_reads_processed"] == reads + 2

    for _ in range(20):
        with pytest.raises(RateLimited):
            await other.limits.take_all(*both)
    for _ in range(7):  # of the ten, three are taken, and those that were refused are not
        assert await other.may((TEN_A_DAY, ("alice",)))
    with pytest.raises(QuotaExceeded):
        await other.limits.take_all(*both)


async def test_waits_grow_up_to_the_longest(processes: list[Process], redis: Redis) -> None:
    one, other = processes
    waits = []
    for _ in range(12):
        full = await one.windows.take([(GROWING, ("alice",))])
        if full is not None:
            waits.append(round(full.wait))
            await age(redis, "growing", full.wait)
        assert await other.windows.is_full((GROWING, ("bob",))) is False

    assert waits == [1, 2, 4, 4, 4]


async def age(redis: Redis, name: str, seconds: float) -> None:
    """Make every instant of a window older, as if that time had passed."""
    async for key in redis.scan_iter(f"*:{name}:*"):
        instants = await redis.lrange(key, 0, -1)
        older = [str(int(at) - int(seconds * 1_000_000) - 1_000) for at in instants]
        await redis.delete(key)
        await redis.rpush(key, *older)


async def test_what_is_given_back_may_be_taken_again(processes: list[Process]) -> None:
    one, other = processes
    taking = (THREE, ("alice",))
    for _ in range(3):
        assert await one.may(taking)
    assert await other.windows.is_full(taking)

    await other.windows.give_back(once=[taking])
    assert await one.may(taking)
    assert not await one.may(taking)

    await other.windows.give_back(all_of=[taking])
    for _ in range(3):
        assert await one.may(taking)


async def test_a_clock_that_is_set_back_does_not_keep_anybody_out(
    processes: list[Process], redis: Redis
) -> None:
    one, _ = processes
    for _ in range(3):
        assert await one.may((THREE, ("alice",)))
    await age(redis, "test", -3600)

    assert await one.may((THREE, ("alice",)))


async def test_nobody_can_be_read_from_what_stands_in_redis_and_all_of_it_expires(
    processes: list[Process], redis: Redis
) -> None:
    who = ("alice@example.com", "192.0.2.7")
    await processes[0].limits.take_all((THREE, who), (TEN_A_DAY, who))
    stranger = Process("redis://127.0.0.1", key=b"of another installation")

    kept = {key: await redis.ttl(key) async for key in redis.scan_iter()}
    names = [processes[0].windows._name((THREE, who)), stranger.windows._name((THREE, who))]

    assert sorted(kept.values()) == [60, 24 * 3600]
    assert all(key.startswith("realtime-tokens:limit:") for key in kept)
    assert not [key for key in kept if "alice" in key or "192" in key]
    assert names[0] in kept
    assert names[0] != names[1]


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A server of the test's own, to be harmed."""
    with redis_server() as server:
        yield server


@pytest.fixture
async def process(server: RedisServer) -> AsyncIterator[Process]:
    process = Process(server.url)
    yield process
    await process.windows.close()


async def back(process: Process) -> None:
    """Ask on until Redis counts again."""

    async def shared() -> bool:
        await process.may((TEN_A_DAY, ("somebody",)))
        return not process.degraded

    await until(shared)


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_without_redis_each_process_counts_for_itself_until_it_is_back(
    how: str, server: RedisServer, process: Process
) -> None:
    hit, heal = (server.kill, server.start) if how == "killed" else (server.freeze, server.thaw)
    assert await process.may((THREE, ("alice",)))
    hit()

    with capture_logs() as lines:
        began = monotonic()
        passed = [await process.may((THREE, ("alice",))) for _ in range(500)]
        took = monotonic() - began
        assert process.degraded
        heal()
        await back(process)

    assert passed == [True] * 3 + [False] * 497
    assert took < 2 * PATIENCE_SECONDS  # one caller has waited, the others have not
    assert [line["event"] for line in lines] == ["limits_degraded", "limits_shared_again"]
    assert await process.may((SHORT, ("alice",)))


async def test_while_redis_is_frozen_one_caller_a_second_waits_for_it(
    server: RedisServer, process: Process
) -> None:
    await process.may((SHORT, ()))
    server.freeze()
    waited = 0
    began = monotonic()
    while monotonic() - began < 3:
        asked = monotonic()
        await process.may((SHORT, ()))
        waited += monotonic() - asked > PATIENCE_SECONDS / 2
        await asyncio.sleep(0.01)

    assert 2 <= waited <= 3


async def test_an_answer_that_comes_too_late_is_not_taken_for_another(
    server: RedisServer, process: Process
) -> None:
    for _ in range(3):
        assert await process.may((THREE, ("alice",)))
    server.freeze()
    await asyncio.gather(*(process.may((THREE, ("alice",))) for _ in range(40)))
    server.thaw()
    await back(process)

    answers = await asyncio.gather(
        *(process.windows.take([(THREE, (f"user {number}",))]) for number in range(40)),
        *(process.windows.take([(THREE, ("alice",))]) for _ in range(40)),
    )

    assert answers[:40] == [None] * 40
    assert all(isinstance(answer, Full) for answer in answers[40:])


@pytest.mark.parametrize(
    "url",
    [
        "redis://:canary@127.0.0.1:{port}/0",
        "redis://127.0.0.1:{port}/0",
        "redis://127.0.0.1:{closed}/0",
        "rediss://:canary@127.0.0.1:{port}/0",
        "redis://no.such.host.invalid/0",
    ],
)
async def test_a_redis_that_cannot_be_used_is_no_more_than_a_line_without_its_password(
    url: str, one_server: RedisServer
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        process = Process(url.format(port=one_server.port, closed=closed.getsockname()[1]))
        with capture_logs() as lines:
            passed = [await process.may((THREE, ("alice",))) for _ in range(4)]
    await process.windows.close()

    assert passed == [True, True, True, False]
    assert process.degraded
    [line] = lines
    assert line["event"] == "limits_degraded"
    assert "canary" not in str(line)


@pytest.mark.parametrize("authority_is", ["known", "unknown"])
async def test_with_tls_redis_is_asked_only_when_its_certificate_is_known(
    authority_is: str, one_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    async with tls_proxy(tmp_path, port=port, upstream_port=one_server.port) as authority:
        if authority_is == "known":
            monkeypatch.setenv("SSL_CERT_FILE", str(authority))
        process = Process(f"rediss://:{PASSWORD}@127.0.0.1:{port}/0")
        await process.may((THREE, ("alice",)))
        await process.windows.close()

    assert process.degraded == (authority_is == "unknown")


async def test_a_redis_without_our_script_is_given_it_again(
    processes: list[Process], redis: Redis
) -> None:
    one, _ = processes
    assert await one.may((THREE, ("alice",)))
    await redis.script_flush()

    assert await one.may((THREE, ("alice",)))
    assert not one.degraded
