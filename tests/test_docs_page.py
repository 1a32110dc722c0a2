"""The page ``/docs`` in a real Chromium, served by a real uvicorn, with nothing else to reach."""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytest
import uvicorn
from fastapi import Depends, FastAPI, Form
from fastapi.security import OAuth2PasswordBearer
from playwright.async_api import ConsoleMessage, Page, async_playwright, expect
from starlette.staticfiles import StaticFiles
from starlette.testclient import TestClient
from starlette.types import ASGIApp

import app
from app.web import docs
from tests.chromium import FLAGS, find_chromium

oauth2 = OAuth2PasswordBearer(tokenUrl="auth/token", scopes={"mint": "ask for client secrets"})


def service(*, root_path: str = "") -> FastAPI:
    """Return a small service with our page; its description names another address as ours."""
    sample = FastAPI(
        title="Realtime token service",
        docs_url=None,
        root_path=root_path,
        servers=[{"url": "https://tokens.example.com"}],
    )
    sample.include_router(docs.router)
    sample.mount("/static", StaticFiles(directory=Path(app.__file__).parent / "web" / "static"))

    @sample.post("/auth/token", tags=["Sign-in"])
    async def sign_in(username: Annotated[str, Form()]) -> dict[str, str]:
        return {"access_token": f"token-of-{username}", "token_type": "bearer"}

    @sample.post("/realtime/token", tags=["Realtime"], summary="Mint one client secret")
    async def mint(caller: Annotated[str, Depends(oauth2)], language: str = "en") -> dict[str, str]:
        """Give the caller *one* client secret."""
        return {"caller": caller, "language": language}

    return sample


@asynccontextmanager
async def served(application: ASGIApp) -> AsyncIterator[str]:
    """Serve *application* on a free port of the loopback; gives its address."""
    server = uvicorn.Server(uvicorn.Config(application, log_config=None))
    # Whoever connects before uvicorn accepts waits in the socket's backlog.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving


@dataclass
class Watched:
    """A page, and what went wrong on it."""

    page: Page
    origin: str
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def note(self, message: ConsoleMessage) -> None:
        """Keep what the console complains about; the browser's hints are of other types."""
        if message.type in {"error", "warning", "assert"}:
            self.complaints.append(message.text)

    async def faults(self) -> Sequence[str]:
        """Return console output, errors, violations of the policy, and requests to strangers."""
        violations = await self.page.evaluate("violations")
        strangers = [
            url
            for url in self.requests
            if not url.startswith((self.origin + "/", "data:", "blob:"))
        ]
        return [*self.complaints, *violations, *strangers]


@asynccontextmanager
async def browsing(origin: str, **context: Any) -> AsyncIterator[Watched]:
    """Open a page that remembers every fault from its first moment on."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        page = await (await browser.new_context(base_url=origin, **context)).new_page()
        page.set_default_timeout(10_000)
        watched = Watched(page, origin)
        page.on("console", watched.note)
        page.on("pageerror", lambda error: watched.complaints.append(str(error)))
        page.on("request", lambda request: watched.requests.append(request.url))
        await page.add_init_script(
            "violations = []; addEventListener('securitypolicyviolation', event =>"
            " violations.push(`${event.violatedDirective}: ${event.blockedURI} ${event.sample}`));"
        )
        yield watched
        await browser.close()


@pytest.mark.outside
async def test_the_page_shows_and_tries_operations_within_its_policy() -> None:
    async with served(service()) as origin, browsing(origin) as watched:
        page = watched.page
        await page.goto("/docs")
        await expect(page.locator(".opblock")).to_have_count(2)

        # Sign in through the dialog, as a frontend engineer would.
        await page.get_by_role("button", name="Authorize").first.click()
        dialog = page.locator(".modal-ux")
        await dialog.get_by_label("username").fill("ada")
        await dialog.get_by_label("password").fill("correct horse battery staple")
        await dialog.get_by_role("button", name="Apply given OAuth2 credentials").click()
        await dialog.get_by_role("button", name="Close").click()

        operation = page.locator("#operations-Realtime-mint_realtime_token_post")
        await operation.locator(".opblock-summary-control").click()
        await operation.get_by_placeholder("language").fill("de")
        await operation.get_by_role("button", name="Execute").click()
        answer = operation.locator(".live-responses-table .response").first
        await expect(answer).to_contain_text('"caller": "token-of-ada"')
        await expect(answer).to_contain_text('"language": "de"')

        assert await watched.faults() == []


@pytest.mark.outside
async def test_the_page_works_below_a_path_and_in_the_dark() -> None:
    outer = FastAPI(docs_url=None, openapi_url=None)
    outer.mount("/tokens", service())
    async with served(outer) as origin, browsing(origin, color_scheme="dark") as watched:
        page = watched.page
        await page.goto("/tokens/docs")

        await expect(page.locator(".opblock")).to_have_count(2)
        await expect(page.locator("html")).to_have_class("dark-mode")
        await expect(page.locator(".servers")).to_contain_text(f"{origin}/tokens")
        assert await watched.faults() == []


@pytest.mark.outside
async def test_the_policy_stops_inline_scripts_and_strangers() -> None:
    async with served(service()) as origin, browsing(origin) as watched:
        await watched.page.goto("/docs")
        await watched.page.evaluate(
            """async () => {
                for (const [tag, content] of [["script", "1"], ["style", "a{}"]]) {
                    const element = document.createElement(tag);
                    element.textContent = content;
                    document.head.append(element);
                }
                await fetch("https://stranger.example/").catch(() => null);
            }"""
        )

        faults = " ".join(await watched.faults())

        for directive in ("script-src-elem", "style-src-elem", "connect-src"):
            assert f"{directive}: " in faults


def test_the_files_of_swagger_ui_are_kept_for_a_day_and_then_asked_about_by_etag() -> None:
    client = TestClient(service())

    first = client.get("/swagger-ui/swagger-ui.css")
    again = client.get(
        "/swagger-ui/swagger-ui.css", headers={"If-None-Match": first.headers["ETag"]}
    )

    assert first.status_code == 200
    assert first.headers["Content-Type"] == "text/css; charset=utf-8"
    assert again.status_code == 304
    assert (
        first.headers["Cache-Control"] == again.headers["Cache-Control"] == "public, max-age=86400"
    )


def test_the_page_carries_its_policy_and_is_not_in_the_description() -> None:
    client = TestClient(service())

    assert client.get("/docs").headers["Content-Security-Policy"] == docs.DOCS_CSP
    assert "unsafe" not in docs.DOCS_CSP
    assert set(client.get("/openapi.json").json()["paths"]) == {"/auth/token", "/realtime/token"}
