"""What the sandbox refuses in a session, and how a session is updated."""

import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.sandbox_client import RunningSandbox, running_sandbox

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox() -> AsyncIterator[RunningSandbox]:
    async with running_sandbox() as running:
        yield running


UNKNOWN, MISSING, VALUE = "unknown_parameter", "missing_required_parameter", "invalid_value"


def message(role: str, **part: object) -> dict[str, object]:
    return {"item": {"type": "message", "role": role, "content": [part]}}


@pytest.mark.parametrize(
    ("kind", "members", "param", "code"),
    [
        ("nope", {}, "type", VALUE),
        ("session.close", {}, "type", VALUE),
        ("transcription_session.update", {}, "type", VALUE),
        ("response.create", {"respnse": {}}, "respnse", UNKNOWN),
        ("response.create", {"response": {"modalities": []}}, "response.modalities", UNKNOWN),
        ("response.create", {"response": {"temperature": 1}}, "response.temperature", UNKNOWN),
        (
            "response.create",
            {"response": {"output_modalities": ["text", "audio"]}},
            "response.output_modalities",
            VALUE,
        ),
        (
            "response.create",
            {"response": {"metadata": {str(n): "a" for n in range(17)}}},
            "response.metadata",
            "object_above_max_properties",
        ),
        ("response.create", {"response": []}, "response", "invalid_type"),
        ("response.create", {"event_id": 1}, "event_id", "invalid_type"),
        ("response.create", {"event_id": "a" * 513}, "event_id", "string_above_max_length"),
        ("session.update", {}, "session", MISSING),
        ("session.update", {"session": {}}, "session.type", MISSING),
        ("conversation.item.create", {}, "item", MISSING),
        ("conversation.item.create", {"item": {"type": "note"}}, "item.type", VALUE),
        ("conversation.item.create", message("narrator"), "item.role", VALUE),
        (
            "conversation.item.create",
            message("assistant", type="text", text="beta"),
            "item.content[0].type",
            VALUE,
        ),
        (
            "conversation.item.create",
            message("user", type="input_text"),
            "item.content[0].text",
            MISSING,
        ),
        (
            "conversation.item.create",
            {**message("system"), "previous_item_id": "nobody"},
            "item.content[0].type",
            MISSING,
        ),
        (
            "conversation.item.create",
            {
                "item": {"type": "message", "role": "system", "content": []},
                "previous_item_id": "nobody",
            },
            "previous_item_id",
            "item_not_found",
        ),
        ("conversation.item.delete", {"item_id": "nobody"}, "item_id", "item_not_found"),
        ("input_audio_buffer.append", {}, "audio", MISSING),
        ("input_audio_buffer.append", {"audio": "not base64!"}, "audio", VALUE),
        ("input_audio_buffer.append", {"audio": "ünïcödé"}, "audio", VALUE),
    ],
)
async def test_an_event_that_openai_would_refuse_is_refused_and_the_session_goes_on(
    sandbox: RunningSandbox, kind: str, members: dict[str, object], param: str, code: str
) -> None:
    async with sandbox.session() as session:
        error = await session.refused(kind, **members)
        await session.say("still here")

    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)


async def test_an_error_names_the_event_it_is_about(sandbox: RunningSandbox) -> None:
    async with sandbox.session() as session:
        named = await session.refused("response.cancel", event_id="mine")
        misshapen = await session.refused("response.cancel", event_id=7)
        unnamed = await session.refused("response.cancel")

    assert [error["event_id"] for error in (named, misshapen, unnamed)] == ["mine", None, None]


async def test_an_unknown_event_is_told_which_ones_there_are(sandbox: RunningSandbox) -> None:
    async with sandbox.session() as session:
        error = await session.refused("nope")

    assert error["message"] == (
        "Invalid value: 'nope'. Supported values are: 'session.update', 'session.close',"
        " 'input_audio_buffer.append', 'session.input_audio_buffer.append',"
        " 'input_audio_buffer.commit', 'input_audio_buffer.clear', 'conversation.item.create',"
        " 'conversation.item.truncate', 'conversation.item.delete', 'conversation.item.retrieve',"
        " 'response.create', and 'response.cancel'."
    )


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ("{", "invalid_json"),
        ("", "invalid_json"),
        ('{"type": NaN}', "invalid_json"),
        ("[" * 100_000, "invalid_json"),
        ("9" * 5_000, "invalid_json"),
        ('{"type":' * 900 + "1" + "}" * 900, "invalid_json"),
        ("[]", "invalid_event"),
        ("{}", "invalid_event"),
        ('{"type": 1}', "invalid_event"),
        (b'{"type": "response.create"}', "invalid_event"),
    ],
)
async def test_a_frame_that_holds_no_event_is_refused_and_the_session_goes_on(
    sandbox: RunningSandbox, frame: str | bytes, code: str
) -> None:
    async with sandbox.session() as session:
        await session.websocket.send(frame)
        refused = await session.receive()
        await session.say("still here")

    assert refused["error"]["code"] == code


async def test_half_a_surrogate_pair_does_no_harm(sandbox: RunningSandbox) -> None:
    async with sandbox.session() as session:
        await session.send(
            "conversation.item.create", **message("user", type="input_text", text="\ud800")
        )
        added = json.loads(await session.websocket.recv())

    assert added["item"]["content"][0]["text"] == "\ud800"


