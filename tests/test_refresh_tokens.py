"""Staying signed in and signing out, below the web; `test_routes` has the forms and statuses."""

import asyncio
import re

import pytest
import sqlalchemy as sa

from app.audit.events import Event
from app.base.clock import to_unix_microseconds
from app.base.errors import AuditUnavailable, InvalidToken, RateLimited
from app.base.ids import new_id
from app.identity import refresh_tokens
from app.identity.callers import Caller, Origin
from app.identity.sign_in import Granted, GrantRefused
from app.identity.sign_out import AT_ONCE
from app.identity.users import OPERATOR, SCOPES, User, sign_ins
from app.minting.profiles import Wish
from app.runtime import Runtime
from tests.clock import StandingClock
from tests.conftest import PASSWORD
from tests.fakes import FakeOpenAI
from tests.log_faults import stopped
from tests.log_rows import rows

HOME = Origin(request_id="req_1", ip="192.0.2.7", user_agent="pytest")
MADE_UP = "rtr_" + "a" * 43
DAY = 24 * 60 * 60


async def sign_in(runtime: Runtime, user: User) -> Granted:
    return await runtime.sign_in.begin(user, SCOPES[user.role], HOME)


async def refresh(
    runtime: Runtime, token: str, *, scope: str | None = None, origin: Origin = HOME
) -> Granted:
    return await runtime.sign_in.with_refresh_token(origin, token=token, scope=scope)


async def assert_refused(runtime: Runtime, token: str) -> None:
    with pytest.raises(GrantRefused) as caught:
        await refresh(runtime, token)

    assert caught.value.error == "invalid_grant"
    assert caught.value.description == "The refresh token is not good. Sign in again."


async def caller_of(runtime: Runtime, granted: Granted) -> Caller:
    return await runtime.callers.authenticate(f"Bearer {granted.access_token}", HOME, scope=None)


async def reasons(runtime: Runtime) -> list[str]:
    """Return why refreshing was refused, oldest first."""
    denied = await rows(runtime.database, action="sign_in.refresh", outcome="denied")
    return [row["reason"] for row in denied]


# Exchanging ---------------------------------------------------------------------------------


async def test_a_refresh_token_gives_an_access_token_and_its_successor(
    runtime: Runtime, alice: User
) -> None:
    first = await sign_in(runtime, alice)

    second = await refresh(runtime, first.refresh_token)
    third = await refresh(runtime, second.refresh_token)

    callers = [await caller_of(runtime, granted) for granted in (first, second, third)]
    for caller in callers:
        await runtime.callers.confirm(caller)
    assert {caller.user_id for caller in callers} == {alice.id}
    [sign_in_id] = {caller.sign_in_id for caller in callers}
    assert len({granted.refresh_token for granted in (first, second, third)}) == 3
    assert (third.scope, third.expires_in, third.refresh_expires_in) == ("mint", 600, 14 * DAY)
    found = await rows(runtime.database, action="sign_in.refresh")
    assert [(row["outcome"], row["actor"], row["sign_in"]) for row in found] == [
        ("succeeded", alice.id, sign_in_id)
    ] * 2


async def test_a_refresh_token_cannot_be_guessed_and_shows_in_no_repr(
    runtime: Runtime, alice: User
) -> None:
    granted = await sign_in(runtime, alice)

    assert re.fullmatch(r"rtr_[A-Za-z0-9_-]{43}", granted.refresh_token)
    assert granted.refresh_token not in repr(granted)


async def test_the_database_knows_no_token_but_its_digest(runtime: Runtime, alice: User) -> None:
    first = await sign_in(runtime, alice)
    second = await refresh(runtime, first.refresh_token)

    def dump(tx: sa.Connection) -> str:
        tables = ("refresh_tokens", "sign_ins", "audit_events", "audit_personal")
        return str([tx.execute(sa.text(f"SELECT * FROM {name}")).all() for name in tables])

    dumped = await runtime.database.read(dump)
    assert alice.id in dumped
    for token in (first.refresh_token, second.refresh_token):
        assert token.removeprefix("rtr_") not in dumped


