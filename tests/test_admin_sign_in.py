"""Who gets in at /admin, for how long, and whose forms are taken."""

import ipaddress
import re
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from fastapi.routing import APIRoute, iter_route_contexts

from app.identity.browser_sign_ins import browser_sign_ins
from app.identity.users import OPERATOR, User
from app.main import create_app
from app.runtime import Runtime
from app.settings import Settings
from app.web.admin.problem_page import is_page
from tests.admin_visitor import COOKIE, HOME, Browser, browser, text_of, token_in
from tests.clock import StandingClock
from tests.conftest import PASSWORD, caller_for, on_sqlite
from tests.log_faults import stopped
from tests.log_rows import rows

ADMIN = "admin@example.com"
AUDITOR = "auditor@example.com"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    proxies = (ipaddress.ip_network("10.0.0.0/8"),)
    return settings.model_copy(update={"public_url": HOME, "trusted_proxies": proxies})


@pytest.fixture
async def page(runtime: Runtime, admin: User) -> AsyncIterator[Browser]:
    """A browser in which nobody is signed in."""
    async with browser(runtime) as client:
        yield client


@pytest.fixture
async def auditor(runtime: Runtime) -> User:
    return await runtime.users.add(AUDITOR, role="auditor", password=PASSWORD, by=OPERATOR)


def led_to_sign_in(answer: httpx.Response) -> bool:
    return answer.status_code == 303 and answer.headers["Location"].startswith("/admin/sign-in?")


async def test_the_right_password_leads_to_the_page_that_was_asked_for(
    page: Browser, runtime: Runtime, admin: User
) -> None:
    asked = await page.get("/admin/log?outcome=denied&actor=a%26b")
    form = await page.get(asked.headers["Location"])
    wanted = re.search(r'name="next" value="([^"]*)"', form.text)
    assert wanted

    answer = await page.sign_in(ADMIN, next=wanted[1].replace("&amp;", "&"))
    landed = await page.get(answer.headers["Location"])

    assert answer.headers["Location"] == "/admin/log?outcome=denied&actor=a%26b"
    assert landed.status_code == 200
    [row] = await rows(runtime.database, action="user.sign_in")
    assert (row["outcome"], row["actor"], row["role"]) == ("succeeded", admin.id, "admin")


async def test_the_cookie_is_for_this_host_alone_and_out_of_reach_for_scripts(
    page: Browser, runtime: Runtime
) -> None:
    answer = await page.sign_in(ADMIN)

    set_cookie = answer.headers["Set-Cookie"]
    value, *attributes = set_cookie.split("; ")
    assert re.fullmatch(rf"{COOKIE}=rtc_[\w-]{{43}}", value)
    assert sorted(a.lower() for a in attributes) == [
        "httponly",
        "path=/",
        "samesite=strict",
        "secure",
    ]
    stored = await runtime.database.read(lambda tx: tx.execute(browser_sign_ins.select()).one())
    assert value.partition("=")[2] not in repr(stored)


@pytest.mark.parametrize(
    ("email", "password"), [(ADMIN, "wrong"), ("nobody@example.com", PASSWORD)]
)
async def test_every_wrong_combination_is_answered_alike(
    page: Browser, email: str, password: str
) -> None:
    answer = await page.sign_in(email, password)

    assert answer.status_code == 422
    assert "The e-mail address or the password is wrong." in text_of(answer)
    assert "Set-Cookie" not in answer.headers
    assert f'"{password}"' not in answer.text


async def test_guessing_is_slowed_here_as_everywhere(page: Browser) -> None:
    for _ in range(5):
        await page.sign_in(ADMIN, "guess")

    answer = await page.sign_in(ADMIN)

    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")
    assert "Too many requests" in text_of(answer)


async def test_a_user_is_told_that_this_is_not_for_them(
    page: Browser, runtime: Runtime, alice: User
) -> None:
    answer = await page.sign_in(alice.email)

    assert answer.status_code == 403
    assert "takes the role auditor or admin" in text_of(answer)
    assert "Set-Cookie" not in answer.headers
    [row] = await rows(runtime.database, action="user.sign_in")
    assert (row["outcome"], row["reason"]) == ("denied", "insufficient_scope")


