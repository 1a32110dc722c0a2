"""What auditors and admins see under /admin, and do there."""

import re
from collections.abc import AsyncIterator
from html import unescape

import httpx
import pytest

from app.audit.events import Event, Personal
from app.base.errors import Conflict, InvalidToken, NotFound
from app.identity.key_ring import LIFETIME_DAYS
from app.identity.users import OPERATOR, User
from app.runtime import Runtime
from app.settings import Settings
from tests.admin_visitor import HOME, Browser, browser, text_of, token_in
from tests.clock import StandingClock
from tests.conftest import PASSWORD, bearer_for, caller_for, played
from tests.fakes import FakeOpenAI
from tests.keys import new_key
from tests.log_rows import rows
from tests.test_error_pages import Page

ADMIN = "admin@example.com"
BOB = "bob@example.com"
HOSTILE = "<script>alert(1)</script>\"'><b onx=y> =cmd|x \u202egnp.exe\u2066 \u200b{{7*7}} &amp;"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"public_url": HOME})


@pytest.fixture
async def page(runtime: Runtime, admin: User) -> AsyncIterator[Browser]:
    """A browser in which an admin is signed in."""
    async with browser(runtime) as client:
        assert (await client.sign_in(admin.email)).status_code == 303
        yield client


async def pages_of(page: Browser, runtime: Runtime, alice: User) -> dict[str, httpx.Response]:
    """Ask for every page, each with something to show."""
    await runtime.log.record([Event(action="a.b", outcome="denied", reason="c", actor=alice.id)])
    [row] = await rows(runtime.database, action="a.b")
    await new_key(runtime)
    plain = ["log", "integrity", "models", "users", "users/new", "keys", "account", "sign-in"]
    paths = ["", *plain, "look-up", f"log/{row['event_id']}", f"users/{alice.id}"]
    return {path: await page.get(f"/admin/{path}".rstrip("/")) for path in paths}


async def test_every_page_loads_our_own_files_alone_and_nothing_inline(
    page: Browser, runtime: Runtime, alice: User
) -> None:
    for path, answer in (await pages_of(page, runtime, alice)).items():
        found = Page(answer.text)  # fails at a style attribute, or one that runs a script
        policy = answer.headers["Content-Security-Policy"]
        assert answer.status_code == 200, path
        assert all(address.startswith(("/", "#")) for address in found.addresses), path
        assert "style" not in found.tags
        assert answer.text.count("<script") == answer.text.count('<script src="/static/admin.js"')
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in policy
        assert answer.headers["Cache-Control"] == "no-store"


async def test_links_and_forms_stay_below_the_path_of_the_public_url(
    settings: Settings, clock: StandingClock, openai: FakeOpenAI
) -> None:
    below = settings.model_copy(update={"public_url": f"{HOME}/tokens"})
    async with played(below, clock=clock, openai=openai) as runtime, browser(runtime) as client:
        alice, _ = [
            await runtime.users.add(email, role="admin", password=PASSWORD, by=OPERATOR)
            for email in (BOB, ADMIN)
        ]
        answer = await client.sign_in(ADMIN)
        pages = await pages_of(client, runtime, alice)

    assert answer.headers["Location"] == "/tokens/admin"
    for path, shown in pages.items():
        targets = Page(shown.text).addresses + re.findall(r'action="([^"]*)"', shown.text)
        assert all(target.startswith(("/tokens/", "#")) for target in targets), path


# Users ----------------------------------------------------------------------------------------


def link_in(answer: httpx.Response) -> str:
    found = re.search(r'value="([^"]*#rts_[^"]*)"', answer.text)
    assert found, text_of(answer)
    return unescape(found[1])


async def test_a_user_is_added_and_sets_the_password_by_the_link_that_is_shown_once(
    page: Browser, runtime: Runtime, admin: User
) -> None:
    answer = await page.act("/admin/users/new", "/admin/users", email=BOB, role="auditor")

    link = link_in(answer)
    assert answer.status_code == 200
    form = {"token": link.partition("#")[2], "password": PASSWORD}
    assert (await page.post("/reset", data=form)).status_code == 200
    async with browser(runtime) as theirs:
        assert (await theirs.sign_in(BOB)).status_code == 303
    bob = await runtime.users.find(BOB)
    assert bob
    assert link not in (await page.get(f"/admin/users/{bob.id}")).text
    made = [row for row in await rows(runtime.database, target=bob.id) if row["actor"] == admin.id]
    assert [row["action"] for row in made] == ["user.create", "user.make_reset_link"]
    assert all(row["credential"] == row["sign_in"] and row["request_id"] for row in made)


