import asyncio
from collections import Counter
from contextlib import suppress
from dataclasses import replace

import pytest
from argon2 import PasswordHasher

from app.base.errors import (
    InsufficientScope,
    InvalidToken,
    Overloaded,
    RateLimited,
    Unauthenticated,
    UserDisabled,
)
from app.base.ids import new_id
from app.identity.callers import Origin
from app.identity.passwords import Passwords
from app.identity.sign_in import GrantRefused
from app.identity.users import OPERATOR, User
from app.runtime import Runtime
from app.settings import Settings
from tests.clock import StandingClock
from tests.conftest import PASSWORD, caller_for, played
from tests.fakes import FakeOpenAI
from tests.log_rows import rows
from tests.test_passwords import CountingHasher
from tests.test_users import give_role

HOME = Origin(request_id="req_1", ip="192.0.2.7", user_agent="pytest")


async def sign_in(
    runtime: Runtime, email: str = "alice@example.com", password: str = PASSWORD, **more: object
) -> object:
    return await runtime.sign_in.with_password(HOME, email=email, password=password, **more)  # type: ignore[arg-type]  # scope


async def test_the_right_password_gives_an_access_token_and_a_row(
    runtime: Runtime, alice: User
) -> None:
    granted = await runtime.sign_in.with_password(
        HOME, email=" Alice@Example.com", password=PASSWORD
    )

    caller = await runtime.callers.authenticate(
        f"Bearer {granted.access_token}", HOME, scope="mint"
    )
    await runtime.callers.confirm(caller)
    assert (caller.user_id, caller.role, granted.scope) == (alice.id, "user", "mint")
    assert granted.expires_in == 600
    [row] = await rows(runtime.database, action="user.sign_in")
    assert (row["outcome"], row["actor"], row["sign_in"]) == (
        "succeeded",
        alice.id,
        caller.sign_in_id,
    )


@pytest.mark.parametrize(
    ("email", "password", "reason"),
    [
        ("alice@example.com", "wrong", "wrong_password"),
        ("nobody@example.com", PASSWORD, "unknown_account"),
        ("", "", "unknown_account"),
        ("alice@example.com'--", PASSWORD, "unknown_account"),
        ("alice\x00@example.com", PASSWORD, "unknown_account"),
        ("alice@example.com", PASSWORD + " ", "wrong_password"),
    ],
)
async def test_every_wrong_combination_gets_the_same_answer_and_its_own_row(
    runtime: Runtime, alice: User, email: str, password: str, reason: str
) -> None:
    with pytest.raises(GrantRefused) as caught:
        await sign_in(runtime, email, password)

    assert caught.value.error == "invalid_grant"
    assert caught.value.description == "The e-mail address or the password is wrong."
    [row] = await rows(runtime.database, action="user.sign_in")
    assert (row["outcome"], row["reason"]) == ("denied", reason)


async def test_a_disabled_user_is_not_told_so_but_the_log_is(runtime: Runtime, alice: User) -> None:
    await runtime.users.disable(alice.email, by=OPERATOR)

    with pytest.raises(GrantRefused, match="wrong"):
        await sign_in(runtime)

    [row] = await rows(runtime.database, action="user.sign_in")
    assert (row["outcome"], row["reason"], row["actor"]) == ("denied", "user_disabled", alice.id)


async def test_less_scope_may_be_asked_for_but_not_more(runtime: Runtime, admin: User) -> None:
    granted = await runtime.sign_in.with_password(
        HOME, email=admin.email, password=PASSWORD, scope="audit:read"
    )
    assert granted.scope == "audit:read"

    for scope in ("mint everything", "root", ""):
        with pytest.raises(GrantRefused) as caught:
            await sign_in(runtime, admin.email, scope=scope)
        assert caught.value.error == "invalid_scope"


async def guess(runtime: Runtime, origin: Origin = HOME, email: str = "alice@example.com") -> None:
    with pytest.raises(GrantRefused):
        await runtime.sign_in.with_password(origin, email=email, password="guess")


async def wait_after(runtime: Runtime, origin: Origin = HOME) -> int | None:
    """Return how long the next guess has to wait, in seconds."""
    with pytest.raises(RateLimited) as caught:
        await runtime.sign_in.with_password(origin, email="alice@example.com", password="guess")
    return caught.value.retry_after_seconds


