"""What session a caller gets from a profile, and what becomes of it when models come and go."""

import hashlib
import json
import string
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from openai.types.realtime.client_secret_create_params import ClientSecretCreateParams
from pydantic import TypeAdapter

from app.base.errors import InvalidRequest, ModelRetired, OverrideNotAllowed, ProfileNotFound
from app.minting.profiles import MOST_SESSIONS, Wish
from app.minting.session_shape import faults
from tests.read_profiles import TODAY, TRANSCRIBERS_OFF, from_toml, profiles, session

EXAMPLES = Path(__file__).parent.parent / "examples" / "profiles.toml"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "profiles.toml"


# ── what a caller may choose ─────────────────────────────────────────────────────────────────────

COACH = """
[profiles.coach]
instructions = "Coach {seller} to sell {product}, but keep {braces} and {{seller}}."
variables = ["seller", "product"]
ttl_seconds = 60
allow = ["language"]
transcription.language = "en"
[profiles.boss]
roles = ["admin"]
"""


def test_language_and_voice_go_where_openai_wants_them() -> None:
    read = profiles()

    planned = read.session_for("user", Wish(language="de", voice="cedar"), today=TODAY)
    custom = session(read, Wish(voice="voice_42"))

    assert planned.session["audio"]["input"]["transcription"]["language"] == "de"
    assert planned.session["audio"]["output"] == {"voice": "cedar"}
    assert planned.language == "de"
    assert custom["audio"]["output"] == {"voice": {"id": "voice_42"}}


def test_declared_variables_are_filled_once_and_other_braces_stay(file: Path) -> None:
    wish = Wish("coach", variables={"seller": "{product}", "product": "a\\1\nb"})

    filled = session(from_toml(file, COACH), wish)["instructions"]

    assert filled == "Coach {product} to sell a\\1\nb, but keep {braces} and {{product}}."


@pytest.mark.parametrize(
    ("wish", "errors"),
    [
        (Wish(language="english"), ["language"]),
        (Wish(language="EN"), ["language"]),
        (Wish(language=""), ["language"]),
        (Wish(language="en\n"), ["language"]),
        (Wish(voice="bob"), ["voice"]),
        (Wish(voice="marin\n"), ["voice"]),
        (Wish(voice="voice_"), ["voice"]),
        (Wish(ttl_seconds=9), ["ttlSeconds"]),
        (Wish(ttl_seconds=61), ["ttlSeconds"]),
        (Wish(ttl_seconds=0), ["ttlSeconds"]),
        (Wish(variables={"evil": "x"}), ["variables"]),
        (Wish("coach"), ["variables.seller", "variables.product"]),
        (Wish("coach", variables={"seller": "Ada"}), ["variables.product"]),
        (Wish("coach", variables={"seller": "", "product": "x"}), ["variables.seller"]),
        (Wish("coach", variables={"seller": "a" * 2001, "product": "x"}), ["variables.seller"]),
        (Wish("coach", variables={"seller": "a\tb", "product": "x"}), ["variables.seller"]),
        (Wish("coach", variables={"seller": "a\x9bb", "product": "x"}), ["variables.seller"]),
        (Wish("coach", variables={"seller": "a\ud800", "product": "x"}), ["variables.seller"]),
        (Wish("coach", variables={"seller": "A", "product": "x", "evil": "y"}), ["variables"]),
        (
            Wish("coach", language="x", ttl_seconds=1),
            ["language", "ttlSeconds", *["variables"] * 2],
        ),
    ],
)
def test_what_cannot_be_is_refused_by_field_without_repeating_it(
    file: Path, wish: Wish, errors: list[str]
) -> None:
    read = from_toml(file, COACH)

    with pytest.raises(InvalidRequest) as refusal:
        read.session_for("user", wish, today=TODAY)

    found = refusal.value.errors
    assert [error.field[: len(field)] for error, field in zip(found, errors, strict=True)] == errors
    assert "evil" not in repr((found, refusal.value.detail))


@pytest.mark.parametrize(
    "wish",
    [
        Wish(ttl_seconds=10),
        Wish(ttl_seconds=60),
        Wish("coach", variables={"seller": "a" * 2000, "product": "é\n漢\U0001f600"}),
    ],
)
def test_what_is_just_within_the_bounds_is_taken(file: Path, wish: Wish) -> None:
    planned = from_toml(file, COACH).session_for("user", wish, today=TODAY)

    assert planned.ttl_seconds == (wish.ttl_seconds or 60)


