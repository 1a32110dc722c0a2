"""Several processes over one PostgreSQL database: three services, and one service with workers."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.postgres import PostgresServer, postgres_server
from tests.service import Service, is_gone, run_command
from tests.stage import DRAINED_SECONDS, KEY, TOKEN, Stage, load, stage
from tests.waiting import until

pytestmark = [pytest.mark.outside, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def one(
    tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer
) -> AsyncIterator[Stage]:
    """One installation; its accounts and its log grow from test to test."""
    folder = tmp_path_factory.mktemp("several")
    async with stage(folder, DATABASE_URL=postgres.new_database()) as one:
        yield one


async def mint(stage: Stage, url: str, count: int) -> list[httpx.Response]:
    """Mint *count* times at once."""
    async with httpx.AsyncClient(headers=stage.headers, timeout=30) as client:
        return await asyncio.gather(*(client.post(url + TOKEN) for _ in range(count)))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def three(one: Stage) -> AsyncIterator[list[Service]]:
    with ExitStack() as stack:
        yield [stack.enter_context(one.serving()) for _ in range(3)]


async def test_three_services_mint_at_once_into_one_gapless_chain(
    one: Stage, three: list[Service]
) -> None:
    async with load(one, *three) as callers:
        while len(one.held) < 300:
            await callers.next_token(within=5)

    assert callers.answers.keys() == {200}
    assert await one.check() == set()
    verified = one.run("audit", "verify")
    assert verified.returncode == 0, verified.stdout


async def test_a_user_disabled_at_one_service_mints_nothing_at_the_others(
    three: list[Service],
) -> None:
    email, password = "bea@example.com", "correct horse battery staple"
    here, *others = three
    here.run("users", "add", email, "--password-stdin", stdin=password)
    async with httpx.AsyncClient(headers=here.sign_in(email, password)) as client:
        before = [await client.post(service.url + TOKEN) for service in others]
        here.run("users", "disable", email)
        after = [await client.post(service.url + TOKEN) for service in others]

    assert [answer.status_code for answer in before] == [200, 200]
    assert {answer.status_code for answer in after} <= {401, 403}


async def test_a_key_revoked_at_one_service_mints_nothing_at_the_others(
    three: list[Service],
) -> None:
    here, *others = three
    made = here.run("keys", "create", "a backend")
    headers = {"Authorization": f"Bearer {made.stdout.strip()}"}
    body = {"user": "their-user-17"}
    async with httpx.AsyncClient(headers=headers) as client:
        before = [await client.post(service.url + TOKEN, json=body) for service in others]
        here.run("keys", "revoke", made.stderr.split()[0])
        after = [await client.post(service.url + TOKEN, json=body) for service in others]

    assert [answer.status_code for answer in before] == [200, 200]
    assert [answer.status_code for answer in after] == [401, 401]


async def test_all_workers_serve(one: Stage) -> None:
    with one.serving(WORKERS=3) as service:
        at_start = {pid: time_of(pid) for pid in await service.workers(3)}
        async with asyncio.timeout(30):
            # On new connections each time: a worker keeps those that it has.
            while any(time_of(pid) == before for pid, before in at_start.items()):
                answers = await asyncio.gather(*(mint(one, service.url, 1) for _ in range(10)))
                assert [answer.status_code for [answer] in answers] == [200] * 10

    assert await one.check() == set()


def time_of(pid: int) -> int:
    """Return the processor time of a process in clock ticks, from proc_pid_stat(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_a_worker_that_ends_is_replaced_and_the_others_mint_on(
    one: Stage, how: signal.Signals
) -> None:
    with one.serving(WORKERS=2) as service:
        victim, other = await service.workers(2)
        async with load(one, service) as callers:
            os.kill(victim, how)
            await callers.next_token(within=2)
            workers = await service.workers(2, without=victim)

    assert other in workers
    assert callers.answers.keys() <= {200, 0}  # 0: what the victim was answering


async def test_a_worker_is_replaced_while_the_database_is_away(tmp_path: Path) -> None:
    with postgres_server() as server:
        async with stage(tmp_path, DATABASE_URL=server.new_database()) as one:
            with one.serving(WORKERS=2) as service:
                victim, other = await service.workers(2)
                server.stop()
                os.kill(victim, signal.SIGKILL)
                workers = await service.workers(2, without=victim)
                refused = await mint(one, service.url, 20)
                server.start()
                minted = await mint(one, service.url, 20)
                banner = service.banner

    assert victim not in workers
    assert other in workers
    assert Counter(answer.status_code for answer in refused) == {503: 20}
    assert Counter(answer.status_code for answer in minted) == {200: 20}
    assert banner.count("Realtime token service") == 1, "each worker has said it"


async def test_workers_end_when_their_supervisor_is_killed(one: Stage) -> None:
    with one.serving(WORKERS=2) as service:
        workers = await service.workers(2)
        service.process.kill()

        async def all_gone() -> bool:
            return all(map(is_gone, workers))

        await until(all_gone, seconds=DRAINED_SECONDS)


REFUSED = {
    "on SQLite": ({"OPENAI_API_KEY": KEY}, "WORKERS: more than 1 needs DATABASE_URL"),
    "in the sandbox": (
        {"DATABASE_URL": "postgresql://nobody@127.0.0.1/x"},
        "WORKERS: more than 1 needs OPENAI_API_KEY",
    ),
}


@pytest.mark.parametrize(("settings", "told"), REFUSED.values(), ids=REFUSED)
async def test_workers_are_refused_with_one_line(
    tmp_path: Path, settings: dict[str, Any], told: str
) -> None:
    ended = await asyncio.to_thread(run_command, tmp_path, "serve", WORKERS=2, **settings)

    assert ended.returncode == 1
    assert ended.stderr.startswith(f"realtime-tokens: {told}")
    assert ended.stderr.count("\n") == 1
