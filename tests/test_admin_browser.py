"""The pages under /admin in a real Chromium: every page and act, with scripts and without."""

from collections.abc import AsyncIterator
from importlib import resources
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from playwright.async_api import Page, expect
from starlette.types import ASGIApp, Receive, Scope, Send

from app.audit.events import Event, Personal, audit_events
from app.identity.users import OPERATOR, User
from app.main import create_app
from app.minting.profiles import Wish
from app.runtime import Runtime
from tests.clock import StandingClock
from tests.conftest import PASSWORD, as_served, caller_for, on_sqlite
from tests.installation import installation_of
from tests.keys import new_key
from tests.test_admin_pages import HOSTILE
from tests.test_docs_page import Watched, browsing, served

pytestmark = [pytest.mark.outside, on_sqlite]

AXE = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text()
BOB = "bob@example.com"
NEW = "violin harbour seventeen plums"


def without_lifespan(app: ASGIApp) -> ASGIApp:
    """Return *app* for a server: what its lifespan would open is open already."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            raise NotImplementedError  # the server takes that for an application without one
        await app(scope, receive, send)

    return serve


@pytest.fixture
async def origin(runtime: Runtime, admin: User) -> AsyncIterator[str]:
    """The service on a port of the loopback."""
    app = as_served(create_app(runtime.settings), runtime)
    async with served(without_lifespan(app)) as origin:
        yield origin


@pytest.fixture
async def paths(runtime: Runtime, alice: User) -> dict[str, str]:
    """Every page, with something to show on it."""
    for number in range(3):
        personal = Personal(ip="2001:db8:1234:5678:9abc:def0:1234:5678", user_agent="M" * 600)
        event = Event(
            action="client_secret.mint",
            outcome=("issued", "failed", "denied")[number],
            reason="upstream_quota_exhausted",
            actor=alice.id,
            profile="default",
            model_used="gpt-realtime-2.1-mini",
            personal=personal,
        )
        await runtime.log.record([event])
    await new_key(runtime)
    await runtime.users.add("a" * 200 + "@x.org", role="auditor", password=None, by=OPERATOR)
    pages = (
        "",
        "look-up",
        "log",
        "integrity",
        "models",
        "users",
        "users/new",
        "keys",
        "account",
        f"users/{alice.id}",
    )
    more = (f"log/{event.event_id}", "log?actor=nobody", "log?from=x", "users?search=nobody")
    periods = ("?span=30d", "?from=2020-01-01T00:00&to=2020-01-02T00:00", "?from=x")
    paths = (*pages, *periods, *more, "nothing")
    return {path: f"/admin/{path}".replace("/?", "?").rstrip("/") for path in paths}


async def sign_in(page: Page, email: str = "admin@example.com") -> None:
    await page.goto("/admin")
    await page.get_by_label("E-mail address").fill(email)
    await page.get_by_label("Password").fill(PASSWORD)
    async with page.expect_navigation():
        await page.get_by_role("button", name="Sign in").click()


async def barriers(page: Page) -> list[str]:
    """Return what axe has to say against a page, of whatever weight."""
    await page.evaluate(AXE)
    found: list[dict[str, Any]] = await page.evaluate(
        "axe.run({resultTypes: ['violations']}).then(results => results.violations)"
    )
    return [f"{each['id']}: {[node['target'] for node in each['nodes']]}" for each in found]


async def complaints(watched: Watched) -> list[str]:
    """Return what the browser complains of, but for pages that are refused by intent."""
    return [text for text in await watched.faults() if "the server responded with" not in text]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
async def test_every_page_fits_its_window_and_has_no_barriers(
    origin: str, paths: dict[str, str], width: int, scheme: str
) -> None:
    window = {"width": width, "height": 900}
    async with browsing(origin, viewport=window, color_scheme=scheme) as watched:
        page = watched.page
        found = {}
        await page.goto("/admin")
        found["sign-in"] = await barriers(page)
        await sign_in(page)
        for name, path in paths.items():
            await page.goto(path)
            found[name] = await barriers(page) + await complaints(watched)
            if (wide := await page.evaluate("document.documentElement.scrollWidth")) > width:
                found[name].append(f"is {wide} wide")

    assert {name: faults for name, faults in found.items() if faults} == {}


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no-scripts"])
async def test_an_admin_adds_promotes_and_disables_a_user(
    origin: str, runtime: Runtime, *, scripts: bool
) -> None:
    async with browsing(origin, java_script_enabled=scripts) as watched:
        page = watched.page
        await sign_in(page)
        await page.get_by_role("link", name="Users").click()
        await page.get_by_role("link", name="Add a user").click()
        await page.get_by_label("E-mail address").fill(BOB)
        await page.get_by_role("radio", name="auditor").check()
        await page.get_by_role("button", name="Add the user").click()
        link = await page.get_by_label("The link").input_value()
        await expect(page.get_by_role("button", name="Copy")).to_be_visible(visible=scripts)

        await page.get_by_label("New role").select_option("admin")
        await page.get_by_role("button", name="Change the role").click()
        await expect(page.get_by_role("status")).to_contain_text("The role is changed")
        await page.get_by_role("button", name="Make a link").click()
        assert await page.get_by_label("The link").input_value() != link
        await page.get_by_role("button", name="Sign out everywhere").click()
        await expect(page.get_by_role("status")).to_contain_text("All sign-ins have ended")
        await page.get_by_role("button", name="Disable the account").click()
        await expect(page.get_by_role("status")).to_contain_text("It gets no token")
        await page.get_by_role("button", name="Enable the account").click()
        await expect(page.get_by_role("status")).to_contain_text("may act again")
        if scripts:
            assert await complaints(watched) == []

    bob = await runtime.users.find(BOB)
    assert bob
    assert (bob.role, bob.disabled_at) == ("admin", None)


async def test_a_row_is_found_by_filters_and_leads_to_its_page(
    origin: str, paths: dict[str, str], alice: User
) -> None:
    async with browsing(origin, java_script_enabled=False) as watched:
        page = watched.page
        await sign_in(page)
        await page.get_by_role("link", name="Log", exact=True).click()
        await page.get_by_label("Outcome").select_option("failed")
        await page.get_by_label("Who").fill(alice.id)
        await page.get_by_role("button", name="Filter").click()
        row = page.get_by_role("row").filter(has_text="upstream_quota_exhausted")
        await expect(row).to_have_count(1)
        await expect(page.get_by_label("Outcome")).to_have_value("failed")
        await row.click()
        await expect(page.get_by_role("heading", level=1)).to_contain_text("client_secret.mint")
        await expect(page.get_by_text("2001:db8:1234:5678:9abc:def0:1234:5678")).to_be_visible()
        await page.get_by_role("link", name=alice.email).click()
        await expect(page).to_have_url(f"{origin}/admin/users/{alice.id}")


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no-scripts"])
async def test_a_figure_leads_to_its_rows_and_these_into_a_file(
    origin: str, paths: dict[str, str], alice: User, *, scripts: bool
) -> None:
    async with browsing(origin, java_script_enabled=scripts) as watched:
        page = watched.page
        await sign_in(page)
        await page.get_by_role("link", name="7 days").click()
        chart = page.get_by_role("img", name="Requests over time")
        await expect(chart.locator("rect.issued")).to_have_count(1)
        tall = await chart.locator("rect.issued").evaluate(
            "bar => bar.getBoundingClientRect().height"
        )
        assert tall > 20
        await page.get_by_text("The same as a table").click()
        await expect(page.get_by_role("columnheader", name="Refused")).to_be_visible()
        await page.get_by_role("link", name=alice.email).click()
        await expect(page.get_by_text("3 rows")).to_be_visible()
        await expect(page.get_by_label("Who")).to_have_value(alice.id)
        for button, ending in (("CSV", ".csv"), ("JSON Lines", ".jsonl")):
            async with page.expect_download() as downloading:
                await page.get_by_role("button", name=button).click()
            download = await downloading.value
            assert download.suggested_filename.endswith(ending)
            exported = (await download.path()).read_text()
            assert len(exported.splitlines()) == (4 if ending == ".csv" else 3)
        if scripts:
            assert await complaints(watched) == []


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no-scripts"])
async def test_a_found_token_is_looked_up_and_the_field_is_empty_again(
    origin: str, runtime: Runtime, alice: User, *, scripts: bool
) -> None:
    minted = await runtime.minter.mint(await caller_for(runtime, alice), Wish())
    async with browsing(origin, java_script_enabled=scripts) as watched:
        page = watched.page
        await sign_in(page)
        await page.get_by_role("link", name="Token look-up").click()
        field = page.get_by_label("The token")
        await field.fill("ek_unknown")
        await page.get_by_role("button", name="Look it up").click()
        await expect(page.get_by_role("status")).to_contain_text("No row has this token")
        await expect(field).to_have_value("")
        await field.fill(minted.secret.value.get_secret_value())
        await page.get_by_role("button", name="Look it up").click()
        await expect(page.get_by_role("status")).to_have_text("It is one of ours.")
        await expect(field).to_have_value("")
        await expect(page.get_by_text(alice.email)).to_be_visible()
        if scripts:
            assert await barriers(page) == []
            assert await complaints(watched) == []


async def test_a_key_is_made_copied_and_revoked(origin: str, runtime: Runtime) -> None:
    async with browsing(origin, permissions=["clipboard-read", "clipboard-write"]) as watched:
        page = watched.page
        await sign_in(page)
        await page.get_by_role("link", name="Service keys").click()
        await page.get_by_label("Name").fill("shop backend")
        await page.get_by_role("button", name="Make the key").click()
        key = await page.get_by_label("The key", exact=True).input_value()
        await page.get_by_role("button", name="Copy").click()
        await expect(page.get_by_role("button", name="Copied")).to_be_visible()
        assert await page.evaluate("navigator.clipboard.readText()") == key
        await page.get_by_role("button", name="Revoke the key shop backend").click()
        await expect(page.get_by_role("status")).to_contain_text("The key is revoked")
        assert await complaints(watched) == []

    assert [key.revoked_at is not None for key in await runtime.key_ring.all()] == [True]


async def test_the_password_is_asked_for_again_and_the_act_goes_on(
    origin: str, runtime: Runtime, alice: User, clock: StandingClock
) -> None:
    async with browsing(origin, java_script_enabled=False) as watched:
        page = watched.page
        await sign_in(page)
        await page.goto(f"/admin/users/{alice.id}")
        clock.advance(minutes=20)
        await page.get_by_label("New role").select_option("auditor")
        await page.get_by_role("button", name="Change the role").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text("Is it you?")
        await page.get_by_label("Your password").fill("wrong")
        await page.get_by_role("button", name="Change the role").click()
        await expect(page.get_by_role("alert")).to_have_text("The password is wrong.")
        await page.get_by_label("Your password").fill(PASSWORD)
        await page.get_by_role("button", name="Change the role").click()
        await expect(page.get_by_role("status")).to_contain_text("The role is changed")

    changed = await runtime.users.get(alice.id)
    assert changed
    assert changed.role == "auditor"


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no-scripts"])
async def test_a_walk_is_followed_to_its_end_and_what_was_edited_is_named(
    origin: str, runtime: Runtime, clock: StandingClock, *, scripts: bool
) -> None:
    owner = installation_of(runtime, clock)
    await owner.append(3)
    await owner.checkpoint()
    edited = sa.update(audit_events).where(audit_events.c.seq == 3).values(recorded_at=1)
    await owner.attack(lambda tx: tx.execute(edited))
    begun, ended = (
        Event(action=f"verification.{what}", outcome="succeeded", count=0)
        for what in ("start", "finish")
    )
    await runtime.log.record([begun])  # by another process
    async with browsing(origin, java_script_enabled=scripts) as watched:
        page = watched.page
        await sign_in(page)
        await page.get_by_role("link", name="Integrity", exact=True).click()
        await expect(page.get_by_role("progressbar")).to_be_visible()
        await expect(page.get_by_text("Another process of the service")).to_be_visible()
        await runtime.log.record([ended])
        await expect(page.get_by_text("The last one ended")).to_be_visible()

        await page.get_by_role("button", name="Verify now").click()
        await expect(page.get_by_text("tampered with")).to_be_visible()
        row = page.get_by_role("row").filter(has_text="changed: not the text")
        await row.get_by_role("link", name="3").click()
        await expect(page.get_by_text(", row 3")).to_be_visible()
        await page.goto("/admin/integrity")
        async with page.expect_download() as download:
            await page.get_by_role("link", name="Newest checkpoint").click()
        assert (await download.value).suggested_filename.startswith("checkpoint-")
        if scripts:
            assert await barriers(page) == []
            assert await complaints(watched) == []


async def test_a_person_is_erased_by_typing_in_who(
    origin: str, runtime: Runtime, alice: User
) -> None:
    async with browsing(origin, java_script_enabled=False) as watched:
        page = watched.page
        await sign_in(page)
        await page.goto(f"/admin/users/{alice.id}")
        await page.get_by_label("Their name or id").fill("somebody else")
        await page.get_by_role("button", name="Erase the person").click()
        await expect(page.get_by_role("alert")).to_contain_text("neither their name nor their id")
        await page.get_by_label("Their name or id").fill(alice.email)
        await page.get_by_role("button", name="Erase the person").click()
        await expect(page.get_by_role("status")).to_contain_text("The person is erased")

    assert await runtime.users.find(alice.email) is None


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_browser_takes_the_cookie_on_loopback_and_shows_it_to_nobody(
    origin: str, host: str
) -> None:
    here = origin.replace("127.0.0.1", host)
    async with browsing(here) as watched:
        page = watched.page
        await sign_in(page)
        await expect(page.get_by_role("heading", level=1)).to_have_text("Overview")
        [cookie] = await page.context.cookies()
        assert cookie["name"].startswith("__Host-")
        assert (cookie["httpOnly"], cookie["secure"], cookie["sameSite"]) == (True, True, "Strict")
        assert await page.evaluate("document.cookie") == ""

        await page.get_by_role("button", name="Sign out").click()
        await expect(page.get_by_role("status")).to_have_text("You have signed out.")
        assert await page.context.cookies() == []


async def test_a_page_of_the_same_site_cannot_send_our_forms(origin: str, runtime: Runtime) -> None:
    elsewhere = FastAPI()

    @elsewhere.get("/", response_class=HTMLResponse)
    async def trap() -> str:
        return (
            f'<form method="post" action="{origin}/admin/sign-out-everywhere"><button>Win</button>'
            '<input name="formToken" value=""></form>'
        )

    async with served(elsewhere) as other, browsing(origin) as watched:
        page = watched.page
        await sign_in(page)
        await page.goto(other)  # another port is another origin, and the same site
        await page.get_by_role("button", name="Win").click()
        await expect(page.get_by_role("heading", level=1)).to_contain_text("was not sent from here")
        await page.goto("/admin/log")
        await expect(page.get_by_role("heading", level=1)).to_have_text("Log")


async def test_an_auditor_sees_no_acts_and_a_user_nothing(
    origin: str, runtime: Runtime, alice: User
) -> None:
    await runtime.users.add(BOB, role="auditor", password=PASSWORD, by=OPERATOR)
    async with browsing(origin) as watched:
        page = watched.page
        await sign_in(page, alice.email)
        await expect(page.get_by_role("alert")).to_contain_text("takes the role auditor or admin")
        await sign_in(page, BOB)
        entries = page.get_by_role("navigation", name="Administration").get_by_role("link")
        await expect(entries).to_have_text(
            ["Overview", "Log", "Token look-up", "Integrity", "Models and profiles"]
        )
        await page.goto("/admin/users")
        await expect(page.get_by_role("heading", level=1)).to_have_text("This page is for admins")


async def test_hostile_values_run_nothing_and_hide_nothing(origin: str, runtime: Runtime) -> None:
    personal = Personal(ip=HOSTILE, user_agent=HOSTILE * 100, email=HOSTILE)
    event = Event(action="a.b", outcome="denied", reason=HOSTILE, actor=HOSTILE, personal=personal)
    await runtime.log.record([event])
    async with browsing(origin, viewport={"width": 390, "height": 900}) as watched:
        page = watched.page
        page.on("dialog", lambda _: watched.complaints.append("a script ran"))
        await sign_in(page)
        for path in ("/admin", "/admin/log", f"/admin/log/{event.event_id}"):
            await page.goto(path)
            await expect(page.get_by_text("[U+202E]gnp.exe").first).to_be_visible()
            assert await page.evaluate("document.documentElement.scrollWidth") <= 390
            assert await page.locator("main b").count() == 0
        assert await complaints(watched) == []


async def test_the_keyboard_reaches_the_content_and_shows_where_it_is(
    origin: str, alice: User
) -> None:
    async with browsing(origin) as watched:
        page = watched.page
        await sign_in(page)
        await page.goto("/admin/users")
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
        await expect(page.get_by_role("link", name="Skip to content")).to_be_in_viewport()
        await page.keyboard.press("Enter")
        await page.keyboard.press("Tab")
        focused = page.get_by_role("link", name="Add a user")
        await expect(focused).to_be_focused()
        outline = await focused.evaluate("element => getComputedStyle(element).outlineStyle")
        assert outline == "solid"