@pytest.mark.parametrize(
    ("email", "status", "reason"),
    [("nobody", 422, "must be an address"), (ADMIN.upper(), 409, "has an account already")],
)
async def test_an_address_that_cannot_be_added_stays_in_the_form(
    page: Browser, email: str, status: int, reason: str
) -> None:
    answer = await page.act("/admin/users/new", "/admin/users", email=email, role="auditor")

    assert answer.status_code == status
    assert f"It {reason}" in text_of(answer)
    assert f'value="{email}"' in answer.text
    assert 'value="auditor" checked' in answer.text


async def test_another_role_ends_the_sign_ins_that_had_the_old_one(
    page: Browser, runtime: Runtime, alice: User
) -> None:
    caller = await caller_for(runtime, alice)

    url = f"/admin/users/{alice.id}"
    answer = await page.act(url, f"{url}/role", role="auditor")

    assert "done=role" in answer.headers["Location"]
    assert "The role is changed" in text_of(await page.get(answer.headers["Location"]))
    with pytest.raises(InvalidToken):
        await runtime.callers.confirm(caller)
    [row] = await rows(runtime.database, action="user.set_role")
    assert (row["target"], row["role"]) == (alice.id, "auditor")


@pytest.mark.parametrize(("act", "fields"), [("role", {"role": "user"}), ("disable", {})])
async def test_the_last_admin_cannot_be_taken_by_an_admin(
    page: Browser, runtime: Runtime, admin: User, act: str, fields: dict[str, str]
) -> None:
    url = f"/admin/users/{admin.id}"

    answer = await page.act(url, f"{url}/{act}", **fields)
    second = await runtime.users.add(BOB, role="admin", password=PASSWORD, by=OPERATOR)
    again = await page.act(url, f"{url}/{act}", **fields)

    assert answer.status_code == 409
    assert "This is the last admin" in text_of(answer)
    assert again.headers["Location"].startswith("/admin/sign-in")  # they were the one signed in
    async with browser(runtime) as theirs:
        await theirs.sign_in(BOB)
        refused = await theirs.act("/admin/users/new", f"/admin/users/{second.id}/disable")
        assert refused.status_code == 409


async def test_the_operator_may_disable_the_last_admin_for_they_can_add_one(
    runtime: Runtime, admin: User
) -> None:
    with pytest.raises(Conflict):
        await runtime.users.disable(admin.id, by="usr_somebody")

    assert (await runtime.users.disable(admin.email, by=OPERATOR)).disabled_at


async def test_disabling_works_at_once_and_is_taken_back(
    page: Browser, runtime: Runtime, alice: User
) -> None:
    headers = await bearer_for(runtime, alice)
    url = f"/admin/users/{alice.id}"

    await page.act(url, f"{url}/disable")
    refused = await page.post("/realtime/token", headers=headers)
    link = await page.act(url, f"{url}/reset-link")
    await page.act(url, f"{url}/enable")
    again = await page.post("/realtime/token", headers=await bearer_for(runtime, alice))

    assert (refused.status_code, refused.json()["code"]) == (403, "user_disabled")
    assert link.status_code == 409
    assert again.status_code == 200


async def test_an_admin_ends_the_sign_ins_of_others(
    page: Browser, runtime: Runtime, admin: User, alice: User
) -> None:
    caller = await caller_for(runtime, alice)
    url = f"/admin/users/{alice.id}"

    await page.act(url, f"{url}/sign-out")

    with pytest.raises(InvalidToken):
        await runtime.callers.confirm(caller)
    [row] = await rows(runtime.database, action="user.sign_out")
    assert (row["actor"], row["target"]) == (admin.id, alice.id)
    with pytest.raises(NotFound):
        await runtime.sign_out.of_user("usr_" + "0" * 26, by=caller)


