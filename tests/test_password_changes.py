"""Changing a password: by its owner, and by a link that an admin has made."""

import asyncio
from collections import Counter

import pytest

from app.base.errors import Conflict, InvalidRequest, InvalidToken, NotFound, RateLimited
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
from tests.waiting import until

HOME = Origin(request_id="req_1", ip="192.0.2.7", user_agent="pytest")
NEW = "violin harbour seventeen plums"
OTHER = "nobody knows the turnip waltz"


async def sign_in(runtime: Runtime, password: str) -> None:
    await runtime.sign_in.with_password(HOME, email="alice@example.com", password=password)


async def link_for(runtime: Runtime, user: User) -> str:
    return (await runtime.password_changes.make_link(user.id, by=OPERATOR)).url


async def fault(runtime: Runtime, token: str, new: str = NEW) -> tuple[str, str]:
    """Return field and reason of the refusal to use a link."""
    with pytest.raises(InvalidRequest) as caught:
        await runtime.password_changes.by_link(HOME, token=token, new=new)
    [error] = caught.value.errors
    return error.field, error.reason


SPENT = ("token", "is not good any more, or never was; ask for a new link")


async def set_passwords(runtime: Runtime) -> list[tuple[object, object, object]]:
    """Return outcome, reason and actor of what the log has of new passwords."""
    found = await rows(runtime.database, action="user.set_password")
    return [(row["outcome"], row.get("reason"), row.get("actor")) for row in found]


# By the owner


async def test_the_owner_changes_it_and_the_other_sign_ins_end(
    runtime: Runtime, alice: User
) -> None:
    here, elsewhere = await caller_for(runtime, alice), await caller_for(runtime, alice)

    await runtime.password_changes.by_owner(here, current=PASSWORD, new=NEW)

    await runtime.callers.confirm(here)
    with pytest.raises(InvalidToken):
        await runtime.callers.confirm(elsewhere)
    with pytest.raises(GrantRefused):
        await sign_in(runtime, PASSWORD)
    await sign_in(runtime, NEW)
    assert await set_passwords(runtime) == [("succeeded", None, alice.id)]


async def test_without_the_current_one_nothing_changes_and_the_tries_are_slowed(
    runtime: Runtime, alice: User
) -> None:
    caller = await caller_for(runtime, alice)
    for _ in range(5):
        with pytest.raises(InvalidRequest) as caught:
            await runtime.password_changes.by_owner(caller, current=OTHER, new=NEW)
        assert [error.field for error in caught.value.errors] == ["currentPassword"]
    with pytest.raises(RateLimited):
        await runtime.password_changes.by_owner(caller, current=PASSWORD, new=NEW)

    expected = [("denied", "wrong_password", alice.id)] * 5
    await runtime.denials.settle(all_of_them=True)
    assert await set_passwords(runtime) == expected
    with pytest.raises(RateLimited):  # a thief of the access token has no more tries by signing in
        await sign_in(runtime, PASSWORD)


@pytest.mark.parametrize("new", ["short", "passwordpassword", "alice in the looking glass"])
async def test_one_that_may_not_be_set_changes_nothing(
    runtime: Runtime, alice: User, new: str
) -> None:
    caller = await caller_for(runtime, alice)

    with pytest.raises(InvalidRequest) as caught:
        await runtime.password_changes.by_owner(caller, current=PASSWORD, new=new)

    assert [error.field for error in caught.value.errors] == ["newPassword"]
    await sign_in(runtime, PASSWORD)


async def test_of_two_changes_at_once_one_wins(runtime: Runtime, alice: User) -> None:
    one, other = await caller_for(runtime, alice), await caller_for(runtime, alice)

    answers = await asyncio.gather(
        runtime.password_changes.by_owner(one, current=PASSWORD, new=NEW),
        runtime.password_changes.by_owner(other, current=PASSWORD, new=OTHER),
        return_exceptions=True,
    )

    assert answers.count(None) == 1
    [lost] = filter(None, answers)
    assert isinstance(lost, InvalidToken | InvalidRequest)  # it came while, or after, the other was