async def test_an_access_token_opens_no_page_and_a_cookie_no_api(
    page: Browser, runtime: Runtime, admin: User
) -> None:
    granted = await runtime.sign_in.with_password(
        (await caller_for(runtime, admin)).origin, email=ADMIN, password=PASSWORD
    )
    bearer = {"Authorization": f"Bearer {granted.access_token}"}
    with_token = await page.get("/admin/log", headers=bearer)
    as_cookie = await page.get("/admin/log", headers={"Cookie": f"{COOKIE}={granted.access_token}"})
    await page.sign_in(ADMIN)
    with_cookie = await page.get("/audit/events")
    cookie = {"Authorization": f"Bearer {page.cookies[COOKIE]}"}
    as_bearer = await page.get("/audit/events", headers=cookie)

    assert led_to_sign_in(with_token)
    assert led_to_sign_in(as_cookie)
    assert with_cookie.status_code == 401
    assert as_bearer.status_code == 401


@pytest.mark.parametrize("value", ["", "rtc_" + "a" * 43, "junk", "\u00e9", "x" * 5000])
async def test_what_is_no_cookie_of_ours_leads_to_the_sign_in(page: Browser, value: str) -> None:
    headers = {b"Cookie": f"{COOKIE}={value}".encode()}

    answer = await page.get("/admin/log", headers=headers)

    assert led_to_sign_in(answer)


async def test_a_sign_in_ends_after_half_an_hour_without_a_request(
    page: Browser, clock: StandingClock
) -> None:
    await page.sign_in(ADMIN)
    for _ in range(4):
        clock.advance(minutes=24)
        assert (await page.get("/admin/log")).status_code == 200

    clock.advance(minutes=31)
    answer = await page.get("/admin/log")

    assert led_to_sign_in(answer)
    assert "ended=1" in answer.headers["Location"]


async def test_a_sign_in_ends_after_twelve_hours_whatever_happens(
    page: Browser, runtime: Runtime, clock: StandingClock
) -> None:
    await page.sign_in(ADMIN)
    for _ in range(29):
        clock.advance(minutes=24)
        assert (await page.get("/admin/log")).status_code == 200

    clock.advance(minutes=24)

    assert led_to_sign_in(await page.get("/admin/log"))
    await runtime.sign_out.forget_expired()
    assert not await runtime.database.read(lambda tx: tx.execute(browser_sign_ins.select()).all())


async def test_using_the_cookie_leaves_a_row_now_and_then_and_not_each_time(
    page: Browser, runtime: Runtime, clock: StandingClock
) -> None:
    await page.sign_in(ADMIN)
    for _ in range(12):
        clock.advance(minutes=1)
        await page.get("/admin/log")

    assert len(await rows(runtime.database, action="sign_in.use")) == 2


@pytest.mark.parametrize("how", ["disable", "role", "password", "everywhere", "sign_out"])
async def test_whatever_ends_sign_ins_ends_those_of_browsers_at_once(
    page: Browser, runtime: Runtime, admin: User, auditor: User, how: str
) -> None:
    await page.sign_in(AUDITOR)
    assert (await page.get("/admin/log")).status_code == 200

    match how:
        case "disable":
            await runtime.users.disable(AUDITOR, by=OPERATOR)
        case "role":
            await runtime.users.set_role(AUDITOR, "admin", by=OPERATOR)
        case "password":
            await runtime.users.set_password(AUDITOR, PASSWORD + " too", by=OPERATOR)
        case "everywhere":
            await runtime.sign_out.everywhere(await caller_for(runtime, auditor))
        case "sign_out":
            await runtime.sign_out.of_user(auditor.id, by=await caller_for(runtime, admin))

    answer = await page.get("/admin/log")
    if how == "disable":
        assert answer.status_code == 403
        assert "The account is disabled" in text_of(answer)
    else:
        assert led_to_sign_in(answer)