async def test_of_a_hundred_at_once_one_gets_the_next_token_and_the_family_lives(
    runtime: Runtime, alice: User, clock: StandingClock
) -> None:
    token = (await sign_in(runtime, alice)).refresh_token
    everywhere = [Origin(ip=f"192.0.2.{n}") for n in range(100)]  # each with a limit of its own

    answers = await asyncio.gather(
        *(refresh(runtime, token, origin=origin) for origin in everywhere),
        return_exceptions=True,
    )

    [winner] = [answer for answer in answers if isinstance(answer, Granted)]
    losers = [answer for answer in answers if isinstance(answer, GrantRefused)]
    assert len(losers) == 99
    assert {loser.error for loser in losers} == {"invalid_grant"}
    assert {loser.reason for loser in losers} == {"refresh_token_repeated"}
    assert await rows(runtime.database, action="sign_in.revoke") == []
    clock.advance(minutes=1)
    await refresh(runtime, winner.refresh_token)
    await runtime.denials.settle()
    counted = [row.get("count", 1) for row in await rows(runtime.database, outcome="denied")]
    assert counted == [1, 1, 1, 1, 1, 94]


async def test_two_that_read_the_same_token_cannot_both_use_it_up(
    runtime: Runtime, alice: User, clock: StandingClock
) -> None:
    token = (await sign_in(runtime, alice)).refresh_token
    found = await runtime.database.read(lambda tx: refresh_tokens.find(tx, token))
    assert found is not None
    now = to_unix_microseconds(clock())

    took = [
        await runtime.log.record(
            [Event(action="a.b", outcome="done")],
            lambda tx: refresh_tokens.use_up(tx, found, now=now),
        )
        for _ in range(2)
    ]

    assert took == [True, False]


async def test_a_used_token_that_comes_back_within_ten_seconds_is_only_refused(
    runtime: Runtime, alice: User, clock: StandingClock
) -> None:
    first = await sign_in(runtime, alice)
    second = await refresh(runtime, first.refresh_token)
    clock.advance(seconds=10)

    await assert_refused(runtime, first.refresh_token)

    assert await reasons(runtime) == ["refresh_token_repeated"]
    assert await rows(runtime.database, action="sign_in.revoke") == []
    await refresh(runtime, second.refresh_token)


async def test_a_used_token_that_comes_back_later_ends_its_sign_in_and_no_other(
    runtime: Runtime, alice: User, clock: StandingClock, openai: FakeOpenAI
) -> None:
    elsewhere = await sign_in(runtime, alice)
    first = await sign_in(runtime, alice)
    second = await refresh(runtime, first.refresh_token)
    caller = await caller_of(runtime, second)
    clock.advance(seconds=10, microseconds=1)

    await assert_refused(runtime, first.refresh_token)

    [row] = await rows(runtime.database, action="sign_in.revoke")
    assert (row["outcome"], row["reason"], row["actor"], row["sign_in"]) == (
        "succeeded",
        "refresh_token_reuse",
        alice.id,
        caller.sign_in_id,
    )
    await assert_refused(runtime, second.refresh_token)
    await assert_refused(runtime, first.refresh_token)
    assert await reasons(runtime) == ["refresh_token_reuse", *["sign_in_revoked"] * 2]
    assert len(await rows(runtime.database, action="sign_in.revoke")) == 1
    with pytest.raises(InvalidToken):
        await runtime.callers.confirm(caller)
    with pytest.raises(InvalidToken):
        await runtime.minter.mint(caller, Wish())
    assert openai.requests == []
    await refresh(runtime, elsewhere.refresh_token)


async def test_a_token_far_down_the_family_counts_as_stolen_too(
    runtime: Runtime, alice: User, clock: StandingClock
) -> None:
    first = newest = await sign_in(runtime, alice)
    for _ in range(20):
        clock.advance(days=1)
        newest = await refresh(runtime, newest.refresh_token)

    await assert_refused(runtime, first.refresh_token)

    assert await reasons(runtime) == ["refresh_token_reuse"]
    await assert_refused(runtime, newest.refresh_token)


