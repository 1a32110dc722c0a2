"""OpenAI's SDKs, opened as the README says, with what the service returned.

`openai` for Python is in test_walk.py.
"""

import asyncio
import json
import os
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.clients.installed import FOLDER, NODE_MODULES, PYTHON, install_clients, node
from tests.clients.tls import tls_proxy
from tests.sandbox_client import silence, tone
from tests.service import Service, free_port, serving

pytestmark = [pytest.mark.outside, pytest.mark.asyncio(loop_scope="module")]

README = (Path(__file__).parents[1] / "README.md").read_text()
DEMO = "demo@example.com"
PATIENCE_SECONDS = 60

Report = dict[str, Any]


@dataclass(frozen=True)
class Client:
    """A program in tests/clients, and the block of the README that it opens its session with."""

    program: str
    imports: str
    over_tls: bool = False

    @property
    def recipe(self) -> str:
        blocks: list[str] = re.findall(r"^```\w+\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
        [recipe] = [block for block in blocks if self.imports in block]
        return recipe

    def command_in(self, folder: Path) -> list[str]:
        """Put program, recipe and the sound of somebody speaking into *folder*."""
        program = folder / self.program
        shutil.copy(FOLDER / self.program, program)
        shutil.copy(FOLDER / "conversation.mjs", folder)
        (folder / f"recipe{program.suffix}").write_text(self.recipe)
        (folder / "speech.pcm").write_bytes(silence(500) + tone(1_000) + silence(1_500))
        (folder / "node_modules").symlink_to(NODE_MODULES)
        return [str(PYTHON if program.suffix == ".py" else node()), str(program)]


CLIENTS = [
    Client("openai_node.mjs", "openai/realtime/websocket", over_tls=True),
    Client("agents_node.mjs", "@openai/agents-realtime"),
    Client("agents_python.py", "agents.realtime"),
]


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    install_clients()


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=CLIENTS, ids=lambda client: client.program
)
async def report(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Report]:
    """Start a service, behind TLS where the client wants it, and let the client do its walk."""
    client: Client = request.param
    folder = tmp_path_factory.mktemp("client")
    settings: dict[str, Any] = {"PORT": free_port(), "PROFILES_FILE": FOLDER / "profiles.toml"}
    trusted = {}
    async with AsyncExitStack() as stack:
        if client.over_tls:
            port = free_port()
            settings["PUBLIC_URL"] = f"https://127.0.0.1:{port}"
            authority = await stack.enter_async_context(
                tls_proxy(folder, port=port, upstream_port=settings["PORT"])
            )
            trusted["NODE_EXTRA_CA_CERTS"] = str(authority)
        service = stack.enter_context(serving(folder, **settings))
        yield await walk(client, service, folder, trusted)


async def walk(client: Client, service: Service, folder: Path, trusted: dict[str, str]) -> Report:
    """Run *client* to its end and return what it has printed."""
    given = {
        "service": service.settings.get("PUBLIC_URL", service.url),
        "username": DEMO,
        "password": service.password_of(DEMO),
    }
    process = await asyncio.create_subprocess_exec(
        *client.command_in(folder),
        env={"PATH": os.environ["PATH"], **trusted},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            stdout, stderr = await process.communicate(json.dumps(given).encode())
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, stderr.decode()
    printed: Report = json.loads(stdout)
    return printed


async def test_a_written_turn_is_finished(report: Report) -> None:
    assert "good morning" in report["written"]


async def test_a_spoken_turn_is_heard_transcribed_and_answered_in_sound(report: Report) -> None:
    assert "seconds of speech" in report["heard"]
    assert "seconds of speech" in report["spoken"]
    assert report["sound"] > len(silence(1_000))


async def test_a_function_is_called_and_its_result_gets_an_answer(report: Report) -> None:
    assert report["called"] == {"name": "get_weather", "arguments": {"city": "Berlin"}}
    assert "your function returned rain" in report["concluded"]


async def test_the_session_at_the_end_is_the_one_that_the_token_was_bound_to(
    report: Report,
) -> None:
    session = report["session"]

    assert session["audio"]["input"]["transcription"] == {
        "model": "whisper-1",
        "language": "de",
        "prompt": "Wetter",
    }
    assert session["audio"]["input"]["turn_detection"]["type"] == "server_vad"
    assert session["audio"]["input"]["turn_detection"]["silence_duration_ms"] == 700
    assert session["audio"]["input"]["noise_reduction"] == {"type": "far_field"}
    assert session["audio"]["output"]["voice"] == "cedar"
    assert session["audio"]["output"]["speed"] == 1.25
    assert session["model"] == "gpt-realtime-2.1-mini"
    assert session["instructions"] == "You are the host of a weather station."
    assert session["max_output_tokens"] == 500
    assert [tool["name"] for tool in session["tools"]] == ["get_weather"]
