"""Every fault again and again, under load and at random moments: ``make chaos``.

The tests use some of the rounds; run as a program this is their long form, and prints how long the
service took each time.
"""

import asyncio
import math
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import TypeVar

from rich.console import Console
from rich.table import Table

from tests.faults import (
    PostgresFault,
    SqliteFault,
    Target,
    crashed,
    far_from,
    frozen,
    full,
    full_disk,
    held_by_a_command,
    locked,
    postgres_target,
    slowed,
    stalled,
    stopped,
    stuck_clients,
)
from tests.postgres import postgres_server
from tests.service import is_gone
from tests.stage import (
    AWAY_SECONDS,
    BACK_SECONDS,
    DRAINED_SECONDS,
    SETTLED_SECONDS,
    Stage,
    load,
    stage,
)

AnyTarget = TypeVar("AnyTarget", bound=Target)


@dataclass
class Toll:
    """What the rounds of one fault have brought; the times are in seconds, one for each round."""

    rounds: int
    tokens: int = 0
    """That clients hold in the end."""
    left_open: set[str] = field(default_factory=set)
    refused_in: list[float] = field(default_factory=list)
    """The slowest refusal while the fault lasted; some rounds have none."""
    back_in: list[float] = field(default_factory=list)
    """Until tokens were minted again, or until the next process was ready to."""
    settled_in: list[float] = field(default_factory=list)
    """From the start after a kill until whatever was left open had its outcome."""
    ended_in: list[float] = field(default_factory=list)
    """From SIGTERM to the end of the last process."""


def moments(count: int) -> list[float]:
    """Return *count* random delays in seconds, from the first token of a round to its fault."""
    return [random.uniform(0.0, 1.0) for _ in range(count)]  # noqa: S311 - no secrets


# The process ends ---------------------------------------------------------------------------


async def kill_the_service(stage: Stage, rounds: int, *, workers: int = 1) -> Toll:
    """Kill the service under load again and again; it is left dead.

    On SQLite each start finds and settles what the one before left.
    """
    toll = Toll(rounds)
    left_open = set[str]()
    for number, moment in enumerate(moments(rounds)):
        began = time.monotonic()
        with stage.serving(WORKERS=workers) as service:
            if number > 0:  # the first start of all takes longer: it migrates
                toll.back_in.append(time.monotonic() - began)
            if not stage.on_postgresql:
                await stage.settled(left_open, by=time.monotonic())
            async with load(stage, service):
                await asyncio.sleep(moment)
                service.kill()
        left_open = await stage.check()
        toll.left_open |= left_open
    return toll


async def kill_and_start(stage: Stage, rounds: int, *, workers: int = 1) -> Toll:
    """Kill the service in *rounds*, then see how long the last start takes to settle it all."""
    toll = await kill_the_service(stage, rounds, workers=workers)
    began = time.monotonic()
    with stage.serving(WORKERS=workers):
        await stage.settled(toll.left_open, by=began + SETTLED_SECONDS)
        toll.settled_in.append(time.monotonic() - began)
    return toll


async def kill_one_worker(stage: Stage, rounds: int) -> Toll:
    """Kill one of three workers after another; the others go on, and it is replaced."""
    toll = Toll(rounds)
    with stage.serving(WORKERS=3) as service:
        async with load(stage, service) as callers:
            for moment in moments(rounds):
                await asyncio.sleep(moment)
                victim = random.choice(await service.workers(3))  # noqa: S311 - no secret
                os.kill(victim, signal.SIGKILL)
                await callers.next_token(within=AWAY_SECONDS)
                began = time.monotonic()
                await service.workers(3, without=victim)
                toll.back_in.append(time.monotonic() - began)
        assert callers.answers.keys() <= {200, 0}, callers.answers
        toll.left_open = await stage.check()
    return toll


async def end_the_service(stage: Stage, rounds: int, *, workers: int = 1) -> Toll:
    """Send SIGTERM under load again and again: what is under way is finished."""
    toll = Toll(rounds)
    for moment in moments(rounds):
        with stage.serving(WORKERS=workers) as service:
            processes = await service.workers(workers) if workers > 1 else []
            async with load(stage, service) as callers:
                await asyncio.sleep(moment)
                began = time.monotonic()
                service.process.terminate()
                await asyncio.to_thread(service.process.wait, timeout=DRAINED_SECONDS)
                toll.ended_in.append(time.monotonic() - began)
        assert all(map(is_gone, processes))
        assert callers.answers.keys() <= {200, 0}, callers.answers  # 0: it listens no more
        assert await stage.check() == set(), "a mint under way was not finished"
    return toll


async def end_with_stuck_clients(stage: Stage, rounds: int) -> Toll:
    """Send SIGTERM while clients and OpenAI are stuck: what is under way gets its outcome."""
    toll = Toll(rounds)
    stage.upstream.delay_seconds = 60.0
    for moment in moments(rounds):
        with stage.serving() as service:
            asked = len(stage.upstream.asked)
            with stuck_clients(service, stage.headers["Authorization"].encode()):
                await stage.upstream.reached(asked + 1)
                await asyncio.sleep(moment)
                began = time.monotonic()
                service.process.terminate()
                await asyncio.to_thread(service.process.wait, timeout=DRAINED_SECONDS)
                toll.ended_in.append(time.monotonic() - began)
        assert await stage.check() == set(), "a mint under way has no outcome"
    outcomes = await stage.outcomes(set(stage.upstream.asked))
    assert set(outcomes) == {("unknown", "upstream_timeout")}, outcomes
    return toll


# The log is away ----------------------------------------------------------------------------