@pytest.mark.parametrize("email", ["alice@example.com", "nobody@example.com"])
async def test_each_guess_beyond_the_fifth_waits_twice_as_long_as_the_last(
    runtime: Runtime, alice: User, clock: StandingClock, email: str
) -> None:
    for _ in range(5):
        await guess(runtime, email=email)

    waits = []
    for _ in range(13):
        with pytest.raises(RateLimited) as caught:
            await guess(runtime, email=email)
        waits.append(caught.value.retry_after_seconds or 0)
        clock.advance(seconds=waits[-1])
        await guess(runtime, email=email)

    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900, 900]


async def test_a_guesser_elsewhere_does_not_keep_the_owner_out(
    runtime: Runtime, alice: User
) -> None:
    for _ in range(5):
        await guess(runtime, Origin(ip="198.51.100.1"))
    assert await wait_after(runtime, Origin(ip="198.51.100.1")) == 1

    await sign_in(runtime)


async def test_guessers_everywhere_do_not_keep_the_owner_out_but_have_one_guess_each(
    runtime: Runtime, alice: User, clock: StandingClock
) -> None:
    for number in range(100):
        await guess(runtime, Origin(ip=f"198.51.100.{number}"))

    late = Origin(ip="203.0.113.1")
    await guess(runtime, late)
    assert await wait_after(runtime, late) == 60
    await sign_in(runtime)
    for day in range(2):
        await guess(runtime, Origin(ip=f"192.0.2.{day}"))
        clock.advance(days=1)
    for _ in range(5):
        await guess(runtime, late)


async def test_who_signs_in_may_be_wrong_as_often_as_before(runtime: Runtime, alice: User) -> None:
    for _ in range(3):
        for _ in range(4):
            await guess(runtime)
        await sign_in(runtime)


async def test_guesses_are_counted_while_they_are_checked(runtime: Runtime, alice: User) -> None:
    answers = await asyncio.gather(
        *(sign_in(runtime, password="guess") for _ in range(20)), return_exceptions=True
    )

    assert Counter(map(type, answers)) == {GrantRefused: 5, RateLimited: 15}


async def test_one_address_with_many_wrong_passwords_waits_whatever_the_account(
    runtime: Runtime, alice: User, clock: StandingClock
) -> None:
    for number in range(60):
        if number % 20 == 0:
            clock.advance(minutes=1)
        await guess(runtime, email=f"user{number}@example.com")
    clock.advance(minutes=1)
    await guess(runtime, email="user60@example.com")

    assert await wait_after(runtime) == 2
    clock.advance(seconds=2)
    await sign_in(runtime)
    clock.advance(hours=1)
    await guess(runtime)
    await guess(runtime)


async def test_what_could_not_be_checked_is_not_held_against_anybody(
    settings: Settings, clock: StandingClock, openai: FakeOpenAI
) -> None:
    hasher = CountingHasher()
    passwords = Passwords(threads=1, waiting=1, hasher=hasher)
    async with played(settings, clock=clock, openai=openai, passwords=passwords) as runtime:
        await runtime.users.add("alice@example.com", role="user", password=PASSWORD, by=OPERATOR)
        hasher.may_go_on.clear()
        others = [asyncio.create_task(passwords.verify("x", None)) for _ in range(2)]
        await asyncio.sleep(0)
        for _ in range(20):
            with pytest.raises(Overloaded):
                await sign_in(runtime, password="guess")
        hasher.may_go_on.set()
        await asyncio.gather(*others)

        for _ in range(5):
            await guess(runtime)


async def test_all_callers_together_have_so_many_passwords_checked(
    settings: Settings, clock: StandingClock, openai: FakeOpenAI
) -> None:
    settings = settings.model_copy(update={"password_checks_per_minute": 3})
    async with played(settings, clock=clock, openai=openai) as runtime:
        for number in range(3):
            await guess(runtime, Origin(ip=f"192.0.2.{number}"), f"user{number}@example.com")

        with pytest.raises(Overloaded) as caught:
            await guess(runtime)
        clock.advance(minutes=1)
        await guess(runtime)

    assert caught.value.retry_after_seconds == 60


async def test_one_address_may_not_try_many_accounts(runtime: Runtime) -> None:
    for number in range(30):
        with pytest.raises(GrantRefused):
            await sign_in(runtime, f"user{number}@example.com")

    with pytest.raises(RateLimited):
        await sign_in(runtime, "user30@example.com")


