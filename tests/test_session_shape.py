"""What OpenAI takes as a session, and what it says about the rest."""

import math
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.realtime.realtime_session_create_request import RealtimeSessionCreateRequest

from app.minting.session_shape import conflicts, faults
from app.sandbox.session import in_force, shown_as

Json = dict[str, object]

SERVER_VAD = {
    "type": "server_vad",
    "threshold": 0.5,
    "prefix_padding_ms": 300,
    "silence_duration_ms": 200,
    "idle_timeout_ms": 5000,
    "create_response": True,
    "interrupt_response": False,
}
MCP_TOOL = {
    "type": "mcp",
    "server_label": "docs",
    "server_url": "https://mcp.example.com",
    "headers": {"X-Team": "a"},
    "allowed_tools": {"tool_names": ["search"], "read_only": True},
    "allowed_callers": ["direct"],
    "require_approval": {"never": {"tool_names": ["search"]}},
    "defer_loading": False,
}


def realtime(**members: object) -> Json:
    return {"type": "realtime", **members}


def listening(**members: object) -> Json:
    return realtime(audio={"input": members})


def speaking(**members: object) -> Json:
    return realtime(audio={"output": members})


def transcribing(transcription: Json, **members: object) -> Json:
    audio_input = {"transcription": transcription, **members}
    return {"type": "transcription", "audio": {"input": audio_input}}


EVERYTHING = realtime(
    model="gpt-realtime-2.1-mini",
    instructions="Be kind.",
    output_modalities=["audio"],
    audio={
        "input": {
            "format": {"type": "audio/pcm", "rate": 24000},
            "transcription": {"model": "whisper-1", "language": "en", "prompt": "cities"},
            "noise_reduction": {"type": "near_field", "strength": 0.5},
            "turn_detection": SERVER_VAD,
        },
        "output": {"format": {"type": "audio/pcmu"}, "voice": "marin", "speed": 1.5},
    },
    include=["item.input_audio_transcription.logprobs"],
    tools=[
        {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}},
        MCP_TOOL,
    ],
    tool_choice={"type": "function", "name": "f"},
    parallel_tool_calls=True,
    reasoning={"effort": "low"},
    max_output_tokens=4096,
    truncation={
        "type": "retention_ratio",
        "retention_ratio": 0.8,
        "token_limits": {"post_instructions": 0},
    },
    tracing={"workflow_name": "w", "group_id": "g", "metadata": {"a": 1}},
    prompt={"id": "pmpt_1", "version": None, "variables": {"city": "Paris"}},
)


@pytest.mark.parametrize(
    "session",
    [
        realtime(),
        EVERYTHING,
        realtime(max_output_tokens="inf", truncation="disabled", tool_choice="required"),
        realtime(tracing=None, prompt=None, tools=[], instructions=""),
        realtime(tracing="auto", tool_choice={"type": "mcp", "server_label": "a", "name": None}),
        realtime(tools=[{**MCP_TOOL, "headers": None, "allowed_tools": None}]),
        listening(transcription=None, noise_reduction=None, turn_detection=None),
        listening(turn_detection={"type": "server_vad", "idle_timeout_ms": None}),
        listening(turn_detection={"type": "semantic_vad", "eagerness": "low"}),
        listening(transcription={"model": "one-we-have-never-heard-of"}),
        listening(format={"type": "audio/pcm"}),
        speaking(voice={"id": "voice_1"}),
        {"type": "transcription"},
        transcribing({"model": "gpt-4o-mini-transcribe"}, turn_detection=SERVER_VAD),
        transcribing(
            {
                "model": "gpt-live-transcribe",
                "languages": ["en"],
                "keywords": ["a"],
                "delay": "low",
            },
            turn_detection=None,
        ),
        transcribing({"model": "gpt-transcribe", "languages": ["en", "de"]}),
    ],
)
def test_a_session_that_openai_takes_has_no_faults(session: Json) -> None:
    assert faults(session) == []


def test_the_official_sdk_knows_the_same_members_as_we_do() -> None:
    read = RealtimeSessionCreateRequest.model_validate(EVERYTHING)

    assert set(EVERYTHING) == set(RealtimeSessionCreateRequest.model_fields)
    assert read.to_dict() == EVERYTHING


UNKNOWN, MISSING, VALUE = "unknown_parameter", "missing_required_parameter", "invalid_value"
TYPE, BELOW, ABOVE = "invalid_type", "integer_below_min_value", "integer_above_max_value"

IN = "session.audio.input"
OUT = "session.audio.output"


