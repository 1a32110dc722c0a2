"""Erasing a person: nothing identifies them any more, and the chain is whole."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
import sqlalchemy as sa

from app.audit.events import Event, Personal, audit_personal
from app.base.errors import AuditUnavailable, Conflict, NotFound
from app.base.ids import new_id
from app.base.sqlite import SqliteDatabase
from app.identity import erasure
from app.identity.acts import By
from app.identity.callers import Origin
from app.identity.erased import is_erased
from app.identity.users import OPERATOR, User
from app.runtime import Runtime
from tests.clock import StandingClock
from tests.conftest import PASSWORD, bearer_for, caller_for, on_sqlite
from tests.installation import installation_of
from tests.log_rows import rows

ADDRESS = "203.0.113.77"


async def left(runtime: Runtime) -> str:
    """Return all personal data that are kept."""
    wanted = sa.select(audit_personal.c.data)
    return "".join(await runtime.database.read(lambda tx: tx.scalars(wanted).all()))


async def act(runtime: Runtime, **members: Any) -> None:
    event = Event(action="test.act", outcome="done", personal=Personal(ip=ADDRESS), **members)
    await runtime.log.record([event])


async def test_a_person_is_erased_and_the_chain_is_whole(
    runtime: Runtime, alice: User, admin: User, clock: StandingClock
) -> None:
    owner = installation_of(runtime, clock)
    origin = Origin(ip=ADDRESS, user_agent="a browser of hers")
    await runtime.sign_in.with_password(origin, email=alice.email, password=PASSWORD)
    await runtime.denials.record(
        Event(
            action="user.sign_in",
            outcome="denied",
            personal=Personal(ip="192.0.2.9", email=alice.email),
        )
    )
    await act(runtime, actor=alice.id)
    await act(runtime, actor=admin.id, target=alice.id)
    await runtime.log.record(
        [
            Event(
                action="test.act", outcome="done", actor=admin.id, personal=Personal(ip="192.0.2.5")
            )
        ]
    )
    await owner.checkpoint()

    erased = await runtime.erasure.erase("Alice@example.com", by="operator")

    assert erased.user_id == alice.id
    assert erased.rows == 4
    kept = await left(runtime)
    assert ADDRESS not in kept
    assert alice.email not in kept
    assert "192.0.2.5" in kept
    assert await owner.faults() == []
    [row] = await rows(runtime.database, action="user.erase")
    assert (row["target"], row["actor"]) == (alice.id, "operator")
    user = await runtime.users.get(alice.id)
    assert user is not None
    assert user.disabled_at is not None
    assert user.email == f"{alice.id.lower()}@erased.invalid"
    assert await runtime.users.find(alice.email) is None


async def test_somebody_with_many_rows_is_erased_in_parts(
    runtime: Runtime, alice: User, admin: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasure, "LOOKED_THROUGH", 3)
    monkeypatch.setattr(erasure, "AT_ONCE", 2)
    tried = Personal(ip=ADDRESS, email=alice.email)
    for _ in range(7):
        await act(runtime, actor=alice.id)
        await act(runtime, actor=admin.id)
        await runtime.log.record([Event(action="test.act", outcome="denied", personal=tried)])

    erased = await runtime.erasure.erase(alice.id, by="operator")

    assert erased.rows == 14
    assert (await left(runtime)).count(ADDRESS) == 7
    told = await rows(runtime.database, action="personal_data.erase")
    assert sum(row["count"] for row in told) == 14
    assert all(row["count"] <= 2 for row in told)


async def test_nobody_signs_in_as_somebody_erased(runtime: Runtime, alice: User) -> None:
    await bearer_for(runtime, alice)
    await runtime.erasure.erase(alice.id, by="operator")
    user = await runtime.users.get(alice.id)
    assert user is not None

    assert not await runtime.sign_in._passwords.verify(PASSWORD, user.password_hash)


async def test_an_external_user_is_a_stranger_afterwards(runtime: Runtime) -> None:
    issuer, credential = "https://issuer.example.com", "jti"
    known = await runtime.external_users.id_of(
        issuer, "ada", credential=credential, request_id=None, personal=Personal(ip=ADDRESS)
    )

    await runtime.erasure.erase(known, by="operator")

    user = await runtime.external_users.get(known)
    assert user is not None
    assert user.disabled_at is not None
    assert "ada" not in user.subject
    assert ADDRESS not in await left(runtime)
    again = await runtime.external_users.id_of(
        issuer, "ada", credential=credential, request_id=None, personal=Personal()
    )
    assert again != known


async def test_an_end_user_of_a_backend_is_erased(runtime: Runtime) -> None:
    pseudonym = new_id("eus")
    await act(runtime, actor=pseudonym)

    erased = await runtime.erasure.erase(pseudonym, by="operator")

    assert erased.rows == 1
    assert ADDRESS not in await left(runtime)


@pytest.mark.parametrize(
    "who",
    [
        "nobody@example.com",
        "usr_01M7YSSC285KZ11P1XE7FKMWK6",
        "eus_01M7YSSC285KZ11P1XE7FKMWK6",
        "\x00",
    ],
)
async def test_whom_nobody_knows_is_not_erased(runtime: Runtime, who: str) -> None:
    with pytest.raises(NotFound):
        await runtime.erasure.erase(who, by="operator")


async def test_the_rows_about_it_say_which_admin_it_was_and_from_where(
    runtime: Runtime, alice: User, admin: User
) -> None:
    caller = await caller_for(runtime, admin)
    await act(runtime, actor=alice.id)

    await runtime.erasure.erase(alice.id, by=caller)
    again = await runtime.erasure.erase(alice.id, by=caller)

    assert again.rows == 0  # the rows about the first time keep the address of the admin
    acts = await rows(runtime.database, actor=admin.id, target=alice.id)
    assert [row["action"] for row in acts] == [
        "user.erase",
        "personal_data.erase",
        "user.erase",
    ]
    assert all(
        (row["credential"], row["sign_in"]) == (caller.credential, caller.sign_in_id)
        for row in acts
    )
    entry = await runtime.search.event(acts[1]["event_id"])
    assert entry is not None
    assert entry.personal is not None
    assert entry.personal["ip"] == caller.origin.ip


async def test_nobody_erases_themselves_or_the_last_admin(
    runtime: Runtime, admin: User, alice: User
) -> None:
    caller = await caller_for(runtime, admin)

    with pytest.raises(Conflict, match="themselves"):
        await runtime.erasure.erase(admin.id, by=caller)
    with pytest.raises(Conflict, match="the last admin"):
        await runtime.erasure.erase(admin.email, by="usr_somebody")

    assert await rows(runtime.database, action="user.erase") == []
    assert await runtime.users.find(admin.email)


async def test_of_two_admins_who_erase_each_other_one_stays(runtime: Runtime, admin: User) -> None:
    other = await runtime.users.add("o@x.org", role="admin", password=PASSWORD, by=OPERATOR)
    here, there = [await caller_for(runtime, each) for each in (admin, other)]

    ends = await asyncio.gather(
        runtime.erasure.erase(other.id, by=here),
        runtime.erasure.erase(admin.id, by=there),
        return_exceptions=True,
    )

    assert sorted(type(end).__name__ for end in ends) == ["Conflict", "Erased"]


@on_sqlite
async def test_what_was_erased_is_not_in_the_file_either(runtime: Runtime, alice: User) -> None:
    for _ in range(50):
        await act(runtime, actor=alice.id)
    await runtime.erasure.erase(alice.email, by="operator")

    assert isinstance(runtime.database, SqliteDatabase)
    path = runtime.database.path
    files = [path, path.with_name(path.name + "-wal")]
    found = b"".join(file.read_bytes() for file in files if file.exists())
    assert ADDRESS.encode() not in found
    assert alice.email.encode() not in found


async def test_nobody_lets_an_erased_person_back_in(runtime: Runtime, alice: User) -> None:
    await runtime.erasure.erase(alice.id, by="operator")
    before = len(await rows(runtime.database))

    with pytest.raises(Conflict, match="erased, for good"):
        await runtime.directory.enable(alice.id, by="operator")
    with pytest.raises(Conflict, match="erased, for good"):
        await runtime.password_changes.make_link(alice.id, by="operator")

    user = await runtime.users.get(alice.id)
    assert user is not None
    assert user.disabled_at is not None
    assert len(await rows(runtime.database)) == before


async def test_nobody_lets_an_erased_external_user_back_in(runtime: Runtime) -> None:
    known = await runtime.external_users.id_of(
        "https://issuer.example.com", "ada", credential="jti", request_id=None, personal=Personal()
    )
    await runtime.erasure.erase(known, by="operator")

    with pytest.raises(Conflict, match="erased, for good"):
        await runtime.directory.enable(known, by="operator")


async def test_a_name_that_only_looks_like_it_is_not_that_of_an_erased_person(
    alice: User, admin: User
) -> None:
    assert is_erased(alice.id, f"{alice.id.lower()}@erased.invalid")
    assert is_erased(alice.id, f"erased:{alice.id}")
    for name in (f"{admin.id.lower()}@erased.invalid", "erased:mallory", "bob@erased.invalid"):
        assert not is_erased(alice.id, name)


async def test_an_erasing_that_was_interrupted_is_finished_by_the_same_words(
    runtime: Runtime, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = Personal(ip=ADDRESS, email=alice.email)
    await act(runtime, actor=alice.id)
    await runtime.log.record([Event(action="test.act", outcome="denied", personal=tried)])

    async def away(*_: object) -> None:
        raise AuditUnavailable(retry_after_seconds=2)

    with monkeypatch.context() as patch:
        patch.setattr(runtime.erasure, "_forget", away)
        with pytest.raises(AuditUnavailable):
            await runtime.erasure.erase(alice.email, by="operator")
    user = await runtime.users.get(alice.id)
    assert user is not None
    assert user.disabled_at is not None
    assert ADDRESS in await left(runtime)

    erased = await runtime.erasure.erase(alice.email, by="operator")

    assert erased.rows == 2
    assert ADDRESS not in await left(runtime)
    assert await runtime.users.find(alice.email) is None


async def test_who_is_enabled_while_they_are_erased_is_stopped_all_the_same(
    runtime: Runtime, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    await act(runtime, actor=alice.id)
    forget = runtime.erasure._forget

    async def enable_them_meanwhile(ids: Sequence[str], user_id: str, by: By) -> int:
        await runtime.users.enable(user_id, by=OPERATOR)
        return await forget(ids, user_id, by)

    monkeypatch.setattr(runtime.erasure, "_forget", enable_them_meanwhile)

    await runtime.erasure.erase(alice.id, by="operator")

    user = await runtime.users.get(alice.id)
    assert user is not None
    assert user.disabled_at is not None
    assert is_erased(user.id, user.email)