async def test_what_one_customer_of_ipv6_has_is_one_address(runtime: Runtime) -> None:
    for number in range(30):
        neighbour = Origin(ip=f"2001:db8:0:1::{number:x}")
        with pytest.raises(GrantRefused):
            await runtime.sign_in.with_password(
                neighbour, email=f"user{number}@example.com", password=PASSWORD
            )

    with pytest.raises(RateLimited):
        await runtime.sign_in.with_password(
            Origin(ip="2001:db8:0:1:ffff::1"), email="user30@example.com", password=PASSWORD
        )
    with pytest.raises(GrantRefused):
        await runtime.sign_in.with_password(
            Origin(ip="2001:db8:0:2::1"), email="user30@example.com", password=PASSWORD
        )


async def test_whatever_is_wrong_the_attempt_costs_one_hash(
    settings: Settings, clock: StandingClock, openai: FakeOpenAI
) -> None:
    hasher = CountingHasher()
    async with played(
        settings, clock=clock, openai=openai, passwords=Passwords(hasher=hasher)
    ) as runtime:
        for name in ("alice", "bob"):
            await runtime.users.add(
                f"{name}@example.com", role="user", password=PASSWORD, by=OPERATOR
            )
        await runtime.users.disable("bob@example.com", by=OPERATOR)

        async def hashes(email: str, password: str) -> int:
            before = hasher.computed
            with suppress(GrantRefused):
                await sign_in(runtime, email, password)
            return hasher.computed - before

        assert await hashes("alice@example.com", PASSWORD) == 1
        assert await hashes("alice@example.com", "wrong") == 1
        assert await hashes("nobody@example.com", PASSWORD) == 1
        assert await hashes("bob@example.com", PASSWORD) == 1
        assert await hashes("bob@example.com", "wrong") == 1


async def test_a_password_hashed_with_older_parameters_is_hashed_anew_and_goes_on_working(
    settings: Settings, clock: StandingClock, openai: FakeOpenAI
) -> None:
    email = "alice@example.com"

    async def stored(runtime: Runtime) -> str:
        user = await runtime.users.find(email)
        assert user is not None
        return user.password_hash

    async with played(settings, clock=clock, openai=openai) as runtime:
        await runtime.users.add(email, role="user", password=PASSWORD, by=OPERATOR)
        assert "$m=8,t=1,p=1$" in await stored(runtime)

    dearer = Passwords(hasher=PasswordHasher(time_cost=2, memory_cost=16, parallelism=1))
    async with played(settings, clock=clock, openai=openai, passwords=dearer) as runtime:
        await sign_in(runtime, email)
        rehashed = await stored(runtime)
        assert "$m=16,t=2,p=1$" in rehashed

        await sign_in(runtime, email)
        assert await stored(runtime) == rehashed
        with pytest.raises(GrantRefused):
            await sign_in(runtime, email, "wrong")


async def test_another_password_ends_every_sign_in(runtime: Runtime, alice: User) -> None:
    caller = await caller_for(runtime, alice)

    await runtime.users.set_password(alice.email, "another long enough password", by=OPERATOR)

    with pytest.raises(InvalidToken):
        await runtime.callers.confirm(caller)
    with pytest.raises(GrantRefused):
        await sign_in(runtime)
    await sign_in(runtime, password="another long enough password")


async def test_a_sign_in_that_races_with_a_new_password_is_refused(
    runtime: Runtime, alice: User
) -> None:
    await runtime.users.set_password(alice.email, "another long enough password", by=OPERATOR)

    with pytest.raises(GrantRefused, match="just changed"):
        await runtime.sign_in.begin(alice, frozenset({"mint"}), HOME)  # read before the change


async def test_a_sign_in_that_races_with_being_disabled_is_refused(
    runtime: Runtime, alice: User
) -> None:
    await runtime.users.disable(alice.email, by=OPERATOR)

    with pytest.raises(GrantRefused, match="disabled"):
        await runtime.sign_in.begin(alice, frozenset({"mint"}), HOME)  # read before the change

    assert await rows(runtime.database, action="user.sign_in") == []


async def test_a_caller_whose_role_was_lowered_is_refused(runtime: Runtime, admin: User) -> None:
    caller = await caller_for(runtime, admin)
    await give_role(runtime, admin, "auditor")

    with pytest.raises(InsufficientScope, match="admin"):
        await runtime.callers.confirm(caller)

    [row] = await rows(runtime.database, action="access_token.verify")
    assert (row["outcome"], row["reason"]) == ("denied", "insufficient_scope")