async def both_wait(hasher: CountingHasher) -> bool:
    return hasher.waiting == 2


async def test_an_account_that_changes_meanwhile_keeps_what_it_was_given(
    settings: Settings, clock: StandingClock, openai: FakeOpenAI
) -> None:
    hasher = CountingHasher()
    async with played(
        settings, clock=clock, openai=openai, passwords=Passwords(hasher=hasher)
    ) as runtime:
        user = await runtime.users.add(
            "alice@example.com", role="user", password=PASSWORD, by=OPERATOR
        )
        caller, link = await caller_for(runtime, user), await link_for(runtime, user)
        hasher.started.clear()
        hasher.may_go_on.clear()
        changes = [
            asyncio.create_task(
                runtime.password_changes.by_owner(caller, current=PASSWORD, new=NEW)
            ),
            asyncio.create_task(runtime.password_changes.by_link(HOME, token=link, new=NEW)),
        ]
        await until(lambda: both_wait(hasher))
        await runtime.users.disable(user.email, by=OPERATOR)
        hasher.may_go_on.set()
        answers = await asyncio.gather(*changes, return_exceptions=True)
        await runtime.users.enable(user.email, by=OPERATOR)

        assert list(map(type, answers)) == [InvalidToken, InvalidRequest]
        await sign_in(runtime, PASSWORD)


# By a link


async def test_a_link_sets_the_password_once_and_ends_every_sign_in(
    runtime: Runtime, alice: User, admin: User
) -> None:
    caller = await caller_for(runtime, alice)
    link = await runtime.password_changes.make_link(alice.id, by=await caller_for(runtime, admin))
    await runtime.callers.confirm(caller)

    await runtime.password_changes.by_link(HOME, token=link.url, new=NEW)

    with pytest.raises(InvalidToken):
        await runtime.callers.confirm(caller)
    with pytest.raises(GrantRefused):
        await sign_in(runtime, PASSWORD)
    await sign_in(runtime, NEW)
    assert await fault(runtime, link.url) == SPENT
    assert link.url.startswith(f"{runtime.settings.public_url}/reset#rts_")
    assert "rts_" not in repr(link)
    [made] = await rows(runtime.database, action="user.make_reset_link")
    assert (made["actor"], made["target"], made["request_id"]) == (admin.id, alice.id, "req_test")
    assert await set_passwords(runtime) == [
        ("succeeded", "reset_link", alice.id),
        ("denied", "unknown_reset_link", None),
    ]


async def test_the_token_alone_will_do(runtime: Runtime, alice: User) -> None:
    _, _, token = (await link_for(runtime, alice)).partition("#")

    await runtime.password_changes.by_link(HOME, token=f" {token} ", new=NEW)

    await sign_in(runtime, NEW)


async def test_a_link_ends_after_an_hour(
    runtime: Runtime, alice: User, clock: StandingClock
) -> None:
    link = await runtime.password_changes.make_link(alice.id, by=OPERATOR)
    clock.advance(minutes=59)
    assert (link.expires_at - clock()).total_seconds() == 60
    clock.advance(minutes=1)

    assert await fault(runtime, link.url) == SPENT
    assert await set_passwords(runtime) == [("denied", "reset_link_expired", alice.id)]
    await sign_in(runtime, PASSWORD)


