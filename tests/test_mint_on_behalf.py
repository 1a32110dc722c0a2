"""A backend asks for tokens on behalf of its users: who is limited, recorded, refused."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from app.audit.events import audit_events, audit_personal
from app.base.errors import InvalidToken, ProfileNotFound, QuotaExceeded, RateLimited
from app.identity.callers import Caller
from app.identity.users import User
from app.main import create_app
from app.minting.profiles import Wish
from app.runtime import Runtime
from app.settings import Settings
from tests.clock import StandingClock
from tests.conftest import as_served, bearer_for, caller_for, played
from tests.fakes import FakeOpenAI
from tests.keys import asking_for, bearer_of, new_key, shown
from tests.log_rows import outcomes, rows

TOKEN = "/realtime/token"
PROFILES = Path(__file__).parents[1] / "examples" / "profiles.toml"
USER = "canary of their user 17"


@pytest.fixture
async def client(runtime: Runtime) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(runtime.settings)
    transport = httpx.ASGITransport(as_served(app, runtime), client=("192.0.2.80", 4711))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        yield client


# What it leaves -----------------------------------------------------------------------------


async def test_the_rows_name_the_key_and_the_pseudonym_and_never_the_user(
    client: httpx.AsyncClient, runtime: Runtime, admin: User, openai: FakeOpenAI
) -> None:
    new = await new_key(runtime)

    answer = await client.post(TOKEN, headers=bearer_of(new), json={"user": USER})

    assert answer.status_code == 200
    assert answer.json()["token"] == openai.minted[0]
    pseudonym = runtime.callers._end_users.pseudonym_of(USER)
    pair = await rows(runtime.database, attempt_id=answer.json()["id"])
    assert [row["outcome"] for row in pair] == ["requested", "issued"]
    assert [(row["actor"], row["credential"]) for row in pair] == [(pseudonym, new.key.id)] * 2
    assert all("sign_in" not in row for row in pair)
    for query in ({"credential": new.key.id}, {"actor": pseudonym}):
        found = await client.get(
            "/audit/events", params=query, headers=await bearer_for(runtime, admin)
        )
        seen = [(event["actor"], event["credential"]) for event in found.json()["events"]]
        assert seen[:2] == [(pseudonym, new.key.id)] * 2
    texts = await runtime.database.read(
        lambda tx: str(
            [tx.execute(table.select()).all() for table in (audit_events, audit_personal)]
        )
    )
    assert USER not in texts + str(openai.requests[0].headers) + answer.text


async def test_openai_knows_each_end_user_by_a_name_of_its_own(
    runtime: Runtime, openai: FakeOpenAI, alice: User
) -> None:
    one, other = await new_key(runtime), await new_key(runtime)

    for caller in (
        await asking_for(runtime, one, "17"),
        await asking_for(runtime, other, "17"),
        await asking_for(runtime, one, "18"),
        await asking_for(runtime, one, alice.id),
        await caller_for(runtime, alice),
    ):
        await runtime.minter.mint(caller, Wish())

    names = [request.headers["OpenAI-Safety-Identifier"] for request in openai.requests]
    assert names[0] == names[1]
    assert len(set(names)) == 4  # nobody becomes an account of ours by its id


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (None, "is needed with a service key"),
        ({}, "is needed with a service key"),
        ({"user": None}, "is needed with a service key"),
        ({"user": ""}, "at least 1 character"),
        ({"user": "x" * 129}, "at most 128 characters"),
        ({"user": "a\tb"}, "printable"),
        ({"user": 17}, "must be a string"),
    ],
)
async def test_a_backend_has_to_say_on_whose_behalf_it_asks(
    client: httpx.AsyncClient,
    runtime: Runtime,
    openai: FakeOpenAI,
    body: dict[str, object] | None,
    reason: str,
) -> None:
    new = await new_key(runtime)

    answer = await client.post(TOKEN, headers=bearer_of(new), json=body)

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    [error] = answer.json()["errors"]
    assert error["field"] == "user"
    assert reason in error["reason"]
    assert openai.requests == []


async def test_whoever_signed_in_asks_for_nobody_else(
    client: httpx.AsyncClient, runtime: Runtime, admin: User
) -> None:
    headers = await bearer_for(runtime, admin)

    answer = await client.post(TOKEN, headers=headers, json={"user": "17"})

    assert answer.status_code == 422
    [error] = answer.json()["errors"]
    assert error == {"field": "user", "reason": "is for service keys alone; leave it out"}


async def test_a_key_that_is_not_good_is_challenged_like_any_credential(
    client: httpx.AsyncClient, runtime: Runtime
) -> None:
    new = await new_key(runtime)
    await runtime.key_ring.revoke(new.key.id, by=None)

    answer = await client.post(TOKEN, headers=bearer_of(new), json={"user": "17"})

    assert (answer.status_code, answer.json()["code"]) == (401, "invalid_token")
    assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]


# Limits -------------------------------------------------------------------------------------


async def test_an_end_user_is_limited_as_any_user_whatever_key_asks(
    runtime: Runtime, clock: StandingClock
) -> None:
    keys = [await new_key(runtime), await new_key(runtime)]
    for number in range(10):
        await runtime.minter.mint(await asking_for(runtime, keys[number % 2]), Wish())

    for new in keys:
        with pytest.raises(RateLimited):
            await runtime.minter.mint(await asking_for(runtime, new), Wish())

    await runtime.minter.mint(await asking_for(runtime, keys[0], "another"), Wish())
    for _ in range(19):
        clock.advance(seconds=61)
        for _ in range(10):
            await runtime.minter.mint(await asking_for(runtime, keys[0]), Wish())
    clock.advance(seconds=61)
    with pytest.raises(QuotaExceeded):
        await runtime.minter.mint(await asking_for(runtime, keys[0]), Wish())


async def test_a_key_is_limited_over_all_of_its_users_and_alone(
    settings: Settings, clock: StandingClock, openai: FakeOpenAI
) -> None:
    few = settings.model_copy(update={"mints_per_service_key_per_minute": 3})
    async with played(few, clock=clock, openai=openai) as runtime:
        new, other = await new_key(runtime), await new_key(runtime)
        for user in "abc":
            await runtime.minter.mint(await asking_for(runtime, new, user), Wish())

        with pytest.raises(RateLimited) as caught:
            await runtime.minter.mint(await asking_for(runtime, new, "d"), Wish())

        assert caught.value.retry_after_seconds == 60
        await runtime.minter.mint(await asking_for(runtime, other, "d"), Wish())
        clock.advance(seconds=60)
        await runtime.minter.mint(await asking_for(runtime, new, "d"), Wish())


async def test_a_greedy_user_does_not_use_up_the_key(
    settings: Settings, clock: StandingClock, openai: FakeOpenAI
) -> None:
    few = settings.model_copy(
        update={"mints_per_service_key_per_minute": 3, "mints_per_user_per_minute": 1}
    )
    async with played(few, clock=clock, openai=openai) as runtime:
        new = await new_key(runtime)
        await runtime.minter.mint(await asking_for(runtime, new, "greedy"), Wish())
        for _ in range(5):
            with pytest.raises(RateLimited):
                await runtime.minter.mint(await asking_for(runtime, new, "greedy"), Wish())

        for user in "ab":
            await runtime.minter.mint(await asking_for(runtime, new, user), Wish())


async def test_refusals_of_a_backend_count_as_one_caller_whomever_it_names(
    runtime: Runtime, clock: StandingClock
) -> None:
    new = await new_key(runtime)
    for number in range(20):
        with pytest.raises(ProfileNotFound):
            await runtime.minter.mint(
                await asking_for(runtime, new, f"user {number}"), Wish(profile="nope")
            )

    clock.advance(minutes=1)
    await runtime.denials.settle()

    *denied, counted = await rows(runtime.database, outcome="denied")
    assert len(denied) == 5
    assert len({row["actor"] for row in denied}) == 5
    assert (counted["reason"], counted["count"], counted["actor"]) == ("repeated", 15, new.key.id)


# Profiles -----------------------------------------------------------------------------------


@pytest.fixture
async def with_profiles(
    settings: Settings, clock: StandingClock, openai: FakeOpenAI
) -> AsyncIterator[Runtime]:
    more = settings.model_copy(update={"profiles_file": PROFILES})
    async with played(more, clock=clock, openai=openai) as runtime:
        yield runtime


async def test_a_key_with_a_list_of_profiles_gets_these_and_no_others(
    with_profiles: Runtime, openai: FakeOpenAI
) -> None:
    runtime = with_profiles
    wish = Wish(profile="coach", variables={"product": "tractors", "seller": "Ada"})
    narrow = await new_key(runtime, profiles=["coach"])
    wide = await new_key(runtime)

    await runtime.minter.mint(await asking_for(runtime, narrow), wish)
    with pytest.raises(ProfileNotFound, match=r"There are: coach\.$"):
        await runtime.minter.mint(await asking_for(runtime, narrow), Wish())
    await runtime.minter.mint(await asking_for(runtime, wide), Wish())

    assert len(openai.requests) == 2
    assert (await outcomes(runtime.database)).count("denied") == 1


async def test_the_profiles_of_a_key_are_listed_with_it(
    with_profiles: Runtime,
) -> None:
    runtime = with_profiles
    app = create_app(runtime.settings)
    listed = {}
    transport = httpx.ASGITransport(as_served(app, runtime), client=("192.0.2.80", 4711))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        for profiles in (None, ["coach"]):
            new = await new_key(runtime, profiles=profiles)
            answer = await client.get("/realtime/profiles", headers=bearer_of(new))
            listed[str(profiles)] = [told["name"] for told in answer.json()["profiles"]]

    assert listed["['coach']"] == ["coach"]
    assert listed["None"] == [profile.name for profile in runtime.profiles.for_role("user")]


# Promise 7 ----------------------------------------------------------------------------------


async def test_a_key_that_is_revoked_after_it_was_shown_mints_nothing(
    runtime: Runtime, openai: FakeOpenAI
) -> None:
    new = await new_key(runtime)
    caller = await asking_for(runtime, new)

    await runtime.key_ring.revoke(new.key.id, by=None)

    with pytest.raises(InvalidToken, match="revoked"):
        await runtime.minter.mint(caller, Wish())
    assert openai.requests == []
    [denied] = await rows(runtime.database, action="client_secret.mint")
    assert (denied["outcome"], denied["reason"]) == ("denied", "invalid_token")


async def test_a_key_that_ends_after_it_was_shown_mints_nothing(
    runtime: Runtime, clock: StandingClock, openai: FakeOpenAI
) -> None:
    caller = await asking_for(runtime, await new_key(runtime, lifetime_days=1))

    clock.advance(days=1)

    with pytest.raises(InvalidToken, match="expired"):
        await runtime.minter.mint(caller, Wish())
    assert openai.requests == []


async def test_a_key_that_another_instance_revokes_or_rotates_away_mints_nothing_here(
    runtime: Runtime, settings: Settings, clock: StandingClock, openai: FakeOpenAI
) -> None:
    revoked, rotated = await new_key(runtime), await new_key(runtime)
    callers = [await asking_for(runtime, new) for new in (revoked, rotated)]
    async with played(settings, clock=clock, openai=openai) as other:
        await other.key_ring.revoke(revoked.key.id, by=None)
        await other.key_ring.rotate(rotated.key.id, overlap_hours=0, by=None)

    for new, caller in zip((revoked, rotated), callers, strict=True):
        with pytest.raises(InvalidToken):
            await runtime.minter.mint(caller, Wish())
        with pytest.raises(InvalidToken):
            await shown(runtime, new)
    assert openai.requests == []


async def test_of_those_who_race_a_revocation_none_that_begins_after_it_succeeds(
    runtime: Runtime, openai: FakeOpenAI
) -> None:
    new = await new_key(runtime)
    callers = [await asking_for(runtime, new, f"user {number}") for number in range(60)]
    at_openai = asyncio.Event()

    async def arrive() -> None:
        at_openai.set()

    async def mint(caller: Caller) -> bool:
        try:
            await runtime.minter.mint(caller, Wish())
        except InvalidToken:
            return False
        return True

    openai.meanwhile = arrive
    racing = [asyncio.create_task(mint(caller)) for caller in callers[:40]]
    await at_openai.wait()
    await runtime.key_ring.revoke(new.key.id, by=None)
    late = await asyncio.gather(*map(mint, callers[40:]))
    raced = await asyncio.gather(*racing)

    assert not any(late)
    assert sum(raced) == len(openai.requests) >= 1
    assert (await outcomes(runtime.database)).count("issued") == sum(raced)
