"""Service keys are made, rotated and revoked, below the web and by an admin over HTTP."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx
import pytest

from app.base.errors import Conflict, InvalidRequest, InvalidToken, NotFound
from app.housekeeping import housekeeping
from app.identity.users import OPERATOR, User
from app.main import create_app
from app.runtime import Runtime
from app.settings import Settings
from tests.clock import StandingClock
from tests.conftest import START, as_served, bearer_for, caller_for, played
from tests.fakes import FakeOpenAI
from tests.keys import bearer_of, new_key, shown
from tests.log_faults import stopped
from tests.log_lines import captured_log
from tests.log_rows import rows
from tests.waiting import until

KEYS = "/admin/api/keys"


# Making -------------------------------------------------------------------------------------


async def test_a_key_is_made_with_a_row_that_says_what_it_may(runtime: Runtime) -> None:
    new = await new_key(runtime, "mint:on-behalf", "audit:read", profiles=["default"])

    assert new.key.scopes == {"mint:on-behalf", "audit:read"}
    assert new.key.expires_at - new.key.created_at == timedelta(days=90)
    [row] = await rows(runtime.database)
    assert (row["action"], row["outcome"]) == ("service_key.create", "succeeded")
    assert (row["actor"], row["target"]) == ("operator", new.key.id)
    assert (row["scopes"], row["profiles"]) == ("audit:read mint:on-behalf", "default")
    assert row["expires_at"] == int((START + timedelta(days=90)).timestamp())
    assert new.text.get_secret_value() not in str(row)
    assert await runtime.key_ring.all() == [new.key]


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "x" * 65}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"scopes": []}, "scopes"),
        ({"scopes": ["admin"]}, "scopes"),
        ({"scopes": ["mint"]}, "scopes"),
        ({"profiles": []}, "profiles"),
        ({"profiles": ["nope"]}, "profiles"),
        ({"profiles": ["default"] * 65}, "profiles"),
        ({"lifetime_days": 0}, "lifetimeDays"),
        ({"lifetime_days": 367}, "lifetimeDays"),
    ],
)
async def test_what_cannot_be_a_key_is_not_made(
    runtime: Runtime, wanted: dict[str, Any], field: str
) -> None:
    fine = {"name": "a backend", "scopes": ["mint:on-behalf"]}
    with pytest.raises(InvalidRequest) as caught:
        await runtime.key_ring.create(**{**fine, **wanted}, by=None)

    assert [error.field for error in caught.value.errors] == [field]
    assert await rows(runtime.database) == []


async def test_a_key_is_not_for_a_profile_that_users_may_not_ask_for(
    settings: Settings, clock: StandingClock, openai: FakeOpenAI
) -> None:
    file = settings.data_dir / "profiles.toml"
    file.write_text('[profiles.staff]\nmodel = "mini"\nroles = ["admin"]\n')
    with_staff = settings.model_copy(update={"profiles_file": file})
    async with played(with_staff, clock=clock, openai=openai) as runtime:
        with pytest.raises(InvalidRequest):
            await new_key(runtime, profiles=["staff"])


async def test_a_key_outlives_who_made_it_and_the_log_names_them(
    runtime: Runtime, admin: User
) -> None:
    made = await runtime.key_ring.create(
        "a backend", scopes=["mint:on-behalf"], by=await caller_for(runtime, admin)
    )
    await runtime.users.disable(admin.email, by=OPERATOR)

    assert (await shown(runtime, made)).credential == made.key.id
    [row] = await rows(runtime.database, action="service_key.create", actor=admin.id)
    assert row["target"] == made.key.id


# Revoking -----------------------------------------------------------------------------------


async def test_revoking_twice_changes_and_records_once(
    runtime: Runtime, clock: StandingClock
) -> None:
    new = await new_key(runtime)
    first = await runtime.key_ring.revoke(new.key.id, by=None)
    clock.advance(hours=1)

    again = await runtime.key_ring.revoke(new.key.id, by=None)

    assert again == first
    assert again.revoked_at == START
    assert len(await rows(runtime.database, action="service_key.revoke")) == 1


@pytest.mark.parametrize(
    "key_id", ["key_01M7YSSC285KZ11P1XE7FKMWK6", "usr_01M7YSSC285KZ11P1XE7FKMWK6", "", "key_\0"]
)
async def test_there_is_nothing_to_do_to_a_key_that_is_not_there(
    runtime: Runtime, key_id: str
) -> None:
    with pytest.raises(NotFound):
        await runtime.key_ring.revoke(key_id, by=None)
    with pytest.raises(NotFound):
        await runtime.key_ring.rotate(key_id, by=None)

    assert await rows(runtime.database) == []


# Rotating -----------------------------------------------------------------------------------


async def test_both_keys_are_good_for_the_overlap_and_then_the_new_one_alone(
    runtime: Runtime, clock: StandingClock
) -> None:
    old = await new_key(runtime, profiles=["default"], lifetime_days=30)
    clock.advance(days=10)

    new = await runtime.key_ring.rotate(old.key.id, by=None)

    clock.advance(hours=24, microseconds=-1)
    await shown(runtime, old)
    await shown(runtime, new)
    clock.advance(microseconds=1)
    with pytest.raises(InvalidToken, match="expired"):
        await shown(runtime, old)
    await shown(runtime, new)
    told = (old.key.name, old.key.scopes, old.key.profiles)
    assert (new.key.name, new.key.scopes, new.key.profiles) == told
    assert new.key.expires_at == START + timedelta(days=100)


async def test_a_rotation_is_two_rows_that_name_each_other(runtime: Runtime) -> None:
    old = await new_key(runtime)

    new = await runtime.key_ring.rotate(old.key.id, overlap_hours=2, lifetime_days=7, by=None)

    rotated, made = (await rows(runtime.database))[1:]
    assert (rotated["action"], made["action"]) == ("service_key.rotate", "service_key.create")
    assert (rotated["target"], rotated["successor"]) == (old.key.id, new.key.id)
    assert rotated["expires_at"] == int((START + timedelta(hours=2)).timestamp())
    assert made["target"] == new.key.id
    assert made["expires_at"] == int((START + timedelta(days=7)).timestamp())
    [listed, _] = sorted(await runtime.key_ring.all(), key=lambda key: key.id != old.key.id)
    assert listed.successor_id == new.key.id


async def test_without_an_overlap_the_old_key_ends_at_once(runtime: Runtime) -> None:
    old = await new_key(runtime)

    await runtime.key_ring.rotate(old.key.id, overlap_hours=0, by=None)

    with pytest.raises(InvalidToken, match="expired"):
        await shown(runtime, old)


async def test_rotating_prolongs_no_life(runtime: Runtime, clock: StandingClock) -> None:
    old = await new_key(runtime, lifetime_days=1)
    clock.advance(hours=23)

    await runtime.key_ring.rotate(old.key.id, overlap_hours=168, by=None)

    [listed] = [key for key in await runtime.key_ring.all() if key.id == old.key.id]
    assert listed.expires_at == old.key.expires_at


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        ({"overlap_hours": -1}, "overlapHours"),
        ({"overlap_hours": 169}, "overlapHours"),
        ({"lifetime_days": 367}, "lifetimeDays"),
    ],
)
async def test_a_figure_out_of_its_range_rotates_nothing(
    runtime: Runtime, wanted: dict[str, int], field: str
) -> None:
    old = await new_key(runtime)

    with pytest.raises(InvalidRequest) as caught:
        await runtime.key_ring.rotate(old.key.id, **wanted, by=None)

    assert [error.field for error in caught.value.errors] == [field]
    assert await runtime.key_ring.all() == [old.key]


async def test_only_a_good_key_without_a_successor_is_rotated(
    runtime: Runtime, clock: StandingClock
) -> None:
    rotated, revoked = await new_key(runtime), await new_key(runtime)
    expired = await new_key(runtime, lifetime_days=1)
    successor = await runtime.key_ring.rotate(rotated.key.id, overlap_hours=168, by=None)
    await runtime.key_ring.revoke(revoked.key.id, by=None)
    clock.advance(days=1)

    for new, told in ((rotated, successor.key.id), (revoked, "not good"), (expired, "not good")):
        with pytest.raises(Conflict, match=told):
            await runtime.key_ring.rotate(new.key.id, by=None)

    assert len(await runtime.key_ring.all()) == 4


async def test_of_ten_who_rotate_a_key_at_once_one_does(runtime: Runtime) -> None:
    old = await new_key(runtime)

    made = await asyncio.gather(
        *(runtime.key_ring.rotate(old.key.id, by=None) for _ in range(10)), return_exceptions=True
    )

    assert sum(isinstance(one, Conflict) for one in made) == 9
    assert len(await runtime.key_ring.all()) == 2
    assert len(await rows(runtime.database, action="service_key.rotate")) == 1


# Last use -----------------------------------------------------------------------------------


async def last_use(runtime: Runtime) -> list[Any]:
    return [key.last_used_at for key in await runtime.key_ring.all()]


async def test_the_last_use_is_noted_with_a_row_at_most_once_a_minute(
    runtime: Runtime, clock: StandingClock
) -> None:
    new = await new_key(runtime, "mint:on-behalf", "audit:read")
    await runtime.key_ring.note_uses()
    assert await last_use(runtime) == [None]

    for seconds in (0, 20, 39.9):
        clock.advance(seconds=seconds)
        await shown(runtime, new)
        await runtime.key_ring.note_uses()
    assert await last_use(runtime) == [START]
    clock.advance(seconds=0.1)
    await shown(runtime, new, scope="audit:read")  # reading leaves no other row
    await runtime.key_ring.note_uses()
    await runtime.key_ring.note_uses()

    assert await last_use(runtime) == [START + timedelta(minutes=1)]
    used = await rows(runtime.database, action="service_key.use")
    assert [(row["actor"], row["credential"]) for row in used] == [(new.key.id, new.key.id)] * 2


async def test_two_instances_note_a_use_once(
    runtime: Runtime, settings: Settings, clock: StandingClock, openai: FakeOpenAI
) -> None:
    new = await new_key(runtime)
    async with played(settings, clock=clock, openai=openai) as other:
        for instance in (runtime, other):
            await shown(instance, new)
        for instance in (runtime, other):
            await instance.key_ring.note_uses()

    assert len(await rows(runtime.database, action="service_key.use")) == 1


@pytest.mark.slow
@pytest.mark.impatient
async def test_a_use_is_noted_when_the_log_is_back(runtime: Runtime) -> None:
    await shown(runtime, await new_key(runtime))
    async with stopped(runtime.database):
        with pytest.raises(Exception, match="audit log cannot be written"):
            await runtime.key_ring.note_uses()

    await runtime.key_ring.note_uses()

    assert await last_use(runtime) == [START]


async def test_a_key_that_is_refused_is_not_used(runtime: Runtime, clock: StandingClock) -> None:
    new = await new_key(runtime, lifetime_days=1)
    clock.advance(days=1)
    with pytest.raises(InvalidToken):
        await shown(runtime, new)

    await runtime.key_ring.note_uses()

    assert await last_use(runtime) == [None]


# Warnings -----------------------------------------------------------------------------------


async def test_a_key_is_mentioned_two_weeks_before_its_end_until_it_is_replaced(
    runtime: Runtime, clock: StandingClock
) -> None:
    new = await new_key(runtime, lifetime_days=20)
    clock.advance(days=6, microseconds=-1)
    assert await runtime.key_ring.warnings() == []

    clock.advance(microseconds=1)
    [line] = await runtime.key_ring.warnings()

    assert line == (
        f"the service key {new.key.id} (a backend) ends on 2026-12-10 (days left: 14);"
        f" replace it with: realtime-tokens keys rotate {new.key.id}"
    )
    await runtime.key_ring.rotate(new.key.id, by=None)
    assert await runtime.key_ring.warnings() == []


@pytest.mark.parametrize("how", ["revoked", "expired"])
async def test_a_key_that_is_over_is_not_mentioned(
    runtime: Runtime, clock: StandingClock, how: str
) -> None:
    new = await new_key(runtime, lifetime_days=1)
    assert len(await runtime.key_ring.warnings()) == 1

    if how == "revoked":
        await runtime.key_ring.revoke(new.key.id, by=None)
    else:
        clock.advance(days=1)

    assert await runtime.key_ring.warnings() == []


async def test_the_log_of_the_server_mentions_it_at_the_start_and_once_a_day(
    runtime: Runtime, clock: StandingClock
) -> None:
    await new_key(runtime, lifetime_days=2)
    with captured_log() as lines:

        def said() -> list[Any]:
            return [line for line in lines.all if line["event"] == "service_key_ends_soon"]

        async def said_once() -> bool:
            return len(said()) == 1

        async with housekeeping(runtime, pause_seconds=0.001):
            await until(said_once)
        await runtime.key_ring.warn()
        assert len(said()) == 1
        clock.advance(days=1)
        await runtime.key_ring.warn()

    assert [line["level"] for line in said()] == ["warning"] * 2
    assert "ends on 2026-11-22 (days left: 1)" in said()[1]["note"]


# The admin's API ----------------------------------------------------------------------------


@pytest.fixture
async def client(runtime: Runtime, admin: User) -> AsyncIterator[httpx.AsyncClient]:
    """The service, asked by an admin."""
    app = create_app(runtime.settings)
    transport = httpx.ASGITransport(as_served(app, runtime), client=("192.0.2.7", 4711))
    async with httpx.AsyncClient(
        transport=transport, base_url="http://x", headers=await bearer_for(runtime, admin)
    ) as client:
        yield client


WANTED = {"name": "shop backend", "scopes": ["mint:on-behalf"]}


async def test_an_admin_makes_a_key_that_works_and_is_shown_once(
    client: httpx.AsyncClient, runtime: Runtime, admin: User
) -> None:
    made = await client.post(
        KEYS, json={**WANTED, "lifetimeDays": 10}, headers={"X-Request-ID": "r1"}
    )
    listed = await client.get(KEYS)

    assert made.headers["Cache-Control"] == "no-store"
    body = made.json()
    key = body.pop("key")
    assert body == {
        "id": body["id"],
        "name": "shop backend",
        "scopes": ["mint:on-behalf"],
        "profiles": None,
        "status": "ending",
        "createdAt": "2026-11-20T12:00:00Z",
        "expiresAt": "2026-11-30T12:00:00Z",
        "revokedAt": None,
        "successor": None,
        "lastUsedAt": None,
    }
    assert listed.json() == {"keys": [body]}
    minted = await client.post(
        "/realtime/token", headers={"Authorization": f"Bearer {key}"}, json={"user": "17"}
    )
    assert minted.status_code == 200
    [row] = await rows(runtime.database, action="service_key.create")
    assert (row["actor"], row["target"], row["request_id"]) == (admin.id, body["id"], "r1")
    assert {"credential", "sign_in", "personal"} <= row.keys()


async def test_an_admin_rotates_and_revokes(client: httpx.AsyncClient, runtime: Runtime) -> None:
    made = (await client.post(KEYS, json={**WANTED, "profiles": ["default"]})).json()

    rotated = await client.post(f"{KEYS}/{made['id']}/rotate", json={"overlapHours": 1})
    revoked = await client.post(f"{KEYS}/{made['id']}/revoke")

    successor = rotated.json()
    assert rotated.headers["Cache-Control"] == "no-store"
    assert successor["profiles"] == ["default"]
    assert (revoked.json()["status"], revoked.json()["successor"]) == ("revoked", successor["id"])
    assert "key" not in revoked.json()
    statuses = {key["id"]: key["status"] for key in (await client.get(KEYS)).json()["keys"]}
    assert statuses == {made["id"]: "revoked", successor["id"]: "active"}
    actions = [row["action"] for row in await rows(runtime.database, target=made["id"])]
    assert actions == ["service_key.create", "service_key.rotate", "service_key.revoke"]


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({}, "name"),
        ({**WANTED, "scopes": ["admin"]}, "scopes.0"),
        ({**WANTED, "scopes": []}, "scopes"),
        ({**WANTED, "profiles": ["nope"]}, "profiles"),
        ({**WANTED, "profiles": []}, "profiles"),
        ({**WANTED, "lifetimeDays": 367}, "lifetimeDays"),
        ({**WANTED, "lifetimeDays": "90"}, "lifetimeDays"),
        ({**WANTED, "name": "a\u0000b"}, "name"),
        ({**WANTED, "key": "rtk_live_x"}, "key"),
    ],
)
async def test_a_wrong_wish_for_a_key_names_the_field(
    client: httpx.AsyncClient, runtime: Runtime, asked: dict[str, Any], field: str
) -> None:
    answer = await client.post(KEYS, json=asked)

    assert answer.status_code == 422
    assert field in [error["field"] for error in answer.json()["errors"]]
    assert await runtime.key_ring.all() == []


async def test_a_key_cannot_make_keys(client: httpx.AsyncClient, runtime: Runtime) -> None:
    new = await new_key(runtime, "mint:on-behalf", "audit:read")

    answer = await client.post(KEYS, json=WANTED, headers=bearer_of(new))

    assert (answer.status_code, answer.json()["code"]) == (403, "insufficient_scope")
    assert new.text.get_secret_value() not in json.dumps(dict(answer.headers)) + answer.text
