"""Turns in a session of the sandbox: what is said, heard, interrupted and edited."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.sandbox_client import (
    MINI,
    Event,
    RunningSandbox,
    Session,
    kinds,
    running_sandbox,
    silence,
    tone,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXT_ANSWER = [
    "response.created",
    "response.output_item.added",
    "conversation.item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "conversation.item.done",
    "response.output_item.done",
    "response.done",
    "rate_limits.updated",
]
TRANSCRIBED = "conversation.item.input_audio_transcription"
BY_HAND = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}
WITH_TRANSCRIPTION = {
    "type": "realtime",
    "audio": {"input": {"transcription": {"model": "gpt-4o-mini-transcribe"}}},
}
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "unit": {"enum": ["celsius", "kelvin"]}},
    },
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox() -> AsyncIterator[RunningSandbox]:
    async with running_sandbox() as running:
        yield running


def of_kind(events: list[Event], kind: str) -> list[Event]:
    return [event for event in events if event["type"] == kind]


async def test_a_text_turn_has_the_events_of_the_real_service_in_their_order(
    sandbox: RunningSandbox,
) -> None:
    async with sandbox.session() as session:
        await session.say("good morning")
        await session.send("response.create", response={"output_modalities": ["text"]})
        events = await session.until("rate_limits.updated")

    assert kinds(events) == TEXT_ANSWER
    deltas = of_kind(events, "response.output_text.delta")
    done = events[-2]["response"]
    assert "good morning" in "".join(delta["delta"] for delta in deltas)
    assert all(delta["obfuscation"] for delta in deltas)
    assert done["status"] == "completed"
    assert done["output"][0]["content"] == [
        {"type": "output_text", "text": "".join(delta["delta"] for delta in deltas)}
    ]
    usage = done["usage"]
    assert usage["output_token_details"] == {"text_tokens": len(deltas), "audio_tokens": 0}
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


async def test_the_same_conversation_gets_the_same_answer(sandbox: RunningSandbox) -> None:
    async with sandbox.session() as session:
        first = await session.ask("again", conversation="none")
        second = await session.ask("again", conversation="none")

    def sounds(events: list[Event]) -> list[str]:
        return [event["delta"] for event in of_kind(events, "response.output_audio.delta")]

    assert sounds(first) == sounds(second) != []


async def test_an_answer_in_audio_comes_with_its_transcript(sandbox: RunningSandbox) -> None:
    async with sandbox.session() as session:
        events = await session.ask("hello")

    named = [event["type"] for event in events]
    done = events[-2]["response"]
    sound = b"".join(
        base64.b64decode(event["delta"]) for event in of_kind(events, "response.output_audio.delta")
    )
    spoken_ms = len(sound) / 48
    assert named.index("response.output_audio.done") < named.index(
        "response.output_audio_transcript.done"
    )
    assert (
        "".join(
            event["delta"] for event in of_kind(events, "response.output_audio_transcript.delta")
        )
        == done["output"][0]["content"][0]["transcript"]
    )
    assert done["usage"]["output_token_details"]["audio_tokens"] == spoken_ms / 50
    assert max(sound) > 0


@pytest.mark.parametrize(
    ("output", "bytes_per_word"),
    [
        ({}, 14_400),
        ({"speed": 0.5}, 28_800),
        ({"format": {"type": "audio/pcmu"}}, 2_400),
        ({"format": {"type": "audio/pcma"}}, 2_400),
        ({"voice": {"id": "voice_1"}}, 14_400),
    ],
)
async def test_sound_comes_in_the_format_and_speed_of_the_session(
    sandbox: RunningSandbox, output: dict[str, object], bytes_per_word: int
) -> None:
    async with sandbox.session({"type": "realtime", "audio": {"output": output}}) as session:
        events = await session.ask("hello")

    sound = of_kind(events, "response.output_audio.delta")[0]["delta"]
    assert len(base64.b64decode(sound)) == bytes_per_word


@pytest.mark.parametrize(
    "detection",
    [
        {"type": "server_vad"},
        {"type": "semantic_vad"},
        {"type": "semantic_vad", "eagerness": "low"},
        {"type": "server_vad", "silence_duration_ms": 500},
    ],
)
async def test_a_spoken_turn_is_found_transcribed_and_answered(
    sandbox: RunningSandbox, detection: dict[str, object]
) -> None:
    audio_input = {
        "turn_detection": detection,
        "transcription": {"model": "gpt-4o-mini-transcribe", "language": "en"},
    }
    async with sandbox.session({"type": "realtime", "audio": {"input": audio_input}}) as session:
        await session.hear(silence(500), tone(1000), silence(1300))
        events = await session.until("rate_limits.updated")
        while not of_kind(events, f"{TRANSCRIBED}.completed"):
            events.append(await session.receive())

    started, stopped, committed, item, same_item = events[:5]
    completed = of_kind(events, f"{TRANSCRIBED}.completed")[0]
    deltas = of_kind(events, f"{TRANSCRIBED}.delta")
    beside = [event for event in events if not event["type"].startswith(TRANSCRIBED)]
    assert kinds(beside)[:6] == [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        "response.created",
    ]
    assert started["audio_start_ms"] == 200  # 300 ms of padding before the tone
    assert 1500 < stopped["audio_end_ms"] <= 2800
    assert {started["item_id"], stopped["item_id"], committed["item_id"]} == {item["item"]["id"]}
    assert item["item"]["content"] == [{"type": "input_audio", "transcript": None}]
    assert same_item["item"] == item["item"]
    assert "".join(delta["delta"] for delta in deltas) == completed["transcript"]
    assert completed["usage"]["type"] == "tokens"
    assert (
        "seconds of speech"
        in of_kind(events, "response.done")[0]["response"]["output"][0]["content"][0]["transcript"]
    )


async def test_speech_is_found_however_the_audio_is_cut_into_events(
    sandbox: RunningSandbox,
) -> None:
    whole = silence(101) + tone(333) + silence(707)
    found = []
    for size in (len(whole), 4_801, 997):
        async with sandbox.session() as session:
            for start in range(0, len(whole), size):
                await session.hear(whole[start : start + size])
            events = await session.until("response.done")
            found.append((events[0]["audio_start_ms"], events[1]["audio_end_ms"]))

    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("kind", ["audio/pcmu", "audio/pcma"])
async def test_speech_is_found_in_telephone_audio(sandbox: RunningSandbox, kind: str) -> None:
    loud, quiet = (
        bytes([0x80, 0x00] * 4_000),
        bytes([0xFF if kind == "audio/pcmu" else 0xD5]) * 4_000,
    )
    audio = {"input": {"format": {"type": kind}}}
    async with sandbox.session({"type": "realtime", "audio": audio}) as session:
        await session.hear(quiet, loud, quiet)
        events = await session.until("response.created")

    assert events[0]["type"] == "input_audio_buffer.speech_started"
    assert events[1]["audio_end_ms"] == 1_500 + 200


async def test_silence_is_no_speech(sandbox: RunningSandbox) -> None:
    async with sandbox.session() as session:
        await session.hear(silence(2_000))
        await session.send("input_audio_buffer.clear")
        first = await session.receive()

    assert first["type"] == "input_audio_buffer.cleared"


async def test_without_turn_detection_the_client_commits_and_asks(sandbox: RunningSandbox) -> None:
    async with sandbox.session(BY_HAND) as session:
        await session.hear(tone(500), silence(500))
        await session.send("input_audio_buffer.commit")
        committing = await session.until("conversation.item.done")
        await session.send("response.create")
        answering = await session.until("response.done")

    assert kinds(committing) == [
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
    ]
    assert "1.0 seconds" in answering[-1]["response"]["output"][0]["content"][0]["transcript"]
    assert answering[-1]["response"]["usage"]["input_token_details"]["audio_tokens"] == 10


async def test_less_than_100_ms_cannot_be_committed(sandbox: RunningSandbox) -> None:
    async with sandbox.session(BY_HAND) as session:
        await session.hear(tone(80))
        error = await session.refused("input_audio_buffer.commit", event_id="mine")
        await session.hear(tone(20))
        await session.send("input_audio_buffer.commit")
        await session.next("conversation.item.done")
        after = await session.refused("input_audio_buffer.commit")

    assert error["code"] == "input_audio_buffer_commit_empty"
    assert error["event_id"] == "mine"
    assert after["message"] == (
        "Error committing input audio buffer: buffer too small. Expected at least 100ms of audio,"
        " but buffer only has 0.00ms of audio."
    )


async def test_turn_detection_may_leave_the_answer_to_the_client(sandbox: RunningSandbox) -> None:
    detection = {"type": "server_vad", "create_response": False}
    audio = {"input": {"turn_detection": detection}}
    async with sandbox.session({"type": "realtime", "audio": audio}) as session:
        await session.hear(tone(500), silence(500))
        await session.next("conversation.item.done")
        await session.send("input_audio_buffer.clear")
        following = await session.receive()

    assert following["type"] == "input_audio_buffer.cleared"


async def test_a_user_who_stays_silent_is_spoken_to(sandbox: RunningSandbox) -> None:
    detection = {"type": "server_vad", "idle_timeout_ms": 5_000}
    audio = {"input": {"turn_detection": detection}}
    async with sandbox.session({"type": "realtime", "audio": audio}) as session:
        await session.ask("hello")
        played_ms = 300 * 17
        await session.hear(silence(played_ms + 4_000))
        await session.hear(silence(2_000))
        events = await session.until("response.done")

    assert kinds(events)[:2] == [
        "input_audio_buffer.timeout_triggered",
        "input_audio_buffer.committed",
    ]
    assert events[0]["audio_end_ms"] - events[0]["audio_start_ms"] == 5_000


async def test_a_client_cancels_the_response(sandbox: RunningSandbox) -> None:
    async with sandbox.session(unhurried=True) as session:
        await session.say("tell me a story")
        await session.send("response.create")
        begun = await session.until("response.output_audio.delta")
        await session.send("response.cancel", response_id=begun[0]["response"]["id"])
        events = await session.until("response.done")

    said = of_kind(begun, "response.output_audio_transcript.delta")[0]["delta"]
    done = events[-1]["response"]
    assert done["status"] == "cancelled"
    assert done["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
    assert done["output"][0]["status"] == "incomplete"
    assert done["output"][0]["content"] == [{"type": "output_audio", "transcript": said}]
    assert kinds(events)[:2] == [
        "response.output_audio.done",
        "response.output_audio_transcript.done",
    ]


async def test_speech_interrupts_the_answer_and_is_answered_itself(
    sandbox: RunningSandbox,
) -> None:
    async with sandbox.session(unhurried=True) as session:
        await session.say("tell me a story")
        await session.send("response.create")
        await session.until("response.output_audio.delta")
        await session.hear(tone(500), silence(500))
        interrupted = await session.until("response.done")
        following = await session.until("response.output_audio.delta")

    assert interrupted[0]["type"] == "input_audio_buffer.speech_started"
    assert interrupted[-1]["response"]["status_details"]["reason"] == "turn_detected"
    assert "response.created" in kinds(following)


async def test_speech_does_not_interrupt_when_told_not_to(sandbox: RunningSandbox) -> None:
    detection = {"type": "server_vad", "interrupt_response": False}
    audio = {"input": {"turn_detection": detection}}
    async with sandbox.session({"type": "realtime", "audio": audio}, unhurried=True) as session:
        await session.say("tell me a story")
        await session.send("response.create")
        await session.until("response.output_audio.delta")
        await session.hear(tone(500), silence(500))
        events = await session.until("error")

    assert "response.done" not in kinds(events)
    assert events[-1]["error"]["code"] == "conversation_already_has_active_response"


async def test_there_is_one_response_at_a_time_in_a_conversation(sandbox: RunningSandbox) -> None:
    async with sandbox.session(unhurried=True) as session:
        await session.send("response.create")
        begun = await session.until("response.output_audio.delta")
        error = await session.refused("response.create")
        await session.send("response.create", response={"conversation": "none"})
        beside = await session.receive()

    assert error["code"] == "conversation_already_has_active_response"
    assert begun[0]["response"]["id"] in error["message"]
    assert beside["type"] == "response.created"
    assert beside["response"]["conversation_id"] is None


async def test_there_is_a_bound_to_responses_under_way(sandbox: RunningSandbox) -> None:
    async with sandbox.session(unhurried=True) as session:
        for _ in range(8):
            await session.send("response.create", response={"conversation": "none"})
            await session.until("response.output_audio.delta")
        error = await session.refused("response.create", response={"conversation": "none"})

    assert error["code"] == "rate_limit_exceeded"


async def test_a_client_that_hangs_up_in_the_middle_harms_nobody(sandbox: RunningSandbox) -> None:
    async with sandbox.session(unhurried=True) as session:
        await session.send("response.create")
        await session.until("response.output_audio.delta")

    async with sandbox.session() as another:
        assert await another.ask("hello")


async def test_nothing_can_be_cancelled_when_nothing_is_under_way(sandbox: RunningSandbox) -> None:
    async with sandbox.session() as session:
        await session.ask("hello")
        error = await session.refused("response.cancel")

    assert error["code"] == "response_cancel_not_active"
    assert error["message"] == "Cancellation failed: no active response found"


async def test_an_answer_out_of_band_stays_out_of_the_conversation(sandbox: RunningSandbox) -> None:
    said = [{"type": "input_text", "text": "classify me"}]
    given = [{"type": "message", "role": "user", "content": said}]
    async with sandbox.session() as session:
        await session.say("the conversation itself")
        await session.send(
            "response.create",
            response={
                "conversation": "none",
                "output_modalities": ["text"],
                "metadata": {"topic": "classification"},
                "input": given,
            },
        )
        events = await session.until("rate_limits.updated")
        answered = events[-2]["response"]
        error = await session.refused(
            "conversation.item.retrieve", item_id=answered["output"][0]["id"]
        )

    assert kinds(events) == [kind for kind in TEXT_ANSWER if not kind.startswith("conversation.")]
    assert answered["metadata"] == {"topic": "classification"}
    assert "classify me" in answered["output"][0]["content"][0]["text"]
    assert error["code"] == "item_not_found"


async def test_an_answer_may_refer_to_items_of_the_conversation(sandbox: RunningSandbox) -> None:
    async with sandbox.session() as session:
        await session.send(
            "conversation.item.create",
            item={
                "id": "item_mine",
                "type": "message",
                "role": "user",
                "content": [{"type": "input_text", "text": "the first thing"}],
            },
        )
        await session.until("conversation.item.done")
        await session.say("the second thing")
        chosen = [{"type": "item_reference", "id": "item_mine"}]
        await session.send("response.create", response={"conversation": "none", "input": chosen})
        answered = await session.next("response.done")
        missing = [{"type": "item_reference", "id": "item_other"}]
        await session.next("rate_limits.updated")
        error = await session.refused("response.create", response={"input": missing})

    said = answered["response"]["output"][0]["content"][0]["transcript"]
    assert "the first thing" in said
    assert (error["code"], error["param"]) == ("item_not_found", "response.input[0].id")


@pytest.mark.parametrize(("limit", "modalities"), [(3, ["text"]), (10, ["audio"])])
async def test_an_answer_ends_at_its_token_limit(
    sandbox: RunningSandbox, limit: int, modalities: list[str]
) -> None:
    async with sandbox.session() as session:
        events = await session.ask("hi", max_output_tokens=limit, output_modalities=modalities)

    done = events[-2]["response"]
    assert done["status"] == "incomplete"
    assert done["status_details"] == {"type": "incomplete", "reason": "max_output_tokens"}
    assert limit <= done["usage"]["output_tokens"] < limit + 7


@pytest.mark.parametrize(
    ("choice", "words", "called"),
    [
        ("required", "anything", True),
        ({"type": "function", "name": "get_weather"}, "anything", True),
        ("auto", "please use get_weather.", True),
        ("auto", "Get weather, please", True),
        ("auto", "what is the weather?", False),
        ("auto", "target weather", False),
        ("none", "please use get_weather.", False),
    ],
)
async def test_a_function_is_called_when_it_is_forced_or_named(
    sandbox: RunningSandbox, choice: object, words: str, *, called: bool
) -> None:
    tools = {"type": "realtime", "tools": [WEATHER], "tool_choice": choice}
    async with sandbox.session(tools) as session:
        events = await session.ask(words)

    item = events[-2]["response"]["output"][0]
    assert item["type"] == ("function_call" if called else "message")
    if called:
        assert kinds(events) == [
            "response.created",
            "response.output_item.added",
            "conversation.item.added",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.done",
            "conversation.item.done",
            "response.output_item.done",
            "response.done",
            "rate_limits.updated",
        ]
        assert json.loads(item["arguments"]) == {"city": "sandbox", "unit": "celsius"}


async def test_speech_names_no_function(sandbox: RunningSandbox) -> None:
    spoken_of = {**WEATHER, "name": "speech"}
    tools = {**WITH_TRANSCRIPTION, "tools": [spoken_of]}
    async with sandbox.session(tools) as session:
        await session.hear(tone(500), silence(500))
        await session.next(f"{TRANSCRIBED}.completed")
        await session.next("rate_limits.updated")
        await session.send("response.create")
        done = await session.next("response.done")

    assert done["response"]["output"][0]["type"] == "message"


async def test_a_function_call_can_be_cancelled_too(sandbox: RunningSandbox) -> None:
    tools = {"type": "realtime", "tools": [WEATHER], "tool_choice": "required"}
    async with sandbox.session(tools, unhurried=True) as session:
        await session.send("response.create")
        begun = await session.next("response.function_call_arguments.delta")
        await session.send("response.cancel")
        done = (await session.next("response.done"))["response"]

    assert done["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
    assert done["output"][0]["status"] == "incomplete"
    assert done["output"][0]["arguments"] == begun["delta"]


async def test_a_function_call_ends_at_the_token_limit(sandbox: RunningSandbox) -> None:
    tools = {"type": "realtime", "tools": [WEATHER], "tool_choice": "required"}
    async with sandbox.session({**tools, "max_output_tokens": 2}) as session:
        await session.send("response.create")
        done = (await session.next("response.done"))["response"]

    assert done["status_details"] == {"type": "incomplete", "reason": "max_output_tokens"}
    assert done["usage"]["output_tokens"] == 2


async def test_what_a_function_returned_is_answered_in_words(sandbox: RunningSandbox) -> None:
    tools = {"type": "realtime", "tools": [WEATHER], "tool_choice": "required"}
    async with sandbox.session(tools) as session:
        call = (await session.ask("go"))[-2]["response"]["output"][0]
        output = {"type": "function_call_output", "call_id": call["call_id"], "output": "rain"}
        await session.send("conversation.item.create", item=output)
        await session.next("conversation.item.done")
        await session.send("response.create")
        done = await session.next("response.done")

    assert "rain" in done["response"]["output"][0]["content"][0]["transcript"]


@pytest.mark.parametrize(
    ("model", "usage"),
    [("gpt-4o-transcribe", "tokens"), ("whisper-1", "duration"), ("gpt-transcribe", "duration")],
)
async def test_a_transcription_session_transcribes_and_never_answers(
    sandbox: RunningSandbox, model: str, usage: str
) -> None:
    listening = {
        "type": "transcription",
        "audio": {"input": {"transcription": {"model": model}}},
        "include": ["item.input_audio_transcription.logprobs"],
    }
    async with sandbox.session(listening) as session:
        await session.hear(tone(500), silence(500))
        heard = await session.until(f"{TRANSCRIBED}.completed")
        await session.hear(tone(500), silence(500))
        heard += await session.until(f"{TRANSCRIBED}.completed")
        error = await session.refused("response.create")

    assert not [kind for kind in kinds(heard) if kind.startswith(("response.", "rate_limits"))]
    assert heard[-1]["usage"]["type"] == usage
    assert ("logprobs" in heard[-1]) == (usage == "tokens")
    assert ("languages" in heard[-1]) == (model == "gpt-transcribe")
    assert error["code"] == "invalid_event"


async def test_a_model_that_wants_no_turn_detection_transcribes_what_is_committed(
    sandbox: RunningSandbox,
) -> None:
    audio_input = {"transcription": {"model": "gpt-live-transcribe"}, "turn_detection": None}
    listening = {"type": "transcription", "audio": {"input": audio_input}}
    async with sandbox.session(listening) as session:
        await session.hear(tone(1_200))
        await session.send("input_audio_buffer.commit")
        events = await session.until(f"{TRANSCRIBED}.completed")

    assert "1.2 seconds" in events[-1]["transcript"]


async def test_a_transcript_becomes_part_of_its_item(sandbox: RunningSandbox) -> None:
    async with sandbox.session(WITH_TRANSCRIPTION) as session:
        await session.hear(tone(500), silence(500))
        completed = await session.next(f"{TRANSCRIBED}.completed")
        await session.send("conversation.item.retrieve", item_id=completed["item_id"])
        retrieved = await session.next("conversation.item.retrieved")

    assert retrieved["item"]["content"][0]["transcript"] == completed["transcript"]


async def items_in_order(session: Session, names: list[str]) -> list[str | None]:
    """Add items at the end and return what the server says is before each."""
    before = []
    for name in names:
        item = {"id": name, "type": "message", "role": "system", "content": []}
        await session.send("conversation.item.create", item=item)
        before.append((await session.until("conversation.item.done"))[0]["previous_item_id"])
    return before


async def test_items_stand_where_the_client_puts_them(sandbox: RunningSandbox) -> None:
    async with sandbox.session() as session:
        before = await items_in_order(session, ["a", "b", "c"])
        item = {"id": "d", "type": "message", "role": "system", "content": []}
        await session.send("conversation.item.create", item=item, previous_item_id="a")
        inserted = (await session.until("conversation.item.done"))[0]
        first = {**item, "id": "e"}
        await session.send("conversation.item.create", item=first, previous_item_id="root")
        at_root = (await session.until("conversation.item.done"))[0]

    assert before == [None, "a", "b"]
    assert inserted["previous_item_id"] == "a"
    assert at_root["previous_item_id"] is None


async def test_a_deleted_item_no_longer_stands_before_the_next(sandbox: RunningSandbox) -> None:
    async with sandbox.session() as session:
        await items_in_order(session, ["a", "b"])
        await session.send("conversation.item.delete", item_id="b")
        deleted = await session.receive()
        before = await items_in_order(session, ["c"])
        error = await session.refused("conversation.item.delete", item_id="b")

    assert (deleted["type"], deleted["item_id"]) == ("conversation.item.deleted", "b")
    assert before == ["a"]
    assert (error["code"], error["param"]) == ("item_not_found", "item_id")


async def test_an_id_names_one_item_only(sandbox: RunningSandbox) -> None:
    async with sandbox.session() as session:
        await items_in_order(session, ["a"])
        item = {"id": "a", "type": "message", "role": "system", "content": []}
        error = await session.refused("conversation.item.create", item=item)

    assert error["code"] == "item_create_duplicate_item_id"
    assert error["message"] == "Error adding item: an item with id 'a' already exists."


async def test_an_answer_is_truncated_to_what_was_played(sandbox: RunningSandbox) -> None:
    async with sandbox.session() as session:
        answer = (await session.ask("hello"))[-2]["response"]["output"][0]["id"]
        place = {"item_id": answer, "content_index": 0}
        too_far = await session.refused("conversation.item.truncate", **place, audio_end_ms=600_000)
        await session.send("conversation.item.truncate", **place, audio_end_ms=900)
        truncated = await session.receive()
        await session.send("conversation.item.retrieve", item_id=answer)
        retrieved = await session.receive()

    assert too_far["code"] == "invalid_value"
    assert truncated["type"] == "conversation.item.truncated"
    assert truncated["audio_end_ms"] == 900
    assert retrieved["item"]["content"] == [{"type": "output_audio", "transcript": ""}]


async def test_only_what_the_assistant_said_can_be_truncated(sandbox: RunningSandbox) -> None:
    async with sandbox.session() as session:
        await items_in_order(session, ["a"])
        error = await session.refused(
            "conversation.item.truncate", item_id="a", content_index=0, audio_end_ms=0
        )

    assert (error["code"], error["param"]) == ("invalid_value", "item_id")


async def test_a_conversation_forgets_its_oldest_items_rather_than_grow_for_ever(
    sandbox: RunningSandbox,
) -> None:
    async with sandbox.session() as session:
        await items_in_order(session, ["first"])
        for _ in range(5):
            await session.say("x" * 900_000)
        error = await session.refused("conversation.item.retrieve", item_id="first")
        content = [{"type": "input_text", "text": "x" * 5_000_000}]
        item = {"type": "message", "role": "user", "content": content}
        too_large = await session.refused("conversation.item.create", item=item)

    assert error["code"] == "item_not_found"
    assert too_large["code"] == "string_above_max_length"


async def test_five_minutes_of_audio_fit_into_one_event_and_more_is_refused(
    sandbox: RunningSandbox,
) -> None:
    most = 15 * 1024 * 1024
    async with sandbox.session(BY_HAND) as session:
        await session.hear(bytes(most))
        await session.send("input_audio_buffer.commit")
        committed = (await session.until("conversation.item.done"))[0]
        await session.hear(bytes(most + 1))
        error = await session.receive()

    assert committed["type"] == "input_audio_buffer.committed"
    assert error["error"]["param"] == "audio"


async def test_sessions_do_not_hear_each_other(sandbox: RunningSandbox) -> None:
    async with sandbox.session() as one, sandbox.session() as other:
        answers = await asyncio.gather(one.ask("red"), other.ask("blue"))

    said = [str(events[-2]["response"]["output"]) for events in answers]
    assert "red" in said[0]
    assert "blue" in said[1]
    assert "blue" not in said[0]


async def test_the_answer_names_the_model_that_would_have_given_it(sandbox: RunningSandbox) -> None:
    async with sandbox.session() as session:
        events = await session.ask("hello", output_modalities=["text"])

    assert MINI in events[-2]["response"]["output"][0]["content"][0]["text"]
