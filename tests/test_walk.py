"""A newcomer's walk: what the banner and the README say, done with OpenAI's own SDK.

Nothing here knows an address, a model or a token that the service has not handed out.
"""

import asyncio
import base64
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI
from openai.resources.realtime.realtime import AsyncRealtimeConnection
from openai.types.realtime import RealtimeServerEvent

from tests.sandbox_client import silence, tone
from tests.service import Service, serving

pytestmark = pytest.mark.outside

ROOT = Path(__file__).parents[1]
DEMO, ADMIN = "demo@example.com", "admin@example.com"

Bearer = dict[str, str]
Minted = dict[str, Any]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One sandbox with the profiles of the example file."""
    profiles = ROOT / "examples" / "profiles.toml"
    settings: dict[str, Any] = {"PROFILES_FILE": profiles, "MINTS_PER_USER_PER_MINUTE": 100}
    with serving(tmp_path_factory.mktemp("walk"), **settings) as service:
        yield service


@pytest.fixture(scope="module")
def demo(service: Service) -> Bearer:
    return service.sign_in(DEMO, service.password_of(DEMO))


def mint(service: Service, bearer: Bearer, **wish: Any) -> Minted:
    answer = httpx.post(f"{service.url}/realtime/token", headers=bearer, json=wish)
    assert answer.status_code == 200, answer.text
    minted: Minted = answer.json()
    return minted


@asynccontextmanager
async def connected(minted: Minted) -> AsyncIterator[AsyncRealtimeConnection]:
    """Open a session with what the service answered."""
    base = minted["connect"]["websocket"].removesuffix("/realtime")
    async with (
        AsyncOpenAI(api_key=minted["token"], websocket_base_url=base) as openai,
        openai.realtime.connect() as connection,
    ):
        yield connection


async def until(
    connection: AsyncRealtimeConnection, *kinds: str
) -> dict[str, list[RealtimeServerEvent]]:
    """Receive until each of *kinds* has come; return all that came, by kind."""
    received: dict[str, list[RealtimeServerEvent]] = {}
    async with asyncio.timeout(10):
        while not received.keys() >= set(kinds):
            event = await connection.recv()
            assert event.type != "error", event
            received.setdefault(event.type, []).append(event)
    return received


async def say(connection: AsyncRealtimeConnection, text: str) -> None:
    await connection.conversation.item.create(
        item={"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
    )
    await connection.response.create()


async def hear(connection: AsyncRealtimeConnection) -> None:
    """Send what a microphone would: quiet, somebody speaking, quiet again; 100 ms at a time."""
    sound = silence(500) + tone(1_000) + silence(2_000)
    for start in range(0, len(sound), len(silence(100))):
        part = sound[start : start + len(silence(100))]
        await connection.input_audio_buffer.append(audio=base64.b64encode(part).decode())


def text_of(events: list[RealtimeServerEvent]) -> str:
    return "".join(getattr(event, "delta", "") for event in events)


def run_in_bash(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/bash", "-c", command], capture_output=True, text=True, timeout=30, check=False
    )


# What is printed ----------------------------------------------------------------------------


def test_the_curl_of_the_banner_gives_a_token_when_pasted(service: Service) -> None:
    pasted = run_in_bash(service.curl)

    assert pasted.returncode == 0, pasted.stderr
    assert json.loads(pasted.stdout)["token"].startswith("ek_sandbox_")


def test_the_curls_of_the_readme_give_a_token(service: Service) -> None:
    readme = (ROOT / "README.md").read_text()
    first, second = readme.split("Done by hand:\n\n```sh\n")[1].split("```")[0].split("\ncurl ")
    password = service.password_of(DEMO)
    sign_in = first.replace("http://127.0.0.1:8000", service.url)
    granted = run_in_bash(sign_in.replace("THE-PASSWORD-SHOWN", password))
    access_token = json.loads(granted.stdout)["access_token"]

    ask = f"curl {second}".replace("http://127.0.0.1:8000", service.url)
    minted = run_in_bash(ask.replace("THE-ACCESS-TOKEN", access_token))

    assert json.loads(minted.stdout)["success"] is True


def test_the_example_prints_an_answer(service: Service) -> None:
    talked = subprocess.run(
        [sys.executable, "examples/talk.py", service.url, DEMO],
        cwd=ROOT,
        input=service.password_of(DEMO) + "\n",
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert talked.returncode == 0, talked.stderr
    assert "Hello!" in talked.stdout


# Sessions -----------------------------------------------------------------------------------


async def test_a_text_turn_is_completed(service: Service, demo: Bearer) -> None:
    minted = mint(service, demo)
    async with connected(minted) as connection:
        created = await connection.recv()
        await say(connection, "good morning")
        received = await until(connection, "response.done")

    assert created.type == "session.created"
    [done] = received["response.done"]
    assert done.type == "response.done"
    assert done.response.status == "completed"
    assert "good morning" in text_of(received["response.output_audio_transcript.delta"])


async def test_a_spoken_turn_is_heard_transcribed_and_answered_as_it_was_bound(
    service: Service, demo: Bearer
) -> None:
    minted = mint(service, demo)
    heard = minted["sessionConfig"]["audio"]["input"]
    assert heard["turn_detection"] == {"type": "semantic_vad"}
    assert heard["transcription"]["model"] == "gpt-4o-mini-transcribe"
    async with connected(minted) as connection:
        created = await connection.recv()
        await hear(connection)
        received = await until(
            connection,
            "input_audio_buffer.speech_started",
            "input_audio_buffer.speech_stopped",
            "input_audio_buffer.committed",
            "conversation.item.input_audio_transcription.completed",
            "response.output_audio.delta",
            "response.done",
        )

    assert created.type == "session.created"
    session = created.session.to_dict()
    assert session["model"] == minted["model"]
    audio: Any = session["audio"]
    assert audio["input"]["turn_detection"]["type"] == "semantic_vad"
    assert audio["input"]["transcription"]["model"] == heard["transcription"]["model"]
    assert audio["output"]["voice"] == minted["sessionConfig"]["audio"]["output"]["voice"]
    [started] = received["input_audio_buffer.speech_started"]
    [committed] = received["input_audio_buffer.committed"]
    [transcribed] = received["conversation.item.input_audio_transcription.completed"]
    [done] = received["response.done"]
    assert started.type == "input_audio_buffer.speech_started"
    assert started.audio_start_ms == 200  # 300 ms before the tone
    assert committed.type == "input_audio_buffer.committed"
    assert transcribed.type == "conversation.item.input_audio_transcription.completed"
    assert transcribed.item_id == committed.item_id
    assert transcribed.transcript
    assert done.type == "response.done"
    assert done.response.status == "completed"
    assert done.response.usage
    details = done.response.usage.output_token_details
    assert details
    assert details.audio_tokens
    spoken = base64.b64decode(text_of(received["response.output_audio.delta"]))
    assert len(spoken) > len(silence(100))


async def test_a_token_is_good_for_several_connections_at_once(
    service: Service, demo: Bearer
) -> None:
    minted = mint(service, demo)
    async with connected(minted) as one, connected(minted) as two:
        created = [await one.recv(), await two.recv()]

    ids = {event.session.to_dict()["id"] for event in created if event.type == "session.created"}
    assert len(ids) == 2


# The profiles of the example file -----------------------------------------------------------


async def test_the_transcriber_only_writes_down(service: Service, demo: Bearer) -> None:
    minted = mint(service, demo, profile="transcriber", language="de")
    async with connected(minted) as connection:
        created = await connection.recv()
        await hear(connection)
        received = await until(connection, "conversation.item.input_audio_transcription.completed")

    assert created.type == "session.created"
    assert created.session.type == "transcription"
    transcription: Any = created.session.to_dict()["audio"]
    assert transcription["input"]["transcription"]["language"] == "de"
    [transcribed] = received["conversation.item.input_audio_transcription.completed"]
    assert transcribed.type == "conversation.item.input_audio_transcription.completed"
    assert transcribed.transcript
    assert not [kind for kind in received if kind.startswith("response.")]


async def test_the_coach_knows_seller_and_product_and_answers_in_writing(
    service: Service, demo: Bearer
) -> None:
    variables = {"seller": "Ada", "product": "Engines"}
    minted = mint(service, demo, profile="coach", variables=variables)
    async with connected(minted) as connection:
        created = await connection.recv()
        await say(connection, "we have no budget")
        received = await until(connection, "response.done")

    assert created.type == "session.created"
    session: Any = created.session.to_dict()
    assert "You coach Ada, who is on a call to sell Engines." in session["instructions"]
    assert [tool["name"] for tool in session["tools"]] == [
        "track_discussion_topic",
        "suggest_question",
    ]
    assert text_of(received["response.output_text.delta"])
    assert "response.output_audio.delta" not in received


# What is left of it -------------------------------------------------------------------------


def test_an_admin_finds_each_token_by_its_id_and_the_log_is_whole(
    service: Service, demo: Bearer
) -> None:
    wishes: list[dict[str, Any]] = [
        {},
        {"profile": "transcriber"},
        {"profile": "coach", "variables": {"seller": "Ada", "product": "Engines"}},
    ]
    minted = [mint(service, demo, **wish) for wish in wishes]
    admin = service.sign_in(ADMIN, service.password_of(ADMIN))

    for wish, token in zip(wishes, minted, strict=True):
        found = httpx.get(f"{service.url}/audit/events/{token['id']}", headers=admin)

        assert found.status_code == 200, found.text
        event = found.json()["event"]
        assert event["outcome"] == "issued"
        assert event["environment"] == "sandbox"
        assert event["profile"] == wish.get("profile", "default")
        assert event["expiresAt"] == token["expiresAt"]
        assert [row["outcome"] for row in found.json()["attempt"]] == ["requested", "issued"]
        assert token["token"] not in found.text
    verified = service.run("audit", "verify")
    assert verified.returncode == 0, verified.stdout
    assert "the chain is whole" in verified.stdout
