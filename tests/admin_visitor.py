"""A browser without a screen, for the pages under /admin: keeps its cookie and sends forms."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from html import unescape

import httpx

from app.identity.users import OPERATOR
from app.main import create_app
from app.runtime import Runtime
from tests.conftest import PASSWORD, as_served

HOME = "https://tokens.example.com"
COOKIE = "__Host-realtime-tokens"
AUDITOR = "auditor@example.com"


class Browser(httpx.AsyncClient):
    """What a visitor has open."""

    async def sign_in(self, email: str, password: str = PASSWORD, **more: str) -> httpx.Response:
        form = {"email": email, "password": password, **more}
        return await self.post("/admin/sign-in", data=form)

    async def act(self, page: str, path: str, **fields: str) -> httpx.Response:
        """Send a form that stands on *page* to *path*."""
        token = token_in((await self.get(page)).text)
        return await self.post(path, data={"formToken": token, **fields})


@asynccontextmanager
async def browser(
    runtime: Runtime, url: str = HOME, ip: str = "192.0.2.7"
) -> AsyncIterator[Browser]:
    """Open a browser on the service of *runtime*, reached at *url*."""
    app = create_app(runtime.settings)
    transport = httpx.ASGITransport(
        as_served(app, runtime), raise_app_exceptions=False, client=(ip, 4711)
    )
    headers = {"Sec-Fetch-Site": "same-origin", "User-Agent": "pytest"}
    async with Browser(transport=transport, base_url=url, headers=headers) as client:
        yield client


@asynccontextmanager
async def auditors_browser(runtime: Runtime) -> AsyncIterator[Browser]:
    """Open a browser in which an auditor has signed in."""
    await runtime.users.add(AUDITOR, role="auditor", password=PASSWORD, by=OPERATOR)
    async with browser(runtime) as client:
        signed_in = await client.sign_in(AUDITOR)
        assert signed_in.status_code == 303
        assert signed_in.headers["Location"] == "/admin"
        yield client


def token_in(page: str) -> str:
    """Return the token of the forms on *page*."""
    found = re.search(r'name="formToken" value="([0-9a-f]{64})"', page)
    assert found, page
    return found[1]


def text_of(answer: httpx.Response) -> str:
    """Return what a reader sees."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", answer.text)).split())