@pytest.mark.impatient
async def test_a_token_stays_good_while_the_log_cannot_be_written(
    runtime: Runtime, alice: User
) -> None:
    token = (await sign_in(runtime, alice)).refresh_token

    async with stopped(runtime.database):
        with pytest.raises(AuditUnavailable):
            await refresh(runtime, token)

    await refresh(runtime, token)


# What is not a good token -------------------------------------------------------------------


@pytest.mark.parametrize(
    "token",
    [
        "",
        "rtr_",
        MADE_UP[:-1],
        MADE_UP + "a",
        MADE_UP[:-1] + "é",
        MADE_UP[:-1] + "\ud800",
        MADE_UP[:-1] + "\n",
        "RTR_" + "a" * 43,
        " " + MADE_UP,
        "a" * 60_000,
    ],
)
async def test_what_we_cannot_have_issued_is_refused_without_asking_the_database(
    runtime: Runtime, token: str
) -> None:
    gone = sa.text("DROP TABLE refresh_tokens")
    await runtime.database.alter(lambda tx: tx.execute(gone).close())

    await assert_refused(runtime, token)

    assert await reasons(runtime) == ["unknown_refresh_token"]
    with pytest.raises(sa.exc.DBAPIError):  # whereas for a token this would ask
        await refresh(runtime, MADE_UP)


async def test_a_made_up_token_leaves_a_row_without_it(runtime: Runtime) -> None:
    await assert_refused(runtime, MADE_UP)

    [row] = await rows(runtime.database)
    assert (row["action"], row["reason"]) == ("sign_in.refresh", "unknown_refresh_token")
    assert MADE_UP not in str(row)


async def test_a_refresh_token_is_no_bearer_credential(runtime: Runtime, alice: User) -> None:
    token = (await sign_in(runtime, alice)).refresh_token

    with pytest.raises(InvalidToken):
        await runtime.callers.authenticate(f"Bearer {token}", HOME, scope=None)


async def test_an_access_token_cannot_be_refreshed_with(runtime: Runtime, alice: User) -> None:
    await assert_refused(runtime, (await sign_in(runtime, alice)).access_token)


async def test_passwords_and_refreshes_share_the_limit_of_an_address(
    runtime: Runtime, alice: User, clock: StandingClock
) -> None:
    granted = await sign_in(runtime, alice)
    for n in range(15):
        with pytest.raises(GrantRefused):
            await refresh(runtime, MADE_UP)
        with pytest.raises(GrantRefused):
            await runtime.sign_in.with_password(HOME, email=f"{n}@example.com", password="x")

    with pytest.raises(RateLimited):
        await refresh(runtime, granted.refresh_token)

    clock.advance(seconds=61)
    await refresh(runtime, granted.refresh_token)


# Lifetimes ----------------------------------------------------------------------------------


async def test_a_token_that_stays_unused_for_14_days_is_over_and_its_sign_in_just_stops(
    runtime: Runtime, alice: User, clock: StandingClock
) -> None:
    first = await sign_in(runtime, alice)
    clock.advance(seconds=14 * DAY - 1)
    second = await refresh(runtime, first.refresh_token)
    clock.advance(seconds=14 * DAY)

    await assert_refused(runtime, second.refresh_token)

    assert await reasons(runtime) == ["refresh_token_expired"]
    assert await rows(runtime.database, action="sign_in.revoke") == []