async def test_signing_out_ends_this_sign_in_and_no_other(page: Browser, runtime: Runtime) -> None:
    async with browser(runtime) as other:
        for client in (page, other):
            await client.sign_in(ADMIN)
        cookie = page.cookies[COOKIE]

        answer = await page.act("/admin/log", "/admin/sign-out")

        assert 'realtime-tokens=""; ' in answer.headers["Set-Cookie"]
        assert led_to_sign_in(
            await page.get("/admin/log", headers={"Cookie": f"{COOKIE}={cookie}"})
        )
        assert (await other.get("/admin/log")).status_code == 200

        await other.act("/admin/account", "/admin/sign-out-everywhere")
        assert led_to_sign_in(await other.get("/admin/log"))


async def test_a_long_address_leads_to_the_sign_in_too(page: Browser) -> None:
    answer = await page.get("/admin/sign-in?next=" + quote("/admin/log?actor=" + "%E2%82%AC" * 400))

    assert answer.status_code == 200
    assert 'name="password"' in answer.text


@pytest.mark.parametrize(
    "elsewhere",
    [
        "https://evil.example/",
        "//evil.example",
        "/\\evil.example",
        "/admin/api/users",
        "/docs",
        "\r",
    ],
)
async def test_a_link_to_the_sign_in_leads_nowhere_else(page: Browser, elsewhere: str) -> None:
    answer = await page.sign_in(ADMIN, next=elsewhere)

    assert answer.headers["Location"] == "/admin"


async def test_neither_password_nor_cookie_nor_form_token_is_in_any_log(
    page: Browser, runtime: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    await page.sign_in(ADMIN, PASSWORD + " wrong")
    await page.sign_in(ADMIN)
    cookie = page.cookies[COOKIE]
    token = token_in((await page.get("/admin/log")).text)
    await page.post("/admin/sign-out", data={"formToken": token})

    said = "".join(capsys.readouterr()) + str(await rows(runtime.database))
    assert "/admin/sign-out" in said
    for secret in (PASSWORD, cookie, token):
        assert secret not in said


@pytest.mark.slow
@pytest.mark.impatient
async def test_pages_are_read_on_while_nothing_can_be_written(
    page: Browser, runtime: Runtime, clock: StandingClock
) -> None:
    await page.sign_in(ADMIN)
    token = token_in((await page.get("/admin/log")).text)
    clock.advance(minutes=6)

    async with stopped(runtime.database):
        read = await page.get("/admin/log")
        act = await page.post("/admin/sign-out-everywhere", data={"formToken": token})

    assert read.status_code == 200
    assert (act.status_code, act.headers["Retry-After"]) == (503, "2")
    assert "The audit log cannot be written" in text_of(act)


# Forms ----------------------------------------------------------------------------------------


FOREIGN = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "none"},
    {"Sec-Fetch-Site": "cross-site", "Origin": HOME},
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {},
]


def sent_with(client: Browser, headers: dict[str, str]) -> None:
    del client.headers["Sec-Fetch-Site"]
    client.headers.update(headers)


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
async def test_a_form_from_another_site_is_refused(
    page: Browser, runtime: Runtime, admin: User, headers: dict[str, str]
) -> None:
    await page.sign_in(ADMIN)
    token = token_in((await page.get("/admin/log")).text)
    sent_with(page, headers)

    act = await page.post("/admin/sign-out-everywhere", data={"formToken": token})
    sign_in = await page.sign_in(ADMIN)

    assert [act.status_code, sign_in.status_code] == [403, 403]
    assert "was not sent from here" in text_of(act)
    assert (await page.get("/admin/log")).status_code == 200


async def test_an_old_browser_that_names_its_origin_alone_is_believed(page: Browser) -> None:
    sent_with(page, {"Origin": HOME})

    answer = await page.sign_in(ADMIN)

    assert answer.status_code == 303


async def test_the_token_of_another_visitor_is_refused(page: Browser, runtime: Runtime) -> None:
    async with browser(runtime) as other:
        for client in (page, other):
            await client.sign_in(ADMIN)
        theirs = token_in((await other.get("/admin/log")).text)

        for token in (theirs, "", "\u00e9"):
            answer = await page.post("/admin/sign-out", data={"formToken": token})
            assert answer.status_code == 403

    assert (await page.get("/admin/log")).status_code == 200


@pytest.mark.parametrize("sent", [{"json": {}}, {"files": {"a": b"x"}}], ids=["json", "files"])
async def test_what_is_no_form_is_refused_with_a_page(page: Browser, sent: dict[str, Any]) -> None:
    answer = await page.post("/admin/sign-out", **sent)

    assert answer.status_code == 415
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"


