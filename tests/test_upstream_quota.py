"""Whether the money at OpenAI is used up, read from what mints have left in the log."""

from contextlib import suppress
from datetime import datetime
from functools import partial

import httpx
import pytest

from app.audit.events import Event
from app.base.errors import UpstreamProblem
from app.identity.users import User
from app.minting.profiles import Wish
from app.minting.upstream_quota import quota_exhausted_at
from app.runtime import Runtime
from tests.clock import StandingClock
from tests.conftest import caller_for, on_sqlite
from tests.fakes import FakeOpenAI


def refusal(status: int, code: str) -> httpx.Response:
    return httpx.Response(status, json={"error": {"type": code, "code": code}})


NO_MONEY = refusal(429, "insufficient_quota")


@pytest.fixture
def mint(runtime: Runtime, alice: User, openai: FakeOpenAI) -> "Mint":
    return Mint(runtime, alice, openai)


class Mint:
    """Lets Alice ask for a token, and OpenAI answer like this."""

    def __init__(self, runtime: Runtime, alice: User, openai: FakeOpenAI) -> None:
        self._runtime = runtime
        self._alice = alice
        self._openai = openai

    async def __call__(self, reply: httpx.Response | None = None) -> None:
        self._openai.reply = reply
        caller = await caller_for(self._runtime, self._alice)
        with suppress(UpstreamProblem):
            await self._runtime.minter.mint(caller, Wish())


async def exhausted_at(runtime: Runtime) -> datetime | None:
    return await runtime.database.read(partial(quota_exhausted_at, now=runtime.clock()))


async def test_it_is_used_up_from_openais_word_until_a_mint_succeeds(
    runtime: Runtime, mint: Mint, clock: StandingClock
) -> None:
    assert await exhausted_at(runtime) is None
    await mint()
    assert await exhausted_at(runtime) is None
    await mint(NO_MONEY)
    said_at = clock()
    clock.advance(minutes=5)
    await mint(refusal(429, "slow_down"))
    assert await exhausted_at(runtime) == said_at
    await mint()
    assert await exhausted_at(runtime) is None


@pytest.mark.parametrize("code", ["slow_down", "rate_limit_exceeded"])
async def test_a_limit_is_no_lack_of_money(runtime: Runtime, mint: Mint, code: str) -> None:
    await mint(refusal(429, code))

    assert await exhausted_at(runtime) is None


@on_sqlite
async def test_after_a_day_without_mints_it_is_no_news(
    runtime: Runtime, mint: Mint, clock: StandingClock
) -> None:
    await mint(NO_MONEY)

    clock.advance(hours=23, minutes=59)
    assert await exhausted_at(runtime) is not None
    clock.advance(minutes=1)
    assert await exhausted_at(runtime) is None


@on_sqlite
async def test_a_failure_of_something_else_for_that_reason_is_not_about_mints(
    runtime: Runtime,
) -> None:
    reason = "upstream_quota_exhausted"
    await runtime.log.record([Event(action="model.refresh", outcome="failed", reason=reason)])

    assert await exhausted_at(runtime) is None