async def test_after_30_days_the_password_is_needed_again_however_busy_the_sign_in_was(
    runtime: Runtime, alice: User, clock: StandingClock, openai: FakeOpenAI
) -> None:
    granted = await sign_in(runtime, alice)
    for days in (10, 10):
        clock.advance(days=days)
        granted = await refresh(runtime, granted.refresh_token)
    assert granted.refresh_expires_in == 10 * DAY
    clock.advance(days=10, minutes=-5)
    granted = await refresh(runtime, granted.refresh_token)
    assert granted.refresh_expires_in == 300
    assert granted.expires_in == 300  # an access token does not promise more than that
    caller = await caller_of(runtime, granted)
    await runtime.callers.confirm(caller)

    clock.advance(minutes=5)

    with pytest.raises(InvalidToken, match="expired"):
        await caller_of(runtime, granted)
    with pytest.raises(InvalidToken):
        await runtime.callers.confirm(caller)
    with pytest.raises(InvalidToken):
        await runtime.minter.mint(caller, Wish())
    assert openai.requests == []
    await assert_refused(runtime, granted.refresh_token)
    assert await reasons(runtime) == ["sign_in_expired"]


async def test_a_sign_in_of_the_previous_release_is_good_for_its_access_token(
    runtime: Runtime, alice: User, clock: StandingClock
) -> None:
    sign_in_id = new_id("sgn")
    row = {
        "id": sign_in_id,
        "user_id": alice.id,
        "created_at": to_unix_microseconds(clock()),
    }
    await runtime.log.record(
        [Event(action="user.sign_in", outcome="succeeded")],
        lambda tx: tx.execute(sign_ins.insert(), row).close(),
    )
    issued = runtime.access_tokens.issue(user_id=alice.id, scope="mint", sign_in_id=sign_in_id)
    caller = await runtime.callers.authenticate(f"Bearer {issued.token}", HOME, scope="mint")

    await runtime.callers.confirm(caller)
    await runtime.minter.mint(caller, Wish())
    await runtime.sign_out.forget_expired()
    await runtime.callers.confirm(caller)


async def test_sign_ins_past_their_lifetime_are_forgotten_with_all_their_tokens(
    runtime: Runtime, alice: User, clock: StandingClock
) -> None:
    old = [await sign_in(runtime, alice) for _ in range(AT_ONCE + 2)]
    await refresh(runtime, old[0].refresh_token)
    clock.advance(days=29)
    young = await sign_in(runtime, alice)
    assert await runtime.sign_out.forget_expired() == 0
    clock.advance(days=1)

    assert [await runtime.sign_out.forget_expired() for _ in range(3)] == [AT_ONCE, 2, 0]

    def left(tx: sa.Connection) -> list[int]:
        tables = (sign_ins, refresh_tokens.refresh_tokens)
        return [len(tx.execute(table.select()).all()) for table in tables]

    assert await runtime.database.read(left) == [1, 1]
    found = await rows(runtime.database, action="sign_in.expire")
    assert [row["count"] for row in found] == [AT_ONCE, 2]
    await assert_refused(runtime, old[1].refresh_token)
    await refresh(runtime, young.refresh_token)


# Scopes -------------------------------------------------------------------------------------


async def test_a_narrower_access_token_leaves_the_sign_in_as_wide_as_it_was(
    runtime: Runtime, admin: User
) -> None:
    granted = await sign_in(runtime, admin)

    narrow = await refresh(runtime, granted.refresh_token, scope="mint")
    wide = await refresh(runtime, narrow.refresh_token)

    assert (narrow.scope, wide.scope) == ("mint", "admin audit:read mint")


@pytest.mark.parametrize("scope", ["mint audit:read", "root", " "])
async def test_more_than_the_sign_in_was_granted_is_refused_and_the_token_stays_good(
    runtime: Runtime, admin: User, scope: str
) -> None:
    granted = await runtime.sign_in.begin(admin, frozenset({"mint"}), HOME)

    with pytest.raises(GrantRefused) as caught:
        await refresh(runtime, granted.refresh_token, scope=scope)

    assert caught.value.error == "invalid_scope"
    assert await reasons(runtime) == ["invalid_scope"]
    assert (await refresh(runtime, granted.refresh_token)).scope == "mint"


async def test_what_the_role_has_lost_is_not_granted_again(runtime: Runtime, admin: User) -> None:
    granted = await sign_in(runtime, admin)
    demote = sa.text("UPDATE users SET role = 'user'")
    await runtime.database.alter(lambda tx: tx.execute(demote).close())

    assert (await refresh(runtime, granted.refresh_token)).scope == "mint"