@pytest.mark.parametrize(
    ("session", "param", "code"),
    [
        ({}, "session.type", MISSING),
        ({"type": "translation"}, "session.type", VALUE),
        ({"type": 1}, "session.type", TYPE),
        (realtime(model=None), "session.model", TYPE),
        (realtime(instructions=["a"]), "session.instructions", TYPE),
        (realtime(output_modalities=["audio", "text"]), "session.output_modalities", VALUE),
        (realtime(output_modalities=[]), "session.output_modalities", VALUE),
        (realtime(output_modalities=["video"]), "session.output_modalities[0]", VALUE),
        (realtime(audio=None), "session.audio", TYPE),
        (realtime(audio={"inputs": {}}), "session.audio.inputs", UNKNOWN),
        (listening(format="pcm16"), f"{IN}.format", TYPE),
        (listening(format={"type": "pcm16"}), f"{IN}.format.type", VALUE),
        (listening(format={"rate": 24000}), f"{IN}.format.type", MISSING),
        (listening(format={"type": "audio/pcm", "rate": 16000}), f"{IN}.format.rate", BELOW),
        (listening(format={"type": "audio/pcm", "rate": 48000}), f"{IN}.format.rate", ABOVE),
        (listening(format={"type": "audio/pcmu", "rate": 8000}), f"{IN}.format.rate", UNKNOWN),
        (listening(transcription={}), f"{IN}.transcription.model", MISSING),
        (listening(noise_reduction={"type": "x"}), f"{IN}.noise_reduction.type", VALUE),
        (listening(turn_detection={}), f"{IN}.turn_detection.type", MISSING),
        (listening(turn_detection={"type": "none"}), f"{IN}.turn_detection.type", VALUE),
        (speaking(voice="nova"), f"{OUT}.voice", VALUE),
        (speaking(voice=1), f"{OUT}.voice", TYPE),
        (speaking(voice={}), f"{OUT}.voice.id", MISSING),
        (speaking(speed=0.2), f"{OUT}.speed", "decimal_below_min_value"),
        (speaking(speed=2), f"{OUT}.speed", "decimal_above_max_value"),
        (speaking(speed=True), f"{OUT}.speed", TYPE),
        (speaking(speed=math.nan), f"{OUT}.speed", TYPE),
        (realtime(include=["logprobs"]), "session.include[0]", VALUE),
        (realtime(tools={}), "session.tools", TYPE),
        (realtime(tools=[{"name": "f"}]), "session.tools[0].type", MISSING),
        (realtime(tools=[{"type": "function"}]), "session.tools[0].name", MISSING),
        (
            realtime(tools=[{"type": "function", "name": "a b"}]),
            "session.tools[0].name",
            VALUE,
        ),
        (
            realtime(tools=[{"type": "function", "name": "f", "strict": True}]),
            "session.tools[0].strict",
            UNKNOWN,
        ),
        (
            realtime(tools=[{"type": "mcp", "server_label": "a"}]),
            "session.tools[0].server_url",
            MISSING,
        ),
        (
            realtime(tools=[{**MCP_TOOL, "connector_id": "connector_gmail"}]),
            "session.tools[0].connector_id",
            VALUE,
        ),
        (
            realtime(tools=[{"type": "mcp", "server_label": "a", "tunnel_id": "tunnel_1"}]),
            "session.tools[0].tunnel_id",
            VALUE,
        ),
        (realtime(tool_choice="f"), "session.tool_choice", VALUE),
        (realtime(tool_choice={"type": "function"}), "session.tool_choice.name", MISSING),
        (realtime(reasoning={"effort": "extreme"}), "session.reasoning.effort", VALUE),
        (realtime(max_output_tokens=0), "session.max_output_tokens", BELOW),
        (realtime(max_output_tokens=4097), "session.max_output_tokens", ABOVE),
        (realtime(max_output_tokens="many"), "session.max_output_tokens", VALUE),
        (realtime(max_output_tokens=1.5), "session.max_output_tokens", TYPE),
        (realtime(truncation={"type": "auto"}), "session.truncation.type", VALUE),
        (realtime(tracing="on"), "session.tracing", VALUE),
        (realtime(prompt={}), "session.prompt.id", MISSING),
        (realtime(instructions=date(2026, 11, 20)), "session.instructions", TYPE),
    ],
)
def test_a_session_that_openai_refuses_has_one_fault_that_says_where_and_why(
    session: Json, param: str, code: str
) -> None:
    found = faults(session)

    assert [(fault.param, fault.code) for fault in found] == [(param, code)]


@pytest.mark.parametrize(
    "member",
    [
        "temperature",
        "modalities",
        "voice",
        "speed",
        "input_audio_format",
        "output_audio_format",
        "input_audio_transcription",
        "input_audio_noise_reduction",
        "turn_detection",
        "max_response_output_tokens",
        "client_secret",
    ],
)
def test_members_of_the_beta_are_unknown(member: str) -> None:
    [fault] = faults(realtime(**{member: None}))

    assert (fault.param, fault.code) == (f"session.{member}", UNKNOWN)
    assert fault.message == f"Unknown parameter: 'session.{member}'."


