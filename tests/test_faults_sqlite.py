"""Promise 3 on SQLite: locked or full, it is answered in time, and minting comes back by itself."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from tests.faults import SqliteFault, Target, full_disk, held_by_a_command, locked
from tests.service import Service
from tests.stage import (
    AWAY_SECONDS,
    BACK_SECONDS,
    DRAINED_SECONDS,
    EMAIL,
    PASSWORD,
    load,
    stage,
)

pytestmark = [pytest.mark.outside, pytest.mark.asyncio(loop_scope="module")]

MOST_MEMORY_KIB = 400 * 1024  # about 110 MiB at rest, and 64 MiB for each password being checked


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def target(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Target]:
    async with stage(tmp_path_factory.mktemp("faults")) as one:
        with one.serving() as service:
            yield Target(one, service)


FAULTS: list[SqliteFault] = [locked, held_by_a_command, full_disk]


@pytest.mark.parametrize("fault", FAULTS)
async def test_under_load_it_is_refused_in_time_and_minting_comes_back(
    target: Target, fault: SqliteFault
) -> None:
    async with load(target.stage, target.service) as callers:
        async with fault(target):
            began = time.monotonic()
            await callers.refused(20)
            asked = len(target.stage.upstream.asked)
            await callers.refused(60)
            assert len(target.stage.upstream.asked) == asked, "OpenAI was asked all the same"
        await callers.next_token(within=BACK_SECONDS)

    assert callers.answers.keys() == {200, 503}
    assert callers.codes == {"audit_unavailable"}
    assert callers.slowest_refusal_seconds(since=began) < AWAY_SECONDS
    await target.stage.check()


@pytest.mark.parametrize("fault", FAULTS)
async def test_signing_in_is_refused_in_time_too(target: Target, fault: SqliteFault) -> None:
    form = {"grant_type": "password", "username": EMAIL, "password": PASSWORD}
    async with httpx.AsyncClient(base_url=target.service.url) as client:
        async with fault(target):
            began = time.monotonic()
            refused = await client.post("/auth/token", data=form)
            took = time.monotonic() - began
        welcome = await client.post("/auth/token", data=form)

    assert (refused.status_code, refused.json()["error"]) == (503, "temporarily_unavailable")
    assert took < AWAY_SECONDS
    assert welcome.status_code == 200


@pytest.mark.parametrize("fault", FAULTS)
async def test_sigterm_ends_the_service_in_time_all_the_same(
    tmp_path: Path, fault: SqliteFault
) -> None:
    async with stage(tmp_path) as one:
        with one.serving() as service:
            async with load(one, service) as callers, fault(Target(one, service)):
                await callers.refused(1)
                began = time.monotonic()
                service.process.terminate()
                await asyncio.to_thread(service.process.wait, timeout=DRAINED_SECONDS)
                took = time.monotonic() - began

        assert took < DRAINED_SECONDS
        await one.check()


async def test_bodies_of_300_mb_harm_nobody(target: Target) -> None:
    async with load(target.stage, target.service) as callers:
        await asyncio.gather(*(asyncio.to_thread(send_300_mb, target) for _ in range(4)))

    assert callers.answers.keys() == {200}
    assert most_memory_kib(target.service) < MOST_MEMORY_KIB


def send_300_mb(target: Target) -> None:
    """Send chunks without listening until 300 MB are gone, or the line is."""
    address = ("127.0.0.1", int(target.service.settings["PORT"]))
    with socket.create_connection(address) as line, suppress(ConnectionError):
        line.sendall(
            b"POST /realtime/token HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for _ in range(300_000_000 // 0x10000):
            line.sendall(b"10000\r\n" + bytes(0x10000) + b"\r\n")


def most_memory_kib(service: Service) -> int:
    """Return the most memory that the service has ever had, from proc_pid_status(5)."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    [most] = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(most.split()[1])


async def test_after_all_that_its_log_is_whole_and_its_own_log_tells_of_no_bug(
    target: Target,
) -> None:
    await target.stage.check()
    verified = await asyncio.to_thread(target.service.run, "audit", "verify")

    assert verified.returncode == 0, verified.stdout
    assert "Traceback" not in target.service.stdout.read_text() + target.service.banner