# Ending -------------------------------------------------------------------------------------


async def test_disabling_ends_the_sign_ins_for_good(runtime: Runtime, alice: User) -> None:
    granted = await sign_in(runtime, alice)
    await runtime.users.disable(alice.email, by=OPERATOR)
    await assert_refused(runtime, granted.refresh_token)

    await runtime.users.enable(alice.email, by=OPERATOR)

    await assert_refused(runtime, granted.refresh_token)
    assert await reasons(runtime) == ["user_disabled", "sign_in_revoked"]


async def test_another_password_ends_the_sign_ins(runtime: Runtime, alice: User) -> None:
    granted = await sign_in(runtime, alice)

    await runtime.users.set_password(alice.email, "another long enough password", by=OPERATOR)

    await assert_refused(runtime, granted.refresh_token)
    assert await reasons(runtime) == ["sign_in_revoked"]


async def test_a_refresh_that_races_with_the_end_of_its_sign_in_gets_nothing(
    runtime: Runtime, alice: User
) -> None:
    token = (await sign_in(runtime, alice)).refresh_token
    found = await runtime.database.read(lambda tx: refresh_tokens.find(tx, token))
    assert found is not None
    await runtime.users.disable(alice.email, by=OPERATOR)

    with pytest.raises(GrantRefused):
        await runtime.sign_in._renew(found, found.scopes, HOME)  # read before the end

    assert await rows(runtime.database, action="sign_in.refresh") == []


@pytest.mark.parametrize("kind", ["access", "refresh", "used refresh", "expired refresh"])
async def test_any_token_of_a_sign_in_ends_it_and_no_other(
    runtime: Runtime, alice: User, clock: StandingClock, kind: str
) -> None:
    used = await sign_in(runtime, alice)
    newest = await refresh(runtime, used.refresh_token)
    if kind == "expired refresh":
        clock.advance(days=14)
    other = await sign_in(runtime, alice)
    token = {"access": newest.access_token, "used refresh": used.refresh_token}.get(
        kind, newest.refresh_token
    )

    for _ in range(2):
        await runtime.sign_out.by_token(token, HOME)

    [row] = await rows(runtime.database, action="sign_in.revoke")
    assert (row["outcome"], row["actor"], row["request_id"]) == ("succeeded", alice.id, "req_1")
    assert "reason" not in row
    await assert_refused(runtime, newest.refresh_token)
    assert await reasons(runtime) == ["sign_in_revoked"]
    await refresh(runtime, other.refresh_token)


async def test_a_token_that_is_none_of_ours_ends_nothing(
    runtime: Runtime, alice: User, clock: StandingClock
) -> None:
    granted = await sign_in(runtime, alice)
    clock.advance(minutes=10)
    before = await rows(runtime.database)

    for token in (granted.access_token, MADE_UP, "", "junk", "a.b.c", "\ud800", "x" * 60_000):
        await runtime.sign_out.by_token(token, HOME)  # the first has expired

    assert await rows(runtime.database) == before
    await refresh(runtime, granted.refresh_token)


async def test_signing_out_everywhere_ends_all_of_ones_own_sign_ins(
    runtime: Runtime, alice: User, admin: User
) -> None:
    here, there, foreign = [await sign_in(runtime, user) for user in (alice, alice, admin)]
    caller = await caller_of(runtime, here)

    await runtime.sign_out.everywhere(caller)

    for granted in (here, there):
        await assert_refused(runtime, granted.refresh_token)
        with pytest.raises(InvalidToken):
            await runtime.callers.confirm(await caller_of(runtime, granted))
    [row] = await rows(runtime.database, action="user.sign_out")
    assert (row["outcome"], row["actor"], row["sign_in"]) == (
        "succeeded",
        alice.id,
        caller.sign_in_id,
    )
    await refresh(runtime, foreign.refresh_token)
    await runtime.sign_in.with_password(HOME, email=alice.email, password=PASSWORD)