@pytest.mark.parametrize(
    ("transcription", "member"),
    [
        ({"model": "gpt-4o-mini-transcribe", "languages": ["en"]}, "languages"),
        ({"model": "whisper-1", "keywords": ["a"]}, "keywords"),
        ({"model": "gpt-transcribe", "languages": []}, "languages"),
        ({"model": "gpt-transcribe", "language": "en", "languages": ["en"]}, "languages"),
        ({"model": "gpt-transcribe", "keywords": ["a<b"]}, "keywords[0]"),
        ({"model": "gpt-4o-mini-transcribe", "language": "english"}, "language"),
        ({"model": "gpt-4o-transcribe-diarize", "prompt": "a"}, "prompt"),
        ({"model": "gpt-4o-mini-transcribe", "delay": "low"}, "delay"),
    ],
)
def test_a_transcription_model_takes_only_what_it_knows(transcription: Json, member: str) -> None:
    assert [fault.param for fault in faults(transcribing(transcription))] == [
        f"{IN}.transcription.{member}"
    ]


def test_a_transcription_session_takes_no_model_of_its_own() -> None:
    [fault] = faults({"type": "transcription", "model": "gpt-4o-mini-transcribe"})

    assert fault.param == "session.model"
    assert fault.message == "You must not provide a model parameter for transcription sessions."


def test_a_transcription_session_takes_nothing_that_belongs_to_answers() -> None:
    session = {"type": "transcription", "instructions": "a", "audio": {"output": {}}}

    assert {fault.param for fault in faults(session)} == {"session.instructions", OUT}


@pytest.mark.parametrize(
    ("session", "refused"),
    [
        (transcribing({"model": "gpt-live-transcribe"}, turn_detection=SERVER_VAD), True),
        (transcribing({"model": "gpt-live-transcribe"}), True),  # it would be on by default
        (transcribing({"model": "gpt-live-transcribe"}, turn_detection=None), False),
        (transcribing({"model": "gpt-realtime-whisper"}), True),
        (transcribing({"model": "gpt-transcribe"}), False),
        (listening(transcription={"model": "gpt-transcribe"}), True),
        (listening(transcription={"model": "gpt-transcribe"}, turn_detection=None), False),
        (listening(transcription={"model": "gpt-4o-mini-transcribe"}), False),
    ],
)
def test_some_transcription_models_want_turn_detection_off(session: Json, *, refused: bool) -> None:
    found = [(fault.param, fault.message) for fault in faults(session)]

    message = "Turn detection is not supported for this transcription model."
    assert found == ([(f"{IN}.turn_detection", message)] if refused else [])


def test_an_update_needs_nothing_but_its_type() -> None:
    update = transcribing({"model": "gpt-live-transcribe"})

    assert faults(update, partial=True) == []
    assert faults(listening(transcription={"language": "de"}), partial=True) == []
    assert [fault.code for fault in faults({}, partial=True)] == [MISSING]


def test_every_fault_is_found_and_named_from_where_the_session_stands() -> None:
    session = realtime(temperature=1, audio={"output": {"speed": 9}}, output_modalities=[])

    assert [fault.param for fault in faults(session, at="profiles.coach.session")] == [
        "profiles.coach.session.temperature",
        "profiles.coach.session.audio.output.speed",
        "profiles.coach.session.output_modalities",
    ]


@pytest.mark.parametrize(
    ("session", "message"),
    [
        (
            speaking(format={"type": "pcm16"}),
            (
                "Invalid value: 'pcm16'."
                " Supported values are: 'audio/pcm', 'audio/pcmu', and 'audio/pcma'."
            ),
        ),
        ({}, "Missing required parameter: 'session.type'."),
        (
            {"type": "a"},
            "Invalid value: 'a'. Supported values are: 'realtime' and 'transcription'.",
        ),
        (realtime(tracing="a"), "Invalid value: 'a'. Supported values are: 'auto'."),
        (
            realtime(tools="a"),
            "Invalid type for 'session.tools': expected an array, but got a string instead.",
        ),
        (
            realtime(max_output_tokens=5000),
            (
                "Invalid 'session.max_output_tokens': integer above maximum value."
                " Expected a value <= 4096, but got 5000 instead."
            ),
        ),
    ],
)
def test_messages_are_worded_as_openai_words_them(session: Json, message: str) -> None:
    assert [fault.message for fault in faults(session)] == [message]


def test_a_huge_value_is_not_repeated_in_full() -> None:
    found = faults(realtime(tool_choice="x" * 10_000, **{"y" * 10_000: 1}))

    assert len(found) == 2
    assert all(len(fault.message) < 300 for fault in found)


def test_a_session_as_openai_echoes_it_has_no_conflicts() -> None:
    echo = shown_as(in_force(EVERYTHING), session_id="sess_1", expires_at=0)

    assert list(conflicts(echo)) == []


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(member=st.sampled_from(sorted(EVERYTHING)), value=JSON_VALUES)
def test_nothing_that_json_can_hold_breaks_the_check(member: str, value: object) -> None:
    for fault in faults({**EVERYTHING, member: value}):
        assert fault.param.startswith("session.")
        assert fault.code
        assert fault.message


@given(
    audio_input=st.dictionaries(
        st.sampled_from(["format", "transcription", "turn_detection"]), JSON_VALUES
    )
)
def test_nothing_that_json_can_hold_breaks_the_rules_between_members(audio_input: Json) -> None:
    assert all(fault.param.startswith(IN) for fault in faults(listening(**audio_input)))