async def hit(
    target: AnyTarget,
    rounds: int,
    fault: Callable[[AnyTarget], AbstractAsyncContextManager[None]],
) -> Toll:
    """Bring *fault* about under load and put it right; the service is told nothing."""
    toll = Toll(rounds)
    async with load(target.stage, target.service) as callers:
        for moment in moments(rounds):
            await asyncio.sleep(moment)
            began = time.monotonic()
            async with fault(target):
                await asyncio.sleep(1 + 2 * moment)
            toll.back_in.append(await callers.next_token(within=BACK_SECONDS))
            await callers.answered()  # else the next fault would prolong what this one has begun
            refused_in = callers.slowest_refusal_seconds(since=began)
            assert refused_in < AWAY_SECONDS
            if refused_in:
                toll.refused_in.append(refused_in)
    assert callers.answers.keys() == {200, 503}, callers.answers
    assert callers.codes == {"audit_unavailable"}, callers.codes
    toll.left_open = await target.stage.check()
    return toll


# The long form ------------------------------------------------------------------------------

Play = Callable[[Stage, int], Awaitable[Toll]]


async def on_sqlite(play: Play, rounds: int) -> Toll:
    """Play on a new installation on SQLite."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        async with stage(Path(folder)) as one:
            return await proven(one, await play(one, rounds))


async def on_postgresql(play: Play, rounds: int) -> Toll:
    """Play on a new installation on PostgreSQL."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder, postgres_server() as server:
        async with stage(Path(folder), DATABASE_URL=server.new_database()) as one:
            return await proven(one, await play(one, rounds))


async def hit_on_sqlite(fault: SqliteFault, rounds: int) -> Toll:
    """Hit a new installation on SQLite."""

    async def play(one: Stage, rounds: int) -> Toll:
        with one.serving() as service:
            return await hit(Target(one, service), rounds, fault)

    return await on_sqlite(play, rounds)


async def hit_on_postgresql(fault: PostgresFault, rounds: int) -> Toll:
    """Hit a new installation on a PostgreSQL server of its own."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        async with postgres_target(Path(folder)) as target:
            return await proven(target.stage, await hit(target, rounds, fault))


async def slow_postgresql_down(rounds: int) -> Toll:
    """Let PostgreSQL answer too late."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        async with postgres_target(Path(folder)) as target, far_from(target) as far:
            return await proven(far.stage, await hit(far, rounds, slowed))


async def proven(stage: Stage, toll: Toll) -> Toll:
    """See that the log verifies, as the operator would."""
    verified = await asyncio.to_thread(stage.run, "audit", "verify")
    assert verified.returncode == 0, verified.stdout
    toll.tokens = len(stage.held)
    return toll


AT_ANY_MOMENT: dict[str, Callable[[int], Awaitable[Toll]]] = {
    "killed, SQLite": partial(on_sqlite, kill_and_start),
    "killed, PostgreSQL": partial(on_postgresql, kill_and_start),
    "2 workers killed at once": partial(on_postgresql, partial(kill_and_start, workers=2)),
    "1 of 3 workers killed": partial(on_postgresql, kill_one_worker),
    "PostgreSQL restarted": partial(hit_on_postgresql, stopped),
    "PostgreSQL crashed": partial(hit_on_postgresql, crashed),
    "PostgreSQL frozen": partial(hit_on_postgresql, frozen),
}
"""Faults that tear something apart: where depends on the moment, so they want many rounds."""

LASTING: dict[str, Callable[[int], Awaitable[Toll]]] = {
    "PostgreSQL without connections": partial(hit_on_postgresql, full),
    "PostgreSQL, chain locked": partial(hit_on_postgresql, stalled),
    "PostgreSQL slow": slow_postgresql_down,
    "SQLite locked": partial(hit_on_sqlite, locked),
    "SQLite held by a command": partial(hit_on_sqlite, held_by_a_command),
    "SQLite on a full disk": partial(hit_on_sqlite, full_disk),
    "SIGTERM, SQLite": partial(on_sqlite, end_the_service),
    "SIGTERM, 3 workers": partial(on_postgresql, partial(end_the_service, workers=3)),
    "SIGTERM, everybody stuck": partial(on_sqlite, end_with_stuck_clients),
}
"""Faults that only keep things waiting; a quarter of the rounds shows how long."""


async def main(rounds: int, only: str) -> None:
    """Bring about each fault whose name contains *only*, and print what that has brought.

    Times are in seconds, the median and both ends. Stops at the first that breaks a promise.
    """
    progress = Console(stderr=True)
    table = Table("fault", "rounds", "tokens", "left open", "refused in", "back in", "ended in")
    for name, play in (AT_ANY_MOMENT | LASTING).items():
        if only not in name:
            continue
        toll = await play(rounds if name in AT_ANY_MOMENT else math.ceil(rounds / 4))
        counts = (toll.rounds, toll.tokens, len(toll.left_open))
        times = (toll.refused_in, toll.back_in, toll.ended_in)
        table.add_row(name, *map(str, counts), *map(extent, times))
        progress.log(f"{name}: held in {toll.rounds} rounds", *settled(toll))
    Console(width=120).print(table)


def settled(toll: Toll) -> list[str]:
    """Say when the attempts that kills left open had their outcome, if there were any."""
    return [f"all settled {seconds:.0f} s after the start" for seconds in toll.settled_in]


def extent(times: list[float]) -> str:
    """Say how long it took half of the time, at the least and at the most."""
    if not times:
        return ""
    return f"{median(times):.2f} ({min(times):.2f} to {max(times):.2f})"


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), only=" ".join(sys.argv[2:])))