async def test_two_admins_at_once_see_what_the_other_has_done(
    page: Browser, runtime: Runtime, alice: User
) -> None:
    await runtime.users.add(BOB, role="admin", password=PASSWORD, by=OPERATOR)
    url = f"/admin/users/{alice.id}"
    async with browser(runtime) as other:
        await other.sign_in(BOB)
        here, there = [token_in((await each.get(url)).text) for each in (page, other)]

        first = await page.post(f"{url}/disable", data={"formToken": here})
        second = await other.post(f"{url}/disable", data={"formToken": there})
        shown = await other.get(url)

    assert [first.status_code, second.status_code] == [303, 303]
    assert "disabled" in text_of(shown)
    assert "Enable the account" in text_of(shown)


@pytest.mark.parametrize("path", ["users/usr_" + "0" * 26, "users/%00", "log/evt_x", "log/%FF"])
async def test_what_is_not_there_is_a_page_too(page: Browser, path: str) -> None:
    answer = await page.get(f"/admin/{path}")

    assert answer.status_code == 404
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert answer.headers["X-Request-ID"] in answer.text


async def test_users_are_found_by_a_part_of_their_name_and_paged(
    page: Browser, runtime: Runtime, alice: User, clock: StandingClock
) -> None:
    for number in range(60):
        clock.advance(seconds=number % 2)  # some in the same microsecond
        await runtime.users.add(f"u_{number}@x.org", role="user", password=None, by=OPERATOR)

    first = await page.get("/admin/users")
    older = re.search(r'rel="next" href="([^"]*)"', first.text)
    assert older
    second = await page.get(unescape(older[1]))
    found = await page.get("/admin/users", params={"search": "U_5"})
    by_id = await page.get("/admin/users", params={"search": alice.id})
    nobody = await page.get("/admin/users", params={"search": "%' OR \x00"})
    made_up = await page.get("/admin/users?cursor=usr_x")

    seen = [set(re.findall(r"(\S+@[\w.]+)</bdi></a>", answer.text)) for answer in (first, second)]
    assert [len(names) for names in seen] == [50, 12]
    assert seen[0] & seen[1] == set()
    assert text_of(found).count("@x.org") == 11
    assert alice.email in text_of(by_id)
    assert "Nobody fits" in text_of(nobody)
    assert made_up.headers["Location"] == "/admin/users?search="


async def test_a_person_is_erased_once_their_name_is_typed_in(
    page: Browser, runtime: Runtime, admin: User, alice: User
) -> None:
    headers = await bearer_for(runtime, alice)
    url = f"/admin/users/{alice.id}"

    slip = await page.act(url, f"{url}/erase", named=ADMIN)
    empty = await page.act(url, f"{url}/erase")
    done = await page.act(url, f"{url}/erase", named=f" {alice.email.upper()} ")

    assert [slip.status_code, empty.status_code] == [422, 422]
    assert "neither their name nor their id" in text_of(slip)
    shown = await page.get(done.headers["Location"])
    assert "The person is erased." in text_of(shown)
    assert alice.email not in shown.text
    assert "Enable the account" not in shown.text
    assert "erased" in text_of(await page.get("/admin/users"))
    assert (await page.post("/realtime/token", headers=headers)).status_code == 403
    [row] = await rows(runtime.database, action="user.erase")
    assert (row["actor"], row["target"]) == (admin.id, alice.id)
    assert row["request_id"]


async def test_nobody_erases_themselves(page: Browser, admin: User) -> None:
    url = f"/admin/users/{admin.id}"

    answer = await page.act(url, f"{url}/erase", named=admin.id)

    assert answer.status_code == 409
    assert "Nobody can erase themselves" in text_of(answer)


# Once more the password -------------------------------------------------------------------------


async def test_a_dangerous_act_asks_for_the_password_and_goes_on_with_it(
    page: Browser, runtime: Runtime, alice: User, clock: StandingClock
) -> None:
    url = f"/admin/users/{alice.id}"
    clock.advance(minutes=16)
    asked = await page.act(url, f"{url}/role", role="auditor")
    fields = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', asked.text))

    wrong = await page.post(f"{url}/role", data={**fields, "password": "wrong"})
    unchanged = await runtime.users.get(alice.id)
    done = await page.post(f"{url}/role", data={**fields, "password": PASSWORD})
    again = await page.act(url, f"{url}/disable")

    assert (asked.status_code, wrong.status_code) == (403, 403)
    assert "go on with: Change the role" in text_of(asked)
    assert "The password is wrong." in text_of(wrong)
    assert unchanged
    assert unchanged.role == "user"
    assert fields["role"] == "auditor"
    assert [done.status_code, again.status_code] == [303, 303]
    confirmed = await rows(runtime.database, action="user.confirm_password")
    assert [row["outcome"] for row in confirmed] == ["denied", "succeeded"]


