"""The page where a link to set a password leads: over HTTP, and in a real Chromium."""

import re
from collections.abc import AsyncIterator, Iterator
from html import unescape
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import expect

from app.identity.users import OPERATOR, User
from app.main import create_app
from app.runtime import Runtime
from app.web.callers import get_runtime
from tests.conftest import on_sqlite
from tests.service import Service, serving
from tests.test_docs_page import browsing
from tests.test_error_pages import Page

NEW = "violin harbour seventeen plums"
DEMO = "demo@example.com"


@pytest.fixture
async def client(runtime: Runtime) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(runtime.settings)
    app.dependency_overrides[get_runtime] = lambda: runtime
    transport = httpx.ASGITransport(app, client=("192.0.2.7", 4711))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        yield client


async def token_for(runtime: Runtime, user: User) -> str:
    link = await runtime.password_changes.make_link(user.id, by=OPERATOR)
    return link.url.partition("#")[2]


def text_of(answer: httpx.Response) -> str:
    """Return what a reader sees."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", answer.text)).split())


@on_sqlite
async def test_the_page_loads_our_own_files_and_sends_its_form_here_alone(
    client: httpx.AsyncClient,
) -> None:
    answer = await client.get("/reset")
    page = Page(answer.text)

    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["referrer-policy"] == "no-referrer"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "form-action 'self'; frame-ancestors 'none'" in policy
    assert '<form method="post" action="/reset">' in answer.text
    assert all(address.startswith(("/", "#")) for address in page.addresses)


@on_sqlite
async def test_the_form_sets_the_password(
    client: httpx.AsyncClient, runtime: Runtime, alice: User
) -> None:
    token = await token_for(runtime, alice)

    answer = await client.post("/reset", data={"token": token, "password": NEW})
    grant = {"grant_type": "password", "username": alice.email, "password": NEW}
    signed_in = await client.post("/auth/token", data=grant)
    again = await client.post("/reset", data={"token": token, "password": NEW})

    assert answer.status_code == 200
    assert "Your password is set" in text_of(answer)
    assert token not in answer.text
    assert signed_in.status_code == 200
    assert again.status_code == 422
    assert "This link is not good any more" in text_of(again)


@on_sqlite
async def test_a_password_that_may_not_be_set_is_explained_and_can_be_corrected(
    client: httpx.AsyncClient, runtime: Runtime, alice: User
) -> None:
    token = await token_for(runtime, alice)

    answer = await client.post("/reset", data={"token": token, "password": "passwordpassword"})

    assert answer.status_code == 422
    assert "It is too easy to guess. Repeats like" in text_of(answer)
    assert "passwordpassword" not in answer.text
    assert f'value="{token}"' in answer.text


@on_sqlite
async def test_what_is_sent_back_is_text_and_no_markup(client: httpx.AsyncClient) -> None:
    answer = await client.post("/reset", data={"token": '"><script>x</script>', "password": NEW})

    assert answer.status_code == 422
    assert "<script>x" not in answer.text


@on_sqlite
async def test_too_many_attempts_are_told_on_the_page(client: httpx.AsyncClient) -> None:
    for _ in range(30):
        await client.post("/reset", data={"token": "x", "password": NEW})
    answer = await client.post("/reset", data={"token": "x", "password": NEW})

    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "60"
    assert "Too many requests. Ask again in 60 seconds." in text_of(answer)


@on_sqlite
@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ({"json": {"token": "x", "password": NEW}}, 415),
        ({"data": {"token": "x"}}, 422),
        ({"data": {}}, 422),
    ],
)
async def test_what_is_not_the_form_is_refused_with_a_problem(
    client: httpx.AsyncClient, sent: dict[str, Any], status: int
) -> None:
    answer = await client.post("/reset", **sent)

    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"


# In a browser


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("reset"), LOG_LEVEL="debug") as service:
        yield service


def new_link(service: Service) -> str:
    made = service.run("users", "reset-link", DEMO)
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


def logged(service: Service) -> str:
    return service.stdout.read_text() + service.banner


@pytest.mark.outside
async def test_a_link_that_is_opened_needs_nothing_but_the_password(service: Service) -> None:
    link = new_link(service)
    token = link.partition("#")[2]
    async with browsing(service.url) as watched:
        page = watched.page
        await page.goto(link)
        await expect(page.get_by_label("Link or code")).to_be_hidden()
        assert page.url == f"{service.url}/reset"
        await page.get_by_label("New password").fill("passwordpassword")
        await page.get_by_role("button", name="Set password").click()
        await expect(page.get_by_text("It is too easy to guess.")).to_be_visible()
        await expect(page.get_by_label("Link or code")).to_be_hidden()
        await page.get_by_label("New password").fill(NEW)
        await page.get_by_role("button", name="Set password").click()
        await expect(page.get_by_role("heading", name="Your password is set")).to_be_visible()
        complaints = [text for text in await watched.faults() if "422" not in text]
        asked = watched.requests

    assert complaints == []
    assert not [url for url in asked if token in url.partition("#")[0]]
    service.sign_in(DEMO, NEW)
    assert token not in logged(service)
    assert NEW not in logged(service)


@pytest.mark.outside
async def test_without_scripts_the_link_is_pasted(service: Service) -> None:
    link, password = new_link(service), "turnip waltz and a green umbrella"
    async with browsing(service.url, java_script_enabled=False) as watched:
        page = watched.page
        await page.goto(link)
        await page.get_by_label("Link or code").fill(link)
        await page.get_by_label("New password").fill(password)
        await page.get_by_role("button", name="Set password").click()
        await expect(page.get_by_role("heading", name="Your password is set")).to_be_visible()

    service.sign_in(DEMO, password)
    assert link.partition("#")[2] not in logged(service)


@pytest.mark.outside
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
async def test_the_page_fits_its_window(
    service: Service, width: int, scheme: str, tmp_path: Path
) -> None:
    window = {"width": width, "height": 900}
    async with browsing(service.url, viewport=window, color_scheme=scheme) as watched:
        page = watched.page
        for name, path in (("link", "/reset#rts_x"), ("bare", "/reset")):
            await page.goto("about:blank")
            await page.goto(path)
            wide = await page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, name
