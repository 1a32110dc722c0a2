"""The screenshots of the README, taken anew: ``make screenshots``.

A sandbox gets a log of some weeks, and a browser signs in and looks at it.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
from playwright.async_api import Page, async_playwright

from app.base.clock import to_unix_microseconds
from app.base.sqlite import SqliteDatabase
from app.runtime import database_of
from app.settings import Settings
from tests.chromium import FLAGS, find_chromium
from tests.filled_log import AGENT, Story, fill
from tests.service import Service, run_command, serving

IMAGES = Path(__file__).parents[1] / "docs" / "images"
ROWS = 20_000
DAYS = 21
WIDTH = 1280
ADMIN, DEMO = "admin@example.com", "demo@example.com"

ACCOUNTS = ("reception", "kiosk", "sales", "training", "support", "lobby", "field", "lab")
"""What those are called who do most."""


async def fill_sandbox(folder: Path) -> Story:
    """Tell in the log of the sandbox in *folder* what has happened in the last weeks."""
    migrated = run_command(folder, "migrate", DATA_DIR=folder)
    assert migrated.returncode == 0, migrated.stderr
    start = datetime.now(UTC) - timedelta(days=DAYS)
    story = Story(users=40, start=start, days=DAYS - 0.1, environment="sandbox")
    database = database_of(Settings(_env_file=None, data_dir=folder))
    await fill(database, story, ROWS)
    await database.close()
    return story


def name_users(folder: Path, story: Story) -> None:
    """Give those of whom the log tells most an account."""
    connection = SqliteDatabase(Settings(_env_file=None, data_dir=folder).database_path).connect()
    now = to_unix_microseconds(datetime.now(UTC))
    connection.executemany(
        "INSERT INTO users (id, email, password_hash, role, created_at) VALUES (?, ?, '', ?, ?)",
        [
            (user, f"{name}@example.com", "user", now)
            for user, name in zip(story.users, ACCOUNTS, strict=False)
        ],
    )
    connection.commit()
    connection.close()


def verify(service: Service) -> None:
    """Have the log verified, as an admin does now and then."""
    headers = service.sign_in(ADMIN, service.password_of(ADMIN))
    httpx.post(f"{service.url}/audit/verification", headers=headers).raise_for_status()


def mint(service: Service) -> str:
    """Let the demo user ask for a token; return the id of the attempt."""
    headers = service.sign_in(DEMO, service.password_of(DEMO)) | {"User-Agent": AGENT}
    answer = httpx.post(f"{service.url}/realtime/token", headers=headers).raise_for_status()
    return str(answer.json()["id"])


@asynccontextmanager
async def signed_in(service: Service) -> AsyncIterator[Page]:
    """Open a browser in which an admin has signed in."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        page = await browser.new_page(base_url=service.url)
        await page.goto("/admin")
        await page.get_by_label("E-mail address").fill(ADMIN)
        await page.get_by_label("Password").fill(service.password_of(ADMIN))
        await page.get_by_role("button", name="Sign in").click()
        yield page
        await browser.close()


async def take(service: Service, images: Path) -> None:
    """Take every screenshot."""
    token = mint(service)
    async with signed_in(service) as page:
        for name, path, height in (
            ("overview", "/admin?span=7d", 980),
            ("log", "/admin/log?action=client_secret.mint&span=30d", 780),
            ("row", f"/admin/log?id={token}&outcome=issued", 700),
        ):
            await page.set_viewport_size({"width": WIDTH, "height": height})
            await page.goto(path)
            if name == "row":
                await page.get_by_role("row").nth(1).click()
            await page.screenshot(path=images / f"{name}.png")


async def main(images: Path) -> None:
    """Make a sandbox with a past, and take the screenshots of its pages."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        story = await fill_sandbox(folder)
        with serving(folder, DATA_DIR=folder) as service:
            name_users(folder, story)
            verify(service)
            await take(service, images)


if __name__ == "__main__":
    IMAGES.mkdir(parents=True, exist_ok=True)
    asyncio.run(main(IMAGES))