async def test_every_act_on_users_and_keys_asks_for_it(
    page: Browser, runtime: Runtime, alice: User, clock: StandingClock
) -> None:
    key = await new_key(runtime)
    users = [f"/admin/users/{alice.id}/{act}" for act in ("disable", "enable", "role", "sign-out")]
    keys = [f"/admin/keys/{key.key.id}/{act}" for act in ("rotate", "revoke")]
    clock.advance(minutes=16)
    before = len(await rows(runtime.database))

    users += [f"/admin/users/{alice.id}/{act}" for act in ("reset-link", "erase")]
    for path in (*users, *keys, "/admin/users", "/admin/keys"):
        answer = await page.act("/admin/users/new", path, email=BOB, role="admin", name="x")
        assert answer.status_code == 403, path
        assert "Is it you?" in answer.text

    left = (await rows(runtime.database))[before:]
    assert {row["action"] for row in left} == {"sign_in.use"}


async def test_guessing_at_it_is_slowed_and_the_password_itself_is_in_no_page(
    page: Browser, alice: User, clock: StandingClock
) -> None:
    url = f"/admin/users/{alice.id}"
    clock.advance(minutes=16)
    for _ in range(5):
        await page.act(url, f"{url}/disable", password="guess-guess-guess")

    answer = await page.act(url, f"{url}/disable", password=PASSWORD)

    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")
    assert PASSWORD not in answer.text


# The log ----------------------------------------------------------------------------------------


async def test_rows_are_filtered_by_the_address_and_paged_without_skipping(
    page: Browser, runtime: Runtime, alice: User
) -> None:
    for number in range(60):
        event = Event(action="a.b", outcome="denied", reason=f"r{number:02}.", actor=alice.id)
        await runtime.log.record([event])

    first = await page.get("/admin/log?action=a.b&outcome=denied&profile=&from=2026-11-20T11:00")
    await runtime.log.record([Event(action="a.b", outcome="denied", reason="new")])
    older = re.search(r'href="([^"]*)" rel="next"', first.text)
    assert older
    second = await page.get(unescape(older[1]))

    seen = [re.findall(r"r\d\d\.", answer.text) for answer in (first, second)]
    assert [len(reasons) for reasons in seen] == [50, 10]
    assert seen[0] + seen[1] == [f"r{number:02}." for number in reversed(range(60))]
    assert alice.email in text_of(first)
    assert 'value="a.b"' in first.text
    assert "<option selected>denied</option>" in first.text
    assert "No row fits" in text_of(await page.get("/admin/log?actor=usr_nobody"))
    assert "No row fits" in text_of(await page.get("/admin/log?to=2026-11-20T11:00"))


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("from=yesterday", "must be a time such as"),
        ("actor=%00", "must have no control characters"),
        ("nonsense=1", "nonsense is not a known field"),
        ("limit=1000", "limit must be less than or equal to 200"),
    ],
)
async def test_a_filter_that_cannot_be_used_is_explained_beside_it(
    page: Browser, query: str, reason: str
) -> None:
    answer = await page.get(f"/admin/log?{query}")

    assert answer.status_code == 422
    assert reason in text_of(answer)


async def test_a_cursor_that_is_none_of_ours_leads_to_the_newest_rows(page: Browser) -> None:
    answer = await page.get("/admin/log?outcome=denied&cursor=made-up")

    assert answer.headers["Location"] == "/admin/log?outcome=denied"


