"""Two hundred at once: a limit lets through as many as it says, and not one more."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import httpx
import pytest

from app.identity.users import User
from app.main import create_app
from app.runtime import Runtime
from app.settings import Settings
from tests.clock import StandingClock
from tests.conftest import PASSWORD, as_served, bearer_for, on_sqlite, played
from tests.fakes import FakeOpenAI
from tests.log_rows import outcomes, rows

AT_ONCE = 200
LIMIT = 10

pytestmark = [on_sqlite, pytest.mark.slow]  # the counts are in memory


@pytest.fixture
async def runtime(
    settings: Settings, clock: StandingClock, openai: FakeOpenAI
) -> AsyncIterator[Runtime]:
    limits = {
        "mints_per_user_per_minute": LIMIT,
        "mints_per_user_per_day": 2 * LIMIT + 5,
        "sign_in_failures_per_account": LIMIT,
        "sign_ins_per_address_per_minute": 3 * LIMIT,
    }
    async with played(settings.model_copy(update=limits), clock=clock, openai=openai) as runtime:
        yield runtime


@pytest.fixture
async def client(runtime: Runtime) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(runtime.settings)
    transport = httpx.ASGITransport(as_served(app, runtime), client=("192.0.2.7", 4711))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        yield client


async def race(client: httpx.AsyncClient, *headers: dict[str, str]) -> list[Counter[int]]:
    """Let everyone of *headers* ask for 200 tokens at once; return how each was answered."""
    answers = await asyncio.gather(
        *(client.post("/realtime/token", headers=one) for _ in range(AT_ONCE) for one in headers)
    )
    statuses = [answer.status_code for answer in answers]
    return [Counter(statuses[i :: len(headers)]) for i in range(len(headers))]


async def test_two_hundred_mints_at_once_give_as_many_tokens_as_the_minute_allows(
    client: httpx.AsyncClient, runtime: Runtime, alice: User, openai: FakeOpenAI
) -> None:
    [answered] = await race(client, await bearer_for(runtime, alice))

    assert answered == {200: LIMIT, 429: AT_ONCE - LIMIT}
    assert len(openai.minted) == LIMIT
    await runtime.denials.settle(all_of_them=True)
    written = Counter(await outcomes(runtime.database))
    assert (written["requested"], written["issued"]) == (LIMIT, LIMIT)
    denied = await rows(runtime.database, outcome="denied")
    assert sum(row.get("count", 1) for row in denied) == AT_ONCE - LIMIT


async def test_two_sign_ins_of_one_user_race_for_one_limit_and_two_users_do_not(
    client: httpx.AsyncClient, runtime: Runtime, alice: User, admin: User
) -> None:
    phone, laptop, other = [await bearer_for(runtime, user) for user in (alice, alice, admin)]

    answered = await race(client, phone, laptop, other)

    assert answered[0][200] + answered[1][200] == LIMIT
    assert answered[2] == {200: LIMIT, 429: AT_ONCE - LIMIT}


async def test_a_race_in_each_minute_is_stopped_by_the_day(
    client: httpx.AsyncClient, runtime: Runtime, clock: StandingClock, alice: User
) -> None:
    headers = await bearer_for(runtime, alice)

    granted = []
    for _ in range(4):
        [answered] = await race(client, headers)
        granted.append(answered[200])
        clock.advance(minutes=1)

    assert granted == [LIMIT, LIMIT, 5, 0]


async def test_a_guesser_with_two_hundred_connections_has_no_more_guesses(
    client: httpx.AsyncClient, runtime: Runtime, alice: User
) -> None:
    async def guess(password: str, account: str) -> tuple[str, int]:
        form = {"grant_type": "password", "username": account, "password": password}
        answer = await client.post("/auth/token", data=form)
        return account, answer.status_code

    accounts = [alice.email, "nobody@example.com", "ALICE@example.com "]
    answered = Counter(
        await asyncio.gather(
            *(guess(f"guess {i}", accounts[i % len(accounts)]) for i in range(AT_ONCE))
        )
    )

    # An account is limited whether it exists or not, and however its address is spelt.
    assert answered[accounts[0], 400] + answered[accounts[2], 400] == LIMIT
    assert answered[accounts[1], 400] == LIMIT
    assert {status for _, status in answered} == {400, 429}
    granted = await client.post(
        "/auth/token",
        data={"grant_type": "password", "username": alice.email, "password": PASSWORD},
    )
    assert granted.status_code == 429
