"""Redis killed and frozen under load, and limits that several services share."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.chaos import BACK_SECONDS, TOKEN, Stage, load, stage
from tests.postgres import PostgresServer
from tests.redis_server import RedisServer, redis_server
from tests.service import Service
from tests.waiting import until

pytestmark = pytest.mark.outside

METRICS_TOKEN = "whoever-reads-the-metrics-0123456789"
LIMIT = 50


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
async def one(tmp_path: Path, postgres: PostgresServer, redis: RedisServer) -> AsyncIterator[Stage]:
    """An installation with PostgreSQL and Redis."""
    async with stage(
        tmp_path,
        DATABASE_URL=postgres.new_database(),
        REDIS_URL=redis.url,
        METRICS_TOKEN=METRICS_TOKEN,
    ) as one:
        yield one


async def degraded(service: Service) -> bool:
    async with httpx.AsyncClient(base_url=service.url) as client:
        reader = {"Authorization": f"Bearer {METRICS_TOKEN}"}
        shown = (await client.get("/metrics", headers=reader)).text
    return "\nrealtime_tokens_limits_degraded 1.0\n" in shown


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_redis_goes_and_comes_back_under_load_and_every_mint_succeeds(
    how: str, one: Stage, redis: RedisServer
) -> None:
    hit, heal = (redis.kill, redis.start) if how == "killed" else (redis.freeze, redis.thaw)
    with one.serving() as service:
        async with load(one, service) as callers:
            for _ in range(3):
                await callers.next_token(within=BACK_SECONDS)
                assert not await degraded(service)
                await asyncio.to_thread(hit)
                await until(lambda: degraded(service), seconds=2)
                for _ in range(20):
                    await callers.next_token(within=1)
                await asyncio.to_thread(heal)
                await until(lambda: shared(service), seconds=BACK_SECONDS)

    assert callers.answers.keys() == {200}
    assert await one.check() == set()


async def shared(service: Service) -> bool:
    return not await degraded(service)


async def mint(one: Stage, services: list[Service], count: int) -> Counter[int]:
    """Ask *count* times at once, of each service in turn; return how that was answered."""
    async with httpx.AsyncClient(headers=one.headers, timeout=30) as client:
        urls = [services[number % len(services)].url + TOKEN for number in range(count)]
        answers = await asyncio.gather(*(client.post(url) for url in urls))
    return Counter(answer.status_code for answer in answers)


async def test_two_services_mint_together_as_often_as_the_limit_says(
    one: Stage, redis: RedisServer
) -> None:
    with ExitStack() as stack:
        one.settings["MINTS_PER_USER_PER_MINUTE"] = LIMIT
        services = [stack.enter_context(one.serving()) for _ in range(2)]

        assert await mint(one, services, 200) == {200: LIMIT, 429: 200 - LIMIT}
        assert not any([await degraded(service) for service in services])

    assert await one.check() == set()


async def test_a_service_starts_without_redis_and_then_counts_for_itself(
    one: Stage, redis: RedisServer
) -> None:
    redis.kill()
    one.settings["MINTS_PER_USER_PER_MINUTE"] = 5
    with one.serving() as service:
        assert await mint(one, [service], 20) == {200: 5, 429: 15}
        assert await degraded(service)

    redis.start()
