"""The README's browser snippet as it stands, in a real Chromium, on a page of another origin."""

import functools
import re
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import ConsoleMessage, Page, async_playwright

from tests.chromium import FLAGS, find_chromium
from tests.service import Service, serving

pytestmark = pytest.mark.outside

README = (Path(__file__).parents[1] / "README.md").read_text()
DEMO = "demo@example.com"
MINTS_PER_MINUTE = 5

# A page of a stranger, whose name leads to this machine, so that only CORS can stop it.
STRANGER = "stranger.test"

SIGN_IN = """async ([service, username, password]) => {
  const body = new URLSearchParams({ grant_type: "password", username, password });
  const answer = await fetch(`${service}/auth/token`, { method: "POST", body });
  return (await answer.json()).access_token;
}"""

TALK = """async ([service, accessToken]) => {
  const socket = await openSession(service, accessToken);
  const events = [];
  const over = new Promise((resolve, reject) => {
    socket.onclose = () => reject(new Error("closed too early"));
    socket.onmessage = ({ data }) => {
      events.push(JSON.parse(data));
      if (["response.done", "error"].includes(events.at(-1).type)) resolve();
    };
  });
  say(socket, "good morning");
  await over;
  return { protocol: socket.protocol, events };
}"""

ASK = """async ([service, accessToken]) => {
  const headers = { Authorization: `Bearer ${accessToken}` };
  const answer = await fetch(`${service}/realtime/token`, { method: "POST", headers });
  return {
    status: answer.status,
    code: (await answer.json()).code,
    requestId: answer.headers.get("X-Request-ID"),
    retryAfter: answer.headers.get("Retry-After"),
  };
}"""


def snippets() -> list[str]:
    """Return the README's blocks of JavaScript."""
    return re.findall(r"^```js\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


class Handler(SimpleHTTPRequestHandler):
    """Serves files and says nothing about it."""

    def log_message(self, *arguments: Any) -> None:
        pass


@contextmanager
def pages(folder: Path) -> Iterator[int]:
    """Serve a folder with an empty page, as a frontend's development server would; the port."""
    (folder / "index.html").write_text("<!doctype html><link rel=icon href=data:,>")
    handler = functools.partial(Handler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def frontend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with pages(tmp_path_factory.mktemp("frontend")) as port:
        yield port


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    with serving(folder, MINTS_PER_USER_PER_MINUTE=MINTS_PER_MINUTE) as service:
        yield service


@asynccontextmanager
async def browsing(url: str) -> AsyncIterator[tuple[Page, list[str]]]:
    """Open a page that has the README's functions; also what its console complains about."""
    flags = [*FLAGS, f"--host-resolver-rules=MAP {STRANGER} 127.0.0.1"]
    complaints: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type == "error":
            complaints.append(message.text)

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=find_chromium(), args=flags)
        page = await browser.new_page()
        page.set_default_timeout(10_000)
        page.on("console", note)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        await page.goto(url)
        for snippet in snippets():
            await page.add_script_tag(content=snippet)
        yield page, complaints
        await browser.close()


async def signed_in(page: Page, service: Service) -> str:
    """Sign the demo user in from the page."""
    credentials = [service.url, DEMO, service.password_of(DEMO)]
    access_token: str = await page.evaluate(SIGN_IN, credentials)
    return access_token


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_the_snippet_opens_a_session_and_finishes_a_turn(
    service: Service, frontend: int, host: str
) -> None:
    async with browsing(f"http://{host}:{frontend}/") as (page, complaints):
        access_token = await signed_in(page, service)
        talked = await page.evaluate(TALK, [service.url, access_token])

    assert complaints == []
    assert talked["protocol"] == "realtime"
    done = talked["events"][-1]
    assert done["type"] == "response.done", done
    assert done["response"]["status"] == "completed"
    spoken = [e["delta"] for e in talked["events"] if e["type"].endswith("_transcript.delta")]
    assert "good morning" in "".join(spoken)


async def test_the_page_can_read_a_refusal_and_what_to_do(service: Service, frontend: int) -> None:
    async with browsing(f"http://127.0.0.1:{frontend}/") as (page, _):
        stranger = await page.evaluate(ASK, [service.url, "nonsense"])
        access_token = await signed_in(page, service)
        asked = [
            await page.evaluate(ASK, [service.url, access_token])
            for _ in range(MINTS_PER_MINUTE + 1)
        ]
        said = await page.evaluate(
            "([service, junk]) => openSession(service, junk).catch((error) => error.message)",
            [service.url, "nonsense"],
        )

    assert (stranger["status"], stranger["code"]) == (401, "invalid_token")
    assert stranger["requestId"].startswith("req_")
    assert (asked[-1]["status"], asked[-1]["code"]) == (429, "rate_limited")
    assert 1 <= int(asked[-1]["retryAfter"]) <= 60
    assert said.startswith("The credential is not valid")


async def test_a_page_of_a_stranger_is_not_answered(service: Service, frontend: int) -> None:
    async with browsing(f"http://{STRANGER}:{frontend}/") as (page, complaints):
        for script in (SIGN_IN, ASK):
            credentials = [service.url, DEMO, service.password_of(DEMO)]
            said = await page.evaluate(f"(given) => ({script})(given).catch(String)", credentials)
            assert said == "TypeError: Failed to fetch"

    reasons = [text for text in complaints if "blocked by CORS policy" in text]
    assert len(reasons) == 2, complaints


async def test_the_snippet_for_calls_is_sound_javascript(frontend: int) -> None:
    async with browsing(f"http://127.0.0.1:{frontend}/") as (page, complaints):
        kinds = await page.evaluate("[typeof openSession, typeof say, typeof openCall]")

    assert kinds == ["function"] * 3
    assert complaints == []