async def test_a_row_has_a_page_with_everything_known_about_the_mint(
    page: Browser, runtime: Runtime, alice: User
) -> None:
    headers = await bearer_for(runtime, alice)
    minted = (await page.post("/realtime/token", headers=headers)).json()
    requested, issued = await rows(runtime.database, attempt_id=minted["id"])

    answer = await page.get(f"/admin/log/{issued['event_id']}")

    text = text_of(answer)
    hidden = {"event_id", "personal", "count", "expires_at", "ttl_seconds"}
    for name in issued.keys() - hidden:
        assert str(issued[name]) in text, name
    for known in (alice.email, "192.0.2.7", "pytest", "60 s", minted["id"]):
        assert known in text
    assert f'href="/admin/users/{alice.id}"' in answer.text
    assert f'href="/admin/log/{requested["event_id"]}"' in answer.text
    assert minted["token"] not in answer.text


async def test_hostile_values_are_shown_as_what_they_are(page: Browser, runtime: Runtime) -> None:
    personal = Personal(ip=HOSTILE, user_agent="A" * 10_000 + HOSTILE, email=HOSTILE)
    event = Event(
        action=HOSTILE,
        outcome="denied",
        actor=HOSTILE,
        target=HOSTILE,
        reason=HOSTILE,
        profile=HOSTILE,
        model_used=HOSTILE,
        personal=personal,
    )
    await runtime.log.record([event])

    for path in ("/admin/log", f"/admin/log/{event.event_id}"):
        answer = await page.get(path)
        assert answer.status_code == 200
        assert "<script>alert" not in answer.text
        assert "<b onx" not in answer.text
        assert not set("\u202e\u2066\u200b") & set(answer.text)
        assert "[U+202E]gnp.exe[U+2066]" in answer.text
        assert "{{7*7}} &amp;amp;" in answer.text
        assert not [tag for tag in Page(answer.text).tags if tag == "b"]
    for path in ("/admin/log", "/admin/users"):
        answer = await page.get(path, params={"actor": HOSTILE, "search": HOSTILE})
        assert "<script>alert" not in answer.text


# Models, profiles, keys -------------------------------------------------------------------------


async def test_models_show_how_long_they_live_and_what_uses_them(page: Browser) -> None:
    answer = await page.get("/admin/models")

    text = text_of(answer)
    assert "stands for gpt-realtime-mini-2025-12-15 deprecated 2027-01-20 61 days left" in text
    assert "gpt-realtime-2.1-mini active not announced default" in text
    assert "gpt-realtime-mini-2025-10-06 retired 2026-07-23 off" in text
    assert '"type": "semantic_vad"' in unescape(answer.text)


async def test_a_key_is_made_shown_once_replaced_and_revoked(
    page: Browser, runtime: Runtime, admin: User
) -> None:
    fields = {"name": "shop", "scopes": "mint:on-behalf", "lifetimeDays": str(LIFETIME_DAYS)}

    made = await page.act("/admin/keys", "/admin/keys", **fields)
    [key] = await runtime.key_ring.all()
    shown = re.search(r'value="(rtk_live_\w+)"', made.text)
    assert shown
    assert (await runtime.callers._service_keys.recognise(shown[1])).id == key.id
    assert shown[1] not in (await page.get("/admin/keys")).text

    replaced = await page.act("/admin/keys", f"/admin/keys/{key.id}/rotate")
    twice = await page.act("/admin/keys", f"/admin/keys/{key.id}/rotate")
    revoked = await page.act("/admin/keys", f"/admin/keys/{key.id}/revoke")
    after = text_of(await page.get(revoked.headers["Location"]))

    assert "rtk_live_" in replaced.text
    assert twice.status_code == 409
    assert "The key is revoked." in after
    acts = [row["action"] for row in await rows(runtime.database, actor=admin.id)]
    assert [act for act in acts if act.startswith("service_key")] == [
        "service_key.create",
        "service_key.rotate",
        "service_key.create",
        "service_key.revoke",
    ]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"name": ""}, "It must have 1 to 64 characters"),
        ({"scopes": "admin"}, "It must be one or more of"),
        ({"lifetimeDays": "367"}, "It must be 1 to 366"),
    ],
)
async def test_a_key_that_cannot_be_made_is_explained_in_its_form(
    page: Browser, runtime: Runtime, fields: dict[str, str], reason: str
) -> None:
    usual = {"name": "shop", "scopes": "mint:on-behalf", "lifetimeDays": "90"}

    answer = await page.act("/admin/keys", "/admin/keys", **usual | fields)

    assert answer.status_code == 422
    assert reason in text_of(answer)
    assert await runtime.key_ring.all() == []