async def test_a_newer_link_another_password_and_being_disabled_end_a_link(
    runtime: Runtime, alice: User
) -> None:
    first = await link_for(runtime, alice)
    second = await link_for(runtime, alice)
    assert await fault(runtime, first) == SPENT

    caller = await caller_for(runtime, alice)
    await runtime.password_changes.by_owner(caller, current=PASSWORD, new=OTHER)
    assert await fault(runtime, second) == SPENT

    third = await link_for(runtime, alice)
    await runtime.users.set_password(alice.email, PASSWORD, by=OPERATOR)
    assert await fault(runtime, third) == SPENT

    fourth = await link_for(runtime, alice)
    await runtime.users.disable(alice.email, by=OPERATOR)
    with pytest.raises(Conflict, match="disabled"):
        await link_for(runtime, alice)
    await runtime.users.enable(alice.email, by=OPERATOR)
    assert await fault(runtime, fourth) == SPENT
    await sign_in(runtime, PASSWORD)


async def test_a_password_that_may_not_be_set_leaves_the_link_good(
    runtime: Runtime, alice: User
) -> None:
    link = await link_for(runtime, alice)

    for new in ("short", "passwordpassword", "alice in the looking glass"):
        field, _ = await fault(runtime, link, new)
        assert field == "password"

    await runtime.password_changes.by_link(HOME, token=link, new=NEW)


@pytest.mark.parametrize(
    "token", ["", "rts_", "rts_" + "a" * 43, "rtr_" + "a" * 43, "#", "\x00", "x" * 60_000, "\ud800"]
)
async def test_what_is_no_link_is_refused(runtime: Runtime, alice: User, token: str) -> None:
    await link_for(runtime, alice)

    assert await fault(runtime, token) == SPENT


async def test_of_many_who_use_a_link_at_once_one_sets_the_password(
    runtime: Runtime, alice: User
) -> None:
    link = await link_for(runtime, alice)
    wishes = [f"{NEW} number {number}" for number in range(10)]

    answers = await asyncio.gather(
        *(runtime.password_changes.by_link(HOME, token=link, new=wish) for wish in wishes),
        return_exceptions=True,
    )

    assert Counter(map(type, answers)) == {type(None): 1, InvalidRequest: 9}
    await sign_in(runtime, wishes[answers.index(None)])


async def test_of_many_links_made_at_once_one_is_good(runtime: Runtime, alice: User) -> None:
    links = await asyncio.gather(*(link_for(runtime, alice) for _ in range(5)))

    answers = await asyncio.gather(
        *(runtime.password_changes.by_link(HOME, token=link, new=NEW) for link in links),
        return_exceptions=True,
    )
    assert Counter(map(type, answers)) == {type(None): 1, InvalidRequest: 4}


async def test_links_are_for_accounts_that_are_there(runtime: Runtime) -> None:
    with pytest.raises(NotFound):
        await runtime.password_changes.make_link("usr_nobody", by=OPERATOR)

    assert await rows(runtime.database, action="user.make_reset_link") == []


async def test_one_address_may_not_try_many_tokens(runtime: Runtime) -> None:
    for _ in range(30):
        await fault(runtime, "rts_" + "a" * 43)

    with pytest.raises(RateLimited):
        await runtime.password_changes.by_link(HOME, token="rts_" + "a" * 43, new=NEW)


async def test_a_link_that_is_replaced_while_it_is_used_is_not_good(
    settings: Settings, clock: StandingClock, openai: FakeOpenAI
) -> None:
    hasher = CountingHasher()
    async with played(
        settings, clock=clock, openai=openai, passwords=Passwords(hasher=hasher)
    ) as runtime:
        user = await runtime.users.add(
            "alice@example.com", role="user", password=PASSWORD, by=OPERATOR
        )
        first = await link_for(runtime, user)
        hasher.started.clear()
        hasher.may_go_on.clear()
        using = asyncio.create_task(runtime.password_changes.by_link(HOME, token=first, new=OTHER))
        await asyncio.to_thread(hasher.started.wait, 10)
        second = await link_for(runtime, user)
        hasher.may_go_on.set()

        with pytest.raises(InvalidRequest):
            await using
        await runtime.password_changes.by_link(HOME, token=second, new=NEW)
        await sign_in(runtime, NEW)