@pytest.mark.parametrize(
    ("wish", "named"),
    [
        (Wish("coach", voice="marin"), "choose voice."),
        (Wish("boss", voice="marin", language="en"), "choose language or voice."),
        (Wish("boss", language=""), "choose language."),
    ],
)
def test_an_override_the_profile_does_not_allow_is_named(
    file: Path, wish: Wish, named: str
) -> None:
    with pytest.raises(OverrideNotAllowed) as refusal:
        from_toml(file, COACH).session_for("admin", wish, today=TODAY)

    assert refusal.value.detail.endswith(named)


@pytest.mark.parametrize(
    ("role", "asked", "names"),
    [
        ("user", "boss", "default, coach"),
        ("user", "no-such", "default, coach"),
        ("admin", "no-such", "default, coach, boss"),
        ("auditor", "default", "none"),
    ],
)
def test_a_profile_of_someone_else_is_not_found_and_the_callers_own_are_named(
    file: Path, role: str, asked: str, names: str
) -> None:
    read = from_toml(file, COACH)

    with pytest.raises(ProfileNotFound) as refusal:
        read.session_for(role, Wish(asked), today=TODAY)

    assert refusal.value.detail == (
        f"There is no such profile for this caller. There are: {names}."
    )


def test_only_names_of_profiles_are_known(file: Path) -> None:
    read = from_toml(file, COACH)

    assert read.known_name("boss") == "boss"
    assert read.known_name("<script>") is None


def test_what_one_caller_chooses_no_other_gets() -> None:
    read = profiles()
    plain = read.session_for("user", Wish(), today=TODAY)
    before = json.dumps(plain.session)

    chosen = read.session_for(
        "user", Wish(language="de", voice="cedar", ttl_seconds=20), today=TODAY
    )
    again = read.session_for("user", Wish(), today=TODAY)

    assert chosen.session["audio"]["output"] == {"voice": "cedar"}
    assert (chosen.language, chosen.ttl_seconds) == ("de", 20)
    assert json.dumps(again.session) == before
    assert (again.language, again.ttl_seconds) == (None, 60)


