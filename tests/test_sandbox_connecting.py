"""Who is let into the sandbox's WebSocket, and to which session."""

import contextlib
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from websockets.exceptions import InvalidStatus

from app.sandbox.app import MOST_CONNECTIONS
from tests.sandbox_client import API_KEY, MINI, RunningSandbox, running_sandbox

pytestmark = pytest.mark.asyncio(loop_scope="module")

TRANSCRIPTION = {"type": "transcription"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox() -> AsyncIterator[RunningSandbox]:
    async with running_sandbox() as running:
        yield running


async def test_a_secret_opens_the_session_it_is_bound_to(sandbox: RunningSandbox) -> None:
    bound = {"type": "realtime", "model": MINI, "instructions": "Only rhyme."}
    secret = (await sandbox.mint(bound))["value"]

    async with sandbox.connected(credential=secret) as connection:
        created = await connection.receive()

    assert created["type"] == "session.created"
    assert created["session"]["instructions"] == "Only rhyme."
    assert created["session"]["model"] == MINI
    assert created["session"]["expires_at"] == sandbox.clock().timestamp() + 3600


async def test_a_browser_sends_its_secret_as_a_subprotocol(sandbox: RunningSandbox) -> None:
    secret = (await sandbox.mint())["value"]
    offered = ["realtime", f"openai-insecure-api-key.{secret}"]

    async with sandbox.connected(subprotocols=offered) as connection:
        created = await connection.receive()

    assert connection.websocket.subprotocol == "realtime"
    assert created["type"] == "session.created"


async def test_a_secret_opens_several_sessions_until_it_expires(sandbox: RunningSandbox) -> None:
    minted = await sandbox.mint(expires_after={"anchor": "created_at", "seconds": 10})

    for _ in range(2):
        async with sandbox.connected(credential=minted["value"]) as connection:
            assert (await connection.receive())["type"] == "session.created"
            sandbox.clock.advance(seconds=5)
    async with sandbox.connected(credential=minted["value"]) as late:
        refused = await late.receive()
        end = await late.closed()

    assert refused["error"]["code"] == "invalid_api_key"
    assert end == (3000, "invalid_request_error.invalid_api_key")


async def test_a_session_outlives_its_secret(sandbox: RunningSandbox) -> None:
    minted = await sandbox.mint(expires_after={"anchor": "created_at", "seconds": 10})

    async with sandbox.connected(credential=minted["value"]) as connection:
        await connection.receive()
        sandbox.clock.advance(minutes=59)
        await connection.say("still there?")


async def test_a_session_ends_after_an_hour(sandbox: RunningSandbox) -> None:
    async with sandbox.session() as session:
        sandbox.clock.advance(minutes=60)
        error = await session.refused("response.create")
        await session.closed()

    assert error["code"] == "session_expired"
    assert error["message"] == "Your session hit the maximum duration of 60 minutes."


@pytest.mark.parametrize(
    ("credential", "code", "close"),
    [
        (None, None, (3000, "invalid_request_error")),
        ("sk-wrong-key", "invalid_api_key", (3000, "invalid_request_error.invalid_api_key")),
        (
            "ek_sandbox_" + "0" * 32,
            "invalid_api_key",
            (3000, "invalid_request_error.invalid_api_key"),
        ),
    ],
)
async def test_a_bad_credential_is_refused_after_the_upgrade(
    sandbox: RunningSandbox, credential: str | None, code: str | None, close: tuple[int, str]
) -> None:
    async with sandbox.connected(credential=credential, query=f"?model={MINI}") as connection:
        refused = await connection.receive()
        end = await connection.closed()

    assert (refused["type"], refused["error"]["code"]) == ("error", code)
    assert end == close


@pytest.mark.parametrize(
    ("bound", "query", "code"),
    [
        (None, "?model=no-such-model", "invalid_model"),
        (None, "?model=gpt-4o-mini-transcribe", "invalid_model"),
        (None, "?intent=transcription&model=gpt-4o-mini-transcribe", "invalid_model"),
        (None, "", "missing_model"),
        ({"type": "realtime"}, "", "missing_model"),
        ({"type": "realtime", "model": "gpt-live-1"}, "", "invalid_model"),
        ({"type": "realtime", "model": MINI}, "?model=gpt-realtime", "invalid_model"),
        (TRANSCRIPTION, f"?model={MINI}", "invalid_model"),
    ],
)
async def test_a_model_that_cannot_be_had_is_refused_after_the_upgrade(
    sandbox: RunningSandbox, bound: dict[str, object] | None, query: str, code: str
) -> None:
    credential = (await sandbox.mint(bound))["value"] if bound else API_KEY

    async with sandbox.connected(credential=credential, query=query) as connection:
        refused = await connection.receive()
        end = await connection.closed()

    assert refused["error"]["code"] == code
    assert end == (4000, f"invalid_request_error.{code}")


@pytest.mark.parametrize(
    ("bound", "query", "kind"),
    [
        (None, f"?model={MINI}", "realtime"),
        (None, "?intent=transcription", "transcription"),
        ({"type": "realtime", "model": MINI}, f"?model={MINI}", "realtime"),
        ({"type": "realtime"}, f"?model={MINI}", "realtime"),
        (TRANSCRIPTION, "", "transcription"),
        (TRANSCRIPTION, "?intent=transcription", "transcription"),
    ],
)
async def test_credential_and_address_say_which_session_it_is(
    sandbox: RunningSandbox, bound: dict[str, object] | None, query: str, kind: str
) -> None:
    credential = (await sandbox.mint(bound))["value"] if bound else API_KEY

    async with sandbox.connected(credential=credential, query=query) as connection:
        created = await connection.receive()

    assert created["session"]["type"] == kind
    assert created["session"].get("model") == (MINI if kind == "realtime" else None)


@pytest.mark.parametrize(
    ("headers", "subprotocols"),
    [
        ({"OpenAI-Beta": "realtime=v1"}, []),
        ({}, ["realtime", "openai-beta.realtime-v1"]),
    ],
)
async def test_a_client_of_the_beta_is_refused(
    sandbox: RunningSandbox, headers: dict[str, str], subprotocols: list[str]
) -> None:
    async with sandbox.connected(
        credential=API_KEY, query=f"?model={MINI}", headers=headers, subprotocols=subprotocols
    ) as connection:
        refused = await connection.receive()
        end = await connection.closed()

    assert refused["error"]["code"] == "beta_api_shape_disabled"
    assert end == (4000, "invalid_request_error.beta_api_shape_disabled")


async def test_a_call_that_is_not_there_is_refused_at_the_handshake(
    sandbox: RunningSandbox,
) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with sandbox.connected(credential=API_KEY, query="?call_id=rtc_1"):
            pass

    assert refused.value.response.status_code == 404


async def test_there_is_a_bound_to_open_connections(sandbox: RunningSandbox) -> None:
    async with contextlib.AsyncExitStack() as held:
        for _ in range(MOST_CONNECTIONS):
            await held.enter_async_context(sandbox.session())
        async with sandbox.connected(credential=API_KEY, query=f"?model={MINI}") as one_more:
            refused = await one_more.receive()

    assert refused["error"]["code"] == "server_is_overloaded"

    async with sandbox.session() as session:
        await session.say("there is room again")