def page_routes() -> list[tuple[str, str]]:
    app = create_app(Settings(_env_file=None))
    return sorted(
        (method, str(context.path).replace("{id}", "evt_x"))
        for context in iter_route_contexts(app.router.routes)
        if isinstance(context.original_route, APIRoute) and is_page(str(context.path))
        for method in context.original_route.methods or ()
    )


@on_sqlite
@pytest.mark.slow
@pytest.mark.parametrize(("method", "path"), page_routes())
async def test_a_stranger_is_led_to_the_sign_in_from_everywhere(
    page: Browser, method: str, path: str
) -> None:
    answer = await page.request(method, path)

    if path == "/admin/sign-in":
        assert answer.status_code in {200, 422}
    else:
        assert answer.status_code == 303
        assert answer.headers["Location"].startswith("/admin/sign-in")
        assert answer.headers["Cache-Control"] == "no-store"


@on_sqlite
@pytest.mark.slow
@pytest.mark.parametrize("path", [path for method, path in page_routes() if method == "POST"])
async def test_no_form_is_taken_without_the_token_of_its_visitor(page: Browser, path: str) -> None:
    await page.sign_in(ADMIN)

    answer = await page.post(path, data={})

    assert answer.status_code == (422 if path == "/admin/sign-in" else 403)


FOR_ADMINS = ("/admin/users", "/admin/keys", "/admin/models/refresh", "/admin/integrity/verify")


@on_sqlite
@pytest.mark.slow
@pytest.mark.parametrize(("method", "path"), page_routes())
async def test_an_auditor_reads_and_changes_nothing_but_their_own_sign_in(
    page: Browser, runtime: Runtime, auditor: User, method: str, path: str
) -> None:
    await page.sign_in(AUDITOR)
    token = token_in((await page.get("/admin/log")).text)
    before = len(await rows(runtime.database))

    answer = await page.request(
        method, path, data={"formToken": token} if method == "POST" else None
    )

    left = (await rows(runtime.database))[before:]
    if path.startswith(FOR_ADMINS):
        assert answer.status_code == 403
        assert [(row["action"], row["outcome"]) for row in left] == [("sign_in.use", "denied")]
    else:
        assert answer.status_code in {200, 303, 404, 422}
        assert {row["action"] for row in left} <= {"sign_in.revoke", "user.sign_out"}


# Where ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "headers", "private"),
    [
        ("http://127.0.0.1:8000", {}, True),
        ("http://localhost:8000", {}, True),
        ("http://[::1]:8000", {}, True),
        ("http://tokens.localhost", {}, True),
        ("http://192.0.2.1:8000", {}, False),
        ("http://localhost.example.com", {}, False),
        ("http://10.0.0.5", {"X-Forwarded-Proto": "https"}, True),
        ("http://10.0.0.5", {"X-Forwarded-Proto": "https, http"}, True),
        ("http://10.0.0.5", {"X-Forwarded-Proto": "http"}, False),
        ("http://10.0.0.5", {"X-Forwarded-Proto": "wss"}, False),
        ("http://tokens.example.com", {}, True),  # TLS ends before us, as PUBLIC_URL says
        ("http://tokens.example.com", {"X-Forwarded-Proto": "http"}, False),
        ("https://anywhere.example.com", {}, True),
    ],
)
async def test_the_pages_are_shown_where_nobody_reads_along(
    runtime: Runtime, url: str, headers: dict[str, str], *, private: bool
) -> None:
    async with browser(runtime, url, ip="10.0.0.9") as client:
        client.headers.update(headers)
        answer = await client.get("/admin/sign-in")
        sent = await client.sign_in(ADMIN)

    assert answer.status_code == (200 if private else 403)
    assert ("TLS is needed here" in answer.text) is not private
    assert (sent.status_code == 403) is not private


async def test_a_stranger_is_not_believed_to_be_a_proxy(runtime: Runtime) -> None:
    async with browser(runtime, "http://10.0.0.5", ip="198.51.100.1") as client:
        answer = await client.get("/admin/sign-in", headers={"X-Forwarded-Proto": "https"})

    assert answer.status_code == 403