def test_however_many_wishes_there_are_few_sessions_are_kept() -> None:
    read = profiles()

    for number in range(3 * MOST_SESSIONS):
        letters = string.ascii_lowercase
        language = letters[number % 26] + letters[number // 26 % 26]
        read.session_for("user", Wish(language=language, ttl_seconds=10 + number % 50), today=TODAY)

    assert len(read._sessions) <= MOST_SESSIONS


def test_the_digest_is_that_of_the_session_however_its_members_are_ordered() -> None:
    read = profiles()

    plain = read.session_for("user", Wish(), today=TODAY)
    german = read.session_for("user", Wish(language="de"), today=TODAY)

    canonical = (
        '{"audio":{"input":{"transcription":{"model":"gpt-4o-mini-transcribe"},'
        '"turn_detection":{"type":"semantic_vad"}},"output":{"voice":"marin"}},'
        '"model":"gpt-realtime-2.1-mini","output_modalities":["audio"],"type":"realtime"}'
    )
    assert plain.config_digest == hashlib.sha256(canonical.encode()).hexdigest()
    assert german.config_digest != plain.config_digest


# ── models come and go ───────────────────────────────────────────────────────────────────────────


def test_a_spoken_profile_announces_the_end_of_its_transcriber_and_then_mints_without() -> None:
    read = profiles()

    before = read.session_for("user", Wish(language="en"), today=date(2027, 2, 25))
    after = read.session_for("user", Wish(language="en"), today=TRANSCRIBERS_OFF)

    assert [notice.to_json()["code"] for notice in before.notices] == ["model_deprecated"]
    assert before.notices[0].to_json()["sunset"] == "2027-02-26"
    assert [notice.code for notice in after.notices] == ["transcription_unavailable"]
    assert after.session["audio"]["input"] == {"turn_detection": {"type": "semantic_vad"}}
    assert (after.model, after.transcription_model, after.language) == (
        "gpt-realtime-2.1-mini",
        None,
        None,
    )


def test_a_retired_model_is_replaced_and_both_ids_are_told() -> None:
    read = profiles(openai_realtime_model="gpt-realtime-mini-2025-10-06")

    planned = read.session_for("user", Wish(), today=TODAY)

    assert planned.model_asked == "gpt-realtime-mini-2025-10-06"
    assert planned.model == planned.session["model"] == "gpt-realtime-2.1-mini"
    assert planned.notices[0].code == "model_replaced"


def test_what_a_profile_binds_is_told_with_its_variables_left_open(file: Path) -> None:
    [_, coach, boss] = from_toml(file, COACH).bindings(TODAY)

    assert coach.session is not None
    assert "Coach {seller} to sell {product}" in coach.session["instructions"]
    assert [use.used for use in coach.models] == ["gpt-realtime-2.1-mini", "gpt-4o-mini-transcribe"]
    assert [notice.code for notice in coach.notices] == ["model_deprecated"]
    assert boss.profile.roles == ("admin",)


def test_a_profile_that_mints_nothing_says_why() -> None:
    gone = "gpt-realtime-mini-2025-10-06"

    [default] = profiles(openai_realtime_model=gone, model_policy="refuse").bindings(TODAY)

    assert default.session is None
    assert "was shut down on 2026-07-23" in str(default.refusal)


def test_a_retired_model_under_refuse_lets_the_service_start_but_not_mint() -> None:
    read = profiles(openai_realtime_model="gpt-realtime-mini-2025-10-06", model_policy="refuse")

    with pytest.raises(ModelRetired, match="was shut down on 2026-07-23"):
        read.session_for("user", Wish(), today=TODAY)
    assert read.warnings(TODAY) == [
        (
            "profile default mints nothing: The model gpt-realtime-mini-2025-10-06 was shut down on"
            " 2026-07-23 and this service does not replace models."
            " The operator has to name a live model."
        )
    ]


def test_the_operator_is_warned_of_what_is_going_and_of_what_has_no_effect() -> None:
    read = profiles(
        openai_realtime_model="gpt-realtime-mini-2025-10-06", openai_realtime_temperature="0.8"
    )

    temperature, replaced, deprecated = read.warnings(TODAY)

    assert temperature.startswith("OPENAI_REALTIME_TEMPERATURE has no effect")
    assert replaced.startswith("profile default: OpenAI shut gpt-realtime-mini-2025-10-06 down on")
    assert deprecated.startswith("profile default: OpenAI shuts gpt-4o-mini-transcribe down on")
    assert deprecated.endswith(" 98 days are left.")


def test_nothing_to_worry_about_gives_no_warnings() -> None:
    assert profiles(openai_realtime_transcription_model="none").warnings(TODAY) == []


# ── the examples ─────────────────────────────────────────────────────────────────────────────────

EXAMPLE_WISHES = [
    Wish("assistant", language="de", voice="coral"),
    Wish("transcriber"),
    Wish("coach", language="fr", variables={"seller": "Ada", "product": "tractors"}),
]


OPENAIS_OWN_TYPE: TypeAdapter[Any] = TypeAdapter(ClientSecretCreateParams)


@pytest.mark.parametrize("on", [TODAY, date(2027, 1, 20), TRANSCRIBERS_OFF], ids=str)
@pytest.mark.parametrize("wish", EXAMPLE_WISHES, ids=lambda wish: str(wish.profile))
def test_the_examples_give_sessions_that_openai_takes(wish: Wish, on: date) -> None:
    planned = profiles(on, profiles_file=EXAMPLES).session_for("user", wish, today=on)

    body = {
        "expires_after": {"anchor": "created_at", "seconds": planned.ttl_seconds},
        "session": planned.session,
    }
    assert faults(planned.session) == []
    # A member OpenAI's library does not know would be lost on the way through its types.
    assert OPENAIS_OWN_TYPE.validate_python(body) == body


def test_every_example_profile_is_tried() -> None:
    read = profiles(profiles_file=EXAMPLES)

    names = [profile.name for profile in read.for_role("user")]
    assert names == ["default", *(wish.profile for wish in EXAMPLE_WISHES)]


def test_the_example_coach_writes_and_has_tools_with_real_schemas() -> None:
    coach = session(profiles(profiles_file=EXAMPLES), EXAMPLE_WISHES[2])

    assert coach["output_modalities"] == ["text"]
    assert "You coach Ada" in coach["instructions"]
    assert [tool["name"] for tool in coach["tools"]] == [
        "track_discussion_topic",
        "suggest_question",
    ]
    for tool in coach["tools"]:
        schema = tool["parameters"]
        assert set(schema["required"]) <= set(schema["properties"])
        assert schema["additionalProperties"] is False
