"""OpenAI's own SDK, pointed at the sandbox, notices no difference."""

import asyncio
import base64
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from openai import AsyncOpenAI, AuthenticationError, BadRequestError
from openai.resources.realtime.realtime import AsyncRealtimeConnection
from openai.types.realtime import RealtimeServerEvent

from tests.sandbox_client import API_KEY, MINI, RunningSandbox, running_sandbox, silence, tone

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox() -> AsyncIterator[RunningSandbox]:
    async with running_sandbox() as running:
        yield running


async def until(connection: AsyncRealtimeConnection, kind: str) -> list[RealtimeServerEvent]:
    events = []
    async with asyncio.timeout(5):
        async for event in connection:
            events.append(event)
            assert event.type != "error", event
            if event.type == kind:
                break
    return events


async def test_it_mints_connects_writes_and_speaks(sandbox: RunningSandbox) -> None:
    async with AsyncOpenAI(api_key=API_KEY, base_url=sandbox.base_url) as backend:
        minted = await backend.realtime.client_secrets.create(
            expires_after={"anchor": "created_at", "seconds": 60},
            session={
                "type": "realtime",
                "model": MINI,
                "audio": {
                    "input": {
                        "transcription": {"model": "gpt-4o-mini-transcribe"},
                        "turn_detection": {"type": "semantic_vad"},
                    }
                },
            },
        )
    async with (
        AsyncOpenAI(api_key=minted.value, base_url=sandbox.base_url) as frontend,
        frontend.realtime.connect(model=MINI) as connection,
    ):
        created = await connection.recv()
        await connection.conversation.item.create(
            item={
                "type": "message",
                "role": "user",
                "content": [{"type": "input_text", "text": "good morning"}],
            }
        )
        await connection.response.create(response={"output_modalities": ["text"]})
        written = await until(connection, "response.done")
        audio = base64.b64encode(tone(500) + silence(1_000)).decode()
        await connection.input_audio_buffer.append(audio=audio)
        spoken = await until(connection, "response.done")

    assert created.type == "session.created"
    assert "good morning" in "".join(
        event.delta for event in written if event.type == "response.output_text.delta"
    )
    assert "seconds of speech" in "".join(
        event.delta for event in spoken if event.type == "response.output_audio_transcript.delta"
    )
    assert any(event.type == "response.output_audio.delta" for event in spoken)


async def test_it_connects_to_the_bare_address_with_a_secret(sandbox: RunningSandbox) -> None:
    secret = (await sandbox.mint())["value"]

    async with (
        AsyncOpenAI(api_key=secret, base_url=sandbox.base_url) as frontend,
        frontend.realtime.connect() as connection,
    ):
        created = await connection.recv()

    assert created.type == "session.created"


async def test_it_lists_models(sandbox: RunningSandbox) -> None:
    async with AsyncOpenAI(api_key=API_KEY, base_url=sandbox.base_url) as backend:
        listed = [model.id async for model in backend.models.list()]

    assert MINI in listed


async def test_it_raises_its_own_errors(sandbox: RunningSandbox) -> None:
    async with AsyncOpenAI(api_key="sk-wrong-key", base_url=sandbox.base_url) as stranger:
        with pytest.raises(AuthenticationError) as unauthenticated:
            await stranger.models.list()
    async with AsyncOpenAI(api_key=API_KEY, base_url=sandbox.base_url) as backend:
        with pytest.raises(BadRequestError) as refused:
            await backend.realtime.client_secrets.create(
                expires_after={"anchor": "created_at", "seconds": 1}
            )

    assert unauthenticated.value.code == "invalid_api_key"
    assert refused.value.code == "integer_below_min_value"
    assert refused.value.param == "expires_after.seconds"
