from contextlib import suppress
from dataclasses import replace

import pytest
from argon2 import PasswordHasher

from app.base.errors import (
    InsufficientScope,
    InvalidToken,
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


async def test_guessing_is_slowed_without_locking_the_owner_out(
    runtime: Runtime, alice: User, clock: StandingClock
) -> None:
    for _ in range(10):
        with pytest.raises(GrantRefused):
            await sign_in(runtime, password="guess")
    with pytest.raises(RateLimited) as caught:
        await sign_in(runtime)
    assert caught.value.retry_after_seconds == 60

    elsewhere = Origin(ip="198.51.100.1")
    await runtime.sign_in.with_password(elsewhere, email=alice.email, password=PASSWORD)

    clock.advance(seconds=61)
    await sign_in(runtime)


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
