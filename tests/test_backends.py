"""The example backends as real processes, with a real key, in front of the real service."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.clients.installed import NODE_MODULES, install_clients, node
from tests.service import Service, free_port, serving
from tests.waiting import until

pytestmark = pytest.mark.outside

EXAMPLES = Path(__file__).parents[1] / "examples" / "backend"
SIGNED_IN = {"session": "a-cookie-nobody-can-guess"}
USER = "their-user-17"


@dataclass(frozen=True)
class Backend:
    """A running example, and the id of the key it has."""

    url: str
    key_id: str

    async def ask(self, cookies: dict[str, str]) -> httpx.Response:
        """Ask as the browser of somebody who has these cookies."""
        async with httpx.AsyncClient(cookies=cookies) as browser:
            return await browser.post(f"{self.url}/session")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with serving(tmp_path, MINTS_PER_USER_PER_MINUTE=2) as service:
        yield service


def command(language: str, folder: Path, port: int) -> list[str]:
    if language == "python":
        server = [sys.executable, "-m", "uvicorn", "backend:app", "--app-dir", str(EXAMPLES)]
        return [*server, "--port", str(port)]
    install_clients()
    (folder / "node_modules").symlink_to(NODE_MODULES)
    program = folder / "backend.mjs"
    program.write_text((EXAMPLES / "backend.mjs").read_text())
    return [str(node()), str(program)]


@contextmanager
def running(language: str, folder: Path, service: Service) -> Iterator[Backend]:
    made = service.run("keys", "create", f"{language} backend")
    assert made.returncode == 0, made.stderr
    port = free_port()
    given = {"TOKEN_SERVICE": service.url, "SERVICE_KEY": made.stdout.strip(), "PORT": str(port)}
    process = subprocess.Popen(
        command(language, folder, port), env={"PATH": os.environ["PATH"], **given}
    )
    try:
        yield Backend(f"http://127.0.0.1:{port}", made.stderr.split()[0])
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.mark.parametrize("language", ["python", "node"])
async def test_a_backend_gets_tokens_for_those_who_are_signed_in_with_it(
    language: str, service: Service, tmp_path: Path
) -> None:
    with running(language, tmp_path, service) as backend:

        async def answers() -> bool:
            try:
                return (await backend.ask({})).status_code == 401
            except httpx.TransportError:
                return False

        await until(answers, seconds=30)
        minted = await backend.ask(SIGNED_IN)
        strangers = await backend.ask({"session": "guessed"})
        too_many = [(await backend.ask(SIGNED_IN)) for _ in range(2)]
        service.run("keys", "revoke", backend.key_id)
        refused = await backend.ask(SIGNED_IN)
        listed = service.run("audit", "list", "--end-user", USER, "--key", backend.key_id).stdout

    assert minted.status_code == 200, minted.text
    assert minted.json()["token"].startswith("ek_sandbox_")
    assert minted.headers["Cache-Control"] == "no-store"
    assert strangers.status_code == 401
    assert [answer.status_code for answer in too_many] == [200, 429]
    assert int(too_many[1].headers["Retry-After"]) > 0
    assert too_many[1].json()["code"] == "rate_limited"
    assert refused.status_code == 502
    assert listed.count("issued") == 2
    assert listed.count(backend.key_id) == 5  # the two mints, and what was denied
    assert USER not in json.dumps(minted.json()) + listed
