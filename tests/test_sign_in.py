import pytest

from app.base.errors import (
    InsufficientScope,
    InvalidToken,
    RateLimited,
    Unauthenticated,
    UserDisabled,
)
from app.identity.callers import Origin
from app.identity.sign_in import GrantRefused
from app.identity.users import OPERATOR, User
from app.runtime import Runtime
from tests.clock import StandingClock
from tests.conftest import PASSWORD, caller_for
from tests.log_rows import rows

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
