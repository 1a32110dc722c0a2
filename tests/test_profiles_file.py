"""How profiles are read: from the settings alone, and from a TOML file with or without faults."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from app.minting.profiles import ProfilesFault, Wish
from tests.read_profiles import TODAY, from_toml, profiles, session


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "profiles.toml"


def faults_of(file: Path, text: str) -> list[str]:
    """Return the lines for what is wrong with *text*, without the name of the file."""
    with pytest.raises(ProfilesFault) as refusal:
        from_toml(file, text)
    assert all(line.startswith(f"{file}: ") for line in refusal.value.faults)
    return [line.removeprefix(f"{file}: ") for line in refusal.value.faults]


# ── the settings alone ───────────────────────────────────────────────────────────────────────────


def test_settings_alone_give_a_spoken_default_profile() -> None:
    read = profiles(
        openai_realtime_instructions="Be brief.",
        openai_realtime_max_tokens=512,
        client_secret_ttl_seconds=45,
    )

    planned = read.session_for("user", Wish(), today=TODAY)

    assert json.dumps(planned.session, indent=1) == json.dumps(
        {
            "type": "realtime",
            "model": "gpt-realtime-2.1-mini",
            "output_modalities": ["audio"],
            "instructions": "Be brief.",
            "audio": {
                "input": {
                    "transcription": {"model": "gpt-4o-mini-transcribe"},
                    "turn_detection": {"type": "semantic_vad"},
                },
                "output": {"voice": "marin"},
            },
            "max_output_tokens": 512,
        },
        indent=1,
    )
    assert (planned.profile, planned.ttl_seconds) == ("default", 45)
    assert (planned.model_asked, planned.model) == ("mini", "gpt-realtime-2.1-mini")
    assert planned.transcription_model == "gpt-4o-mini-transcribe"
    assert planned.language is None
    assert planned.transports == ("webrtc", "websocket")


def test_transcription_can_be_switched_off_by_setting() -> None:
    read = profiles(openai_realtime_transcription_model="none")

    assert "transcription" not in session(read)["audio"]["input"]
    assert read.for_role("user")[0].allow == ("voice",)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"openai_realtime_model": "gpt-live-1"}, "OPENAI_REALTIME_MODEL: gpt-live-1 belongs"),
        ({"openai_realtime_model": "gpt-realtime-3"}, "OPENAI_REALTIME_MODEL: gpt-realtime-3 is"),
        ({"openai_realtime_voice": "bob"}, "OPENAI_REALTIME_VOICE: Invalid value: 'bob'"),
        (
            {"openai_realtime_transcription_model": "gpt-live-transcribe"},
            "OPENAI_REALTIME_TRANSCRIPTION_MODEL: gpt-live-transcribe does not serve",
        ),
    ],
)
def test_a_fault_of_the_settings_names_the_setting(given: dict[str, Any], line: str) -> None:
    with pytest.raises(ProfilesFault) as refusal:
        profiles(**given)

    assert len(refusal.value.faults) == 1
    assert refusal.value.faults[0].startswith(line)


def test_a_file_adds_profiles_and_may_replace_the_default(file: Path) -> None:
    added = from_toml(file, '[profiles.quiet]\noutput_modalities = ["text"]')
    # What the settings say of a default that is replaced does not matter, not even if it is wrong.
    flagship = '[profiles.default]\nmodel = "flagship"'
    replaced = from_toml(file, flagship, openai_realtime_voice="bob")

    assert [profile.name for profile in added.for_role("user")] == ["default", "quiet"]
    assert [profile.name for profile in replaced.for_role("user")] == ["default"]
    assert session(replaced)["model"] == "gpt-realtime-2.1"
    assert "output" not in session(replaced)["audio"]


# ── from TOML to a session ───────────────────────────────────────────────────────────────────────


def test_short_names_and_the_session_table_become_one_session_in_order(file: Path) -> None:
    read = from_toml(
        file,
        """
        [profiles.full]
        tools = [{ type = "function", name = "look_up" }]
        voice = "voice_abc123"
        speed = 1.25
        max_output_tokens = "inf"
        instructions = "Hi"
        output_modalities = ["audio"]
        model = "flagship"
        turn_detection = { type = "server_vad", silence_duration_ms = 400 }
        transcription = { language = "de" }
        [profiles.full.session]
        truncation = { type = "retention_ratio", retention_ratio = 0.8 }
        reasoning.effort = "minimal"
        audio.input.format = { type = "audio/pcmu" }
        audio.output.format = { type = "audio/pcmu" }
        tool_choice = "none"
        """,
    )

    assert json.dumps(session(read, Wish("full")), indent=1) == json.dumps(
        {
            "type": "realtime",
            "model": "gpt-realtime-2.1",
            "output_modalities": ["audio"],
            "instructions": "Hi",
            "audio": {
                "input": {
                    "format": {"type": "audio/pcmu"},
                    "transcription": {"model": "gpt-4o-mini-transcribe", "language": "de"},
                    "turn_detection": {"type": "server_vad", "silence_duration_ms": 400},
                },
                "output": {
                    "format": {"type": "audio/pcmu"},
                    "voice": {"id": "voice_abc123"},
                    "speed": 1.25,
                },
            },
            "max_output_tokens": "inf",
            "tools": [{"type": "function", "name": "look_up"}],
            "tool_choice": "none",
            "reasoning": {"effort": "minimal"},
            "truncation": {"type": "retention_ratio", "retention_ratio": 0.8},
        },
        indent=1,
    )


def test_a_profile_that_says_nothing_binds_the_mini_model_and_a_transcription(file: Path) -> None:
    assert session(from_toml(file, "[profiles.bare]"), Wish("bare")) == {
        "type": "realtime",
        "model": "gpt-realtime-2.1-mini",
        "audio": {"input": {"transcription": {"model": "gpt-4o-mini-transcribe"}}},
    }


@pytest.mark.parametrize(
    "toml", ['turn_detection = "none"', 'session.audio.input.turn_detection = "none"']
)
def test_none_for_turn_detection_is_a_null_that_stays(file: Path, toml: str) -> None:
    sent = session(from_toml(file, f"[profiles.manual]\n{toml}"), Wish("manual"))

    assert sent["audio"]["input"]["turn_detection"] is None


def test_none_for_what_is_off_anyway_leaves_the_member_out(file: Path) -> None:
    read = from_toml(
        file,
        """
        [profiles.plain]
        transcription = "none"
        [profiles.plain.session]
        audio.input.noise_reduction = "none"
        tracing = "none"
        prompt = "none"
        tool_choice = "none"
        """,
    )

    assert session(read, Wish("plain")) == {
        "type": "realtime",
        "model": "gpt-realtime-2.1-mini",
        "tool_choice": "none",
    }


def test_a_transcription_session_names_its_model_in_the_transcription_only(file: Path) -> None:
    read = from_toml(
        file,
        """
        [profiles.captions]
        type = "transcription"
        turn_detection = "none"
        transcription = { model = "gpt-live-transcribe", languages = ["en", "de"] }
        allow = ["language"]
        """,
    )

    planned = read.session_for("user", Wish("captions"), today=TODAY)
    german = read.session_for("user", Wish("captions", language="de"), today=TODAY)

    assert planned.session == {
        "type": "transcription",
        "audio": {
            "input": {
                "transcription": {"model": "gpt-live-transcribe", "languages": ["en", "de"]},
                "turn_detection": None,
            }
        },
    }
    assert planned.model == planned.model_asked == planned.transcription_model
    assert german.session["audio"]["input"]["transcription"] == {
        "model": "gpt-live-transcribe",
        "language": "de",
    }


def test_only_the_transports_that_all_models_of_the_session_serve_are_named(file: Path) -> None:
    read = from_toml(
        file,
        """
        [profiles.manual]
        turn_detection = "none"
        transcription.model = "gpt-transcribe"
        """,
    )

    assert read.session_for("user", Wish("manual"), today=TODAY).transports == ("websocket",)


def test_an_unknown_model_is_sent_as_it_is_where_allowed(file: Path) -> None:
    toml = '[profiles.azure]\nmodel = "our-mini"\ntranscription.model = "our-whisper"'

    planned = from_toml(file, toml, allow_unknown_models=True).session_for(
        "user", Wish("azure"), today=TODAY
    )

    assert (planned.model, planned.transcription_model) == ("our-mini", "our-whisper")
    assert planned.transports == ("webrtc", "websocket")


# ── faults of a file ─────────────────────────────────────────────────────────────────────────────

MCP = 'type = "mcp"\nserver_label = "crm"\nserver_url = "https://crm.example.com"'


@pytest.mark.parametrize(
    ("toml", "line"),
    [
        ("profile.x = 1", "profile: stands outside of the profiles"),
        ("profiles = 1", "profiles: must be tables"),
        ("profiles.x = 1", "profiles.x: must be a table"),
        (
            "[profiles.Coach]",
            "profiles.Coach: cannot be the name of a profile; allowed: lower-case",
        ),
        (
            "[profiles.x]\nttl_second = 60",
            "ttl_second: is not a member .*; did you mean ttl_seconds?",
        ),
        ("[profiles.x]\nreasoning.effort = 'low'", "reasoning: is OpenAI's; .* session.reasoning"),
        ("[profiles.x]\nttl_seconds = 9", "ttl_seconds: must be greater than or equal to 10"),
        ("[profiles.x]\nttl_seconds = 7201", "ttl_seconds: must be less than or equal to 7200"),
        ("[profiles.x]\nttl_seconds = '60'", "ttl_seconds: must be a valid integer"),
        ("[profiles.x]\nallow = ['model']", "allow[0]: must be 'language' or 'voice'"),
        ("[profiles.x]\nallow = ['voice', 'voice']", "allow: names something twice"),
        ("[profiles.x]\nroles = []", "roles: List should have at least 1 item"),
        ("[profiles.x]\nroles = ['auditor']", "roles[0]: must be 'user' or 'admin'"),
        ("[profiles.x]\nvariables = ['a b']", "variables[0]: must be letters, digits"),
        ("[profiles.x]\nvariables = ['who']", "variables[0]: the instructions never use {who}"),
        (
            "[profiles.x]\ninstructions = 'Hi {whom}'\nvariables = ['who']",
            "variables[0]: the instructions never use {who}",
        ),
        ("[profiles.x]\ntype = 'spoken'", "type: .*'realtime' and 'transcription'"),
        ("[profiles.x]\nmax_output_tokens = 5000", "max_output_tokens: .*<= 4096"),
        ("[profiles.x]\nmax_output_tokens = inf", "max_output_tokens: is no number in JSON"),
        ("[profiles.x]\noutput_modalities = ['audio', 'text']", "output_modalities: "),
        ("[profiles.x]\nvoice = 'bob'", "voice: .*'marin'"),
        ("[profiles.x]\nspeed = 2.0", "speed: .*<= 1.5"),
        ("[profiles.x]\nturn_detection = 3", "turn_detection: expected an object or null"),
        (
            "[profiles.x.turn_detection]\ntype = 'server_vad'\nthreshold = 2",
            "turn_detection.threshold: .*<= 1",
        ),
        (
            "[profiles.x.session.audio.input.turn_detection]\ntype = 'vad'",
            "session.audio.input.turn_detection.type: .*'semantic_vad'",
        ),
        (
            "[profiles.x.transcription]\nlanguage = 'english'",
            "transcription.language: expected an ISO-639-1 code",
        ),
        (
            "[profiles.x.transcription]\nlangage = 'en'",
            "transcription.langage: OpenAI takes no such member here",
        ),
        (
            "[profiles.x.session]\ntool_choise = 'auto'",
            "session.tool_choise: .*; did you mean tool_choice?",
        ),
        ("[profiles.x.session]\ntemperature = 0.8", "session.temperature: OpenAI takes no such"),
        ("[profiles.x.session]\naudio = 1", "session.audio: expected an object"),
        ("[profiles.x.session]\ntruncation = 'none'", "session.truncation: .*'disabled'"),
        (
            "[profiles.x]\nsession.tracing.metadata.at = 2026-11-20",
            "metadata.at: is a date or time",
        ),
        ("[profiles.x]\nsession.tracing.metadata.at = nan", "metadata.at: is no number in JSON"),
        (
            "[profiles.x]\nvoice = 'marin'\nsession.audio.output.voice = 'cedar'",
            "voice: is given here and as session.audio.output.voice; keep one of them",
        ),
        (
            "[profiles.x]\ntranscription = {}\nsession.audio.input.transcription = 'none'",
            "transcription: is given here and as session.audio.input.transcription",
        ),
        ("[[profiles.x.tools]]\ntype = 'function'", "tools[0].name: is missing"),
        (
            "[[profiles.x.tools]]\ntype = 'function'\nname = 'look up'",
            "tools[0].name: expected 1 to 64 letters",
        ),
        (f"[[profiles.x.tools]]\n{MCP}\nauthorization = 'hunter2'", "tools[0].authorization: who"),
        (
            f"[[profiles.x.tools]]\n{MCP}\nheaders = {{ k = 'hunter2' }}",
            "tools[0].headers: whoever",
        ),
        (
            f"[[profiles.x.session.tools]]\n{MCP}\nheaders = {{}}",
            "session.tools[0].headers: whoever",
        ),
        ("[profiles.x]\nmodel = 'gpt-realtime-mni'", "model: .*did you mean gpt-realtime-mini"),
        ("[profiles.x]\nmodel = 'gpt-live-1'", "model: gpt-live-1 belongs to another API"),
        ("[profiles.x]\nmodel = 7", "model: expected a string"),
        ("[profiles.x]\nsession.model = 'gpt-99'", "session.model: gpt-99 is not in the model"),
        (
            "[profiles.x]\nmodel = 'gpt-realtime-1.5'\nsession.reasoning.effort = 'low'",
            "session.reasoning: gpt-realtime-1.5 is no reasoning model",
        ),
        (
            "[profiles.x]\nmodel = 'gpt-realtime-mini'\nsession.parallel_tool_calls = true",
            "session.parallel_tool_calls: gpt-realtime-mini is no reasoning model",
        ),
        (
            "[profiles.x]\ntranscription.model = 'gpt-live-transcribe'",
            "transcription.model: .*turn detection server_vad; these do: gpt-4o-mini-transcribe, ",
        ),
        (
            "[profiles.x]\ntype = 'transcription'\ntranscription.model = 'gpt-realtime-whisper'",
            "transcription.model: .*these do: .*gpt-transcribe",
        ),
        (
            "[profiles.x]\ntranscription.keywords = ['SaaS']",
            "transcription.keywords: 'keywords' is not supported",
        ),
        (
            "[profiles.x]\ntype = 'transcription'\ntranscription = 'none'",
            "transcription: is what this type is for",
        ),
        (
            "[profiles.x]\ntype = 'transcription'\nallow = ['voice']",
            "allow: a session of type transcription has no voice",
        ),
        (
            "[profiles.x]\ntype = 'transcription'\ninstructions = 'Hi'",
            "instructions: OpenAI takes no such member here in a session of type transcription$",
        ),
        ("[profiles.x]\ntype = 'transcription'\nmodel = 'mini'", "model: You must not provide"),
        (
            "[profiles.x]\ntranscription = 'none'\nallow = ['language']",
            "allow: language is the transcription's, and there is none",
        ),
    ],
)
def test_a_fault_is_one_line_that_says_where_and_what(file: Path, toml: str, line: str) -> None:
    found = faults_of(file, toml)

    pattern = re.escape(line).replace(r"\.\*", ".*").replace(r"\$", "$")
    assert len(found) == 1
    assert re.match(r"(profiles\.x\.|)(session\.tracing\.|)" + pattern, found[0]), found
    assert "hunter2" not in found[0]


def test_all_faults_of_a_file_are_found_at_once(file: Path) -> None:
    found = faults_of(
        file,
        """
        [profiles.a]
        ttl = 60
        speed = "fast"
        [profiles.b]
        model = "gpt-99"
        voice = "bob"
        variables = ["who"]
        """,
    )

    places = [line.split(": ")[0] for line in found]
    assert places == [
        "profiles.a.ttl",
        "profiles.b.variables[0]",
        "profiles.b.model",
        "profiles.b.voice",
    ]


def test_what_is_no_toml_is_named_with_its_line(file: Path) -> None:
    assert faults_of(file, "[profiles.x]\nmodel = mini") == [
        "is not TOML: Invalid value (at line 2, column 9)"
    ]


def test_a_file_that_is_not_there_or_not_text_is_a_fault(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ProfilesFault, match="cannot be read: No such file"):
        profiles(profiles_file=tmp_path / "absent.toml")
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ProfilesFault, match="is not UTF-8 text"):
        profiles(profiles_file=file)