async def test_an_update_changes_what_it_names_and_nothing_else(sandbox: RunningSandbox) -> None:
    async with sandbox.session() as session:
        await session.send(
            "session.update",
            session={
                "type": "realtime",
                "instructions": "Rhyme.",
                "audio": {
                    "input": {
                        "transcription": {"model": "whisper-1", "language": "de"},
                        "noise_reduction": {"type": "near_field", "strength": 0.5},
                        "turn_detection": {"type": "server_vad", "silence_duration_ms": 700},
                    },
                    "output": {"voice": "marin"},
                },
            },
        )
        first = (await session.next("session.updated"))["session"]
        await session.send(
            "session.update",
            session={
                "type": "realtime",
                "instructions": "",
                "audio": {
                    "input": {
                        "transcription": {"prompt": "names"},
                        "noise_reduction": {"type": "far_field"},
                        "turn_detection": {"type": "server_vad", "threshold": 0.7},
                    }
                },
            },
        )
        second = (await session.next("session.updated"))["session"]

    assert first["instructions"] == "Rhyme."
    assert second["instructions"] == ""
    audio = second["audio"]
    assert audio["output"]["voice"] == "marin"
    assert audio["input"]["transcription"] == {
        "model": "whisper-1",
        "language": "de",
        "prompt": "names",
    }
    assert audio["input"]["noise_reduction"] == {"type": "far_field", "strength": 0.5}
    assert audio["input"]["turn_detection"]["silence_duration_ms"] == 700
    assert audio["input"]["turn_detection"]["threshold"] == 0.7
    assert second["id"] == first["id"]
    assert second["expires_at"] == first["expires_at"]


async def test_turn_detection_of_another_kind_starts_from_its_own_defaults(
    sandbox: RunningSandbox,
) -> None:
    detection = {"turn_detection": {"type": "semantic_vad"}}
    semantic = {"type": "realtime", "audio": {"input": detection}}
    async with sandbox.session() as session:
        await session.send("session.update", session=semantic)
        updated = await session.next("session.updated")

    assert updated["session"]["audio"]["input"]["turn_detection"] == {
        "type": "semantic_vad",
        "eagerness": "auto",
        "create_response": True,
        "interrupt_response": True,
    }


@pytest.mark.parametrize(
    ("members", "param", "code"),
    [
        ({"bogus": 1}, "session.bogus", UNKNOWN),
        ({"modalities": ["text"]}, "session.modalities", UNKNOWN),
        ({"model": "gpt-realtime"}, "session.model", VALUE),
        (
            {"audio": {"input": {"format": {"type": "audio/pcm", "rate": 16000}}}},
            "session.audio.input.format.rate",
            "integer_below_min_value",
        ),
        (
            {"audio": {"input": {"transcription": {"language": "de"}}}},
            "session.audio.input.transcription.model",
            MISSING,
        ),
        (
            {"audio": {"input": {"transcription": {"model": "gpt-live-transcribe"}}}},
            "session.audio.input.turn_detection",
            VALUE,
        ),
    ],
)
async def test_a_refused_update_changes_nothing_at_all(
    sandbox: RunningSandbox, members: dict[str, object], param: str, code: str
) -> None:
    async with sandbox.session() as session:
        refused = {"type": "realtime", "instructions": "Rhyme.", **members}
        error = await session.refused("session.update", session=refused)
        await session.send("session.update", session={"type": "realtime"})
        updated = await session.receive()

    assert (error["param"], error["code"]) == (param, code)
    assert updated["session"]["instructions"] != "Rhyme."


async def test_there_is_a_bound_to_the_size_of_a_session(sandbox: RunningSandbox) -> None:
    async with sandbox.session() as session:
        error = await session.refused(
            "session.update", session={"type": "realtime", "instructions": "x" * 1_000_000}
        )

    assert (error["param"], error["code"]) == ("session", "string_above_max_length")


async def test_the_model_may_be_named_again(sandbox: RunningSandbox) -> None:
    async with sandbox.session() as session:
        await session.send("session.update", session={"type": "realtime"})
        model = (await session.receive())["session"]["model"]
        await session.send("session.update", session={"type": "realtime", "model": model})
        updated = await session.receive()

    assert updated["type"] == "session.updated"


@pytest.mark.parametrize("kind", ["realtime", "transcription"])
async def test_a_session_cannot_become_one_of_another_type(
    sandbox: RunningSandbox, kind: str
) -> None:
    other = "transcription" if kind == "realtime" else "realtime"
    async with sandbox.session({"type": kind}) as session:
        error = await session.refused("session.update", session={"type": other})

    assert error["code"] is None
    assert error["message"] == (
        f"Passing a {other} session update event to a {kind} session is not allowed."
    )


async def test_the_voice_is_fixed_once_it_was_heard(sandbox: RunningSandbox) -> None:
    marin = {"type": "realtime", "audio": {"output": {"voice": "marin"}}}
    cedar = {"type": "realtime", "audio": {"output": {"voice": "cedar"}}}
    async with sandbox.session(marin) as session:
        await session.ask("quietly", output_modalities=["text"])
        await session.send("session.update", session=cedar)
        changed = await session.receive()
        await session.ask("aloud")
        error = await session.refused("session.update", session=marin)
        await session.send("session.update", session=cedar)
        same = await session.receive()

    assert changed["session"]["audio"]["output"]["voice"] == "cedar"
    assert error["code"] == "cannot_update_voice"
    assert same["type"] == "session.updated"


async def test_tracing_stays_as_it_is_once_it_is_on(sandbox: RunningSandbox) -> None:
    async with sandbox.session({"type": "realtime", "tracing": "auto"}) as session:
        error = await session.refused(
            "session.update", session={"type": "realtime", "tracing": None}
        )
        await session.send("session.update", session={"type": "realtime", "tracing": "auto"})
        same = await session.receive()

    assert error["param"] == "session.tracing"
    assert same["session"]["tracing"] == "auto"