async def test_a_caller_with_the_sign_in_of_somebody_else_is_refused(
    runtime: Runtime, alice: User, admin: User
) -> None:
    stranger = await caller_for(runtime, admin)
    caller = await caller_for(runtime, alice)

    for sign_in_id in (stranger.sign_in_id, new_id("sgn")):
        with pytest.raises(InvalidToken):
            await runtime.callers.confirm(replace(caller, sign_in_id=sign_in_id))

    await runtime.callers.confirm(caller)


async def test_whoever_can_sign_tokens_has_no_more_than_the_role_of_a_sign_in_that_stands(
    runtime: Runtime, alice: User
) -> None:
    sign_in_id = (await caller_for(runtime, alice)).sign_in_id

    async def confirm(scope: str, sid: str) -> None:
        forged = runtime.access_tokens.issue(user_id=alice.id, scope=scope, sign_in_id=sid)
        caller = await runtime.callers.authenticate(f"Bearer {forged.token}", Origin(), scope=None)
        await runtime.callers.confirm(caller)

    with pytest.raises(InsufficientScope):
        await confirm("admin mint", str(sign_in_id))
    with pytest.raises(InvalidToken):
        await confirm("mint", new_id("sgn"))
    await confirm("mint", str(sign_in_id))


async def test_a_disabled_caller_is_refused_and_the_refusal_is_a_row(
    runtime: Runtime, alice: User
) -> None:
    caller = await caller_for(runtime, alice)
    await runtime.users.disable(alice.email, by=OPERATOR)

    with pytest.raises(UserDisabled):
        await runtime.callers.confirm(caller)

    [row] = await rows(runtime.database, action="access_token.verify")
    assert (row["outcome"], row["reason"], row["actor"]) == ("denied", "user_disabled", alice.id)


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic YWxpY2U6cHc=", "Token x"])
async def test_without_a_bearer_credential_nobody_calls_and_no_row_is_written(
    runtime: Runtime, header: str | None
) -> None:
    with pytest.raises(Unauthenticated):
        await runtime.callers.authenticate(header, HOME, scope=None)

    assert await rows(runtime.database) == []


async def test_a_bad_credential_is_a_row_without_the_credential(runtime: Runtime) -> None:
    with pytest.raises(InvalidToken):
        await runtime.callers.authenticate("Bearer canary.canary.canary", HOME, scope=None)

    [row] = await rows(runtime.database, action="access_token.verify")
    assert (row["outcome"], row["reason"]) == ("denied", "invalid_token")
    assert "canary" not in str(row)


async def test_an_address_with_too_many_bad_credentials_is_not_listened_to_for_a_while(
    settings: Settings, clock: StandingClock, openai: FakeOpenAI
) -> None:
    settings = settings.model_copy(update={"bad_credentials_per_address_per_minute": 3})
    async with played(settings, clock=clock, openai=openai) as runtime:
        user = await runtime.users.add("x@y.z", role="user", password=PASSWORD, by=OPERATOR)
        granted = await runtime.sign_in.begin(user, frozenset({"mint"}), HOME)

        async def show(token: str, origin: Origin = HOME) -> None:
            await runtime.callers.authenticate(f"Bearer {token}", origin, scope=None)

        for _ in range(10):
            await show(granted.access_token)
        for _ in range(3):
            with pytest.raises(InvalidToken):
                await show("forged")
        await show(granted.access_token)
        with pytest.raises(RateLimited):
            await show("forged")

        clock.advance(seconds=20)
        with pytest.raises(RateLimited) as caught:
            await show(granted.access_token)
        await show(granted.access_token, Origin(ip="198.51.100.1"))
        clock.advance(seconds=40)
        await show(granted.access_token)
        reasons = [row["reason"] for row in await rows(runtime.database, outcome="denied")]

    assert caught.value.retry_after_seconds == 40
    assert reasons == ["invalid_token"] * 4 + ["rate_limited"]


async def test_a_credential_without_the_scope_is_refused_with_a_row(
    runtime: Runtime, alice: User
) -> None:
    granted = await runtime.sign_in.begin(alice, frozenset({"mint"}), HOME)

    with pytest.raises(InsufficientScope):
        await runtime.callers.authenticate(
            f"Bearer {granted.access_token}", HOME, scope="audit:read"
        )

    [row] = await rows(runtime.database, action="access_token.verify")
    assert (row["reason"], row["actor"]) == ("insufficient_scope", alice.id)
