"""The model catalogue: what is in it, and which model is used on which day."""

from datetime import date, timedelta
from decimal import Decimal
from importlib import resources
from typing import Any, get_args, get_type_hints

import pytest
from openai.types.realtime import AudioTranscriptionParam, RealtimeSessionCreateRequestParam

from app.base.errors import ModelRetired
from app.minting.catalogue import (
    Catalogue,
    ModelPolicy,
    Need,
    Resolved,
    SessionType,
    TurnDetection,
    UnusableModel,
    resolve,
)

TEXT = resources.files("app.minting").joinpath("catalogue.toml").read_text("utf-8")
CATALOGUE = Catalogue.built_in()
TODAY = date(2026, 11, 20)
MINIS_OFF = date(2027, 1, 20)
TRANSCRIBERS_OFF = date(2027, 2, 26)

SPEECH = Need("speech", "realtime", "semantic_vad")
SPOKEN = Need("transcription", "realtime", "semantic_vad")
PUSH_TO_TALK = Need("transcription", "realtime", "none")
DICTATION = Need("transcription", "transcription", "none")
DICTATION_WITH_VAD = Need("transcription", "transcription", "server_vad")


def resolved(
    asked: str,
    need: Need = SPEECH,
    *,
    on: date = TODAY,
    policy: ModelPolicy = "replace",
    allow_unknown: bool = False,
    catalogue: Catalogue = CATALOGUE,
) -> Resolved:
    return resolve(
        asked,
        catalogue=catalogue,
        today=on,
        policy=policy,
        need=need,
        allow_unknown=allow_unknown,
    )


def notices(resolved: Resolved) -> list[dict[str, str]]:
    return [notice.to_json() for notice in resolved.notices]


# ── the data ─────────────────────────────────────────────────────────────────────────────────────

SHUTDOWNS = {
    "gpt-realtime-2.1-mini": None,
    "gpt-realtime-2.1": None,
    "gpt-realtime-2": None,
    "gpt-realtime-1.5": None,
    "gpt-realtime": "2027-01-20",
    "gpt-realtime-2025-08-28": "2027-01-20",
    "gpt-realtime-mini": "2027-01-20",
    "gpt-realtime-mini-2025-12-15": "2027-01-20",
    "gpt-realtime-mini-2025-10-06": "2026-07-23",
    "gpt-4o-realtime-preview": "2026-05-07",
    "gpt-4o-realtime-preview-2024-12-17": "2026-05-07",
    "gpt-4o-realtime-preview-2025-06-03": "2026-05-07",
    "gpt-4o-mini-realtime-preview": "2026-05-07",
    "gpt-4o-mini-realtime-preview-2024-12-17": "2026-05-07",
    "gpt-4o-realtime-preview-2024-10-01": "2025-10-10",
    "gpt-4o-mini-transcribe": "2027-02-26",
    "gpt-4o-mini-transcribe-2025-12-15": "2027-02-26",
    "gpt-4o-mini-transcribe-2025-03-20": "2027-01-20",
    "gpt-4o-transcribe": "2027-02-26",
    "gpt-4o-transcribe-diarize": "2027-02-26",
    "whisper-1": "2027-02-26",
    "gpt-transcribe": None,
    "gpt-live-transcribe": None,
    "gpt-realtime-whisper": None,
    "gpt-realtime-translate": None,
}


def test_the_catalogue_has_every_model_with_its_last_day() -> None:
    found = {model.id: model.shutdown and str(model.shutdown) for model in CATALOGUE.models}

    assert found == SHUTDOWNS


@pytest.mark.parametrize(
    "params", [RealtimeSessionCreateRequestParam, AudioTranscriptionParam], ids=lambda p: p.__name__
)
def test_every_id_that_openais_own_library_names_is_accounted_for(params: Any) -> None:
    _, literal = get_args(get_type_hints(params)["model"])
    named = set(get_args(literal))

    assert named
    assert named - {model.id for model in CATALOGUE.models} - set(CATALOGUE.not_realtime) == set()


def test_every_model_that_goes_has_a_successor_that_stays_longer_and_is_of_its_kind() -> None:
    for model in CATALOGUE.models:
        *_, last = CATALOGUE.line_of(model)
        assert last.shutdown is None
        assert last.kind == model.kind


@pytest.mark.parametrize(
    ("model_id", "usd"),
    [("gpt-realtime-2.1-mini", "0.00205884"), ("gpt-realtime-2.1", "0.0072056")],
)
def test_the_prices_give_the_documented_cost_of_a_turn(model_id: str, usd: str) -> None:
    model = CATALOGUE.get(model_id)
    assert model

    # Documented: 119 text tokens in, of which 64 cached.
    tokens = {"text_input": 55, "cached_text_input": 64, "audio_input": 13}
    tokens |= {"text_output": 30, "audio_output": 91}
    cost = sum(count * getattr(model.prices, name) for name, count in tokens.items())

    assert cost / 1_000_000 == Decimal(usd)


@pytest.mark.parametrize(
    ("found", "replacement", "complaint"),
    [
        ('family = "mini"', 'famly = "mini"', "famly"),
        ('kind = "speech"', 'kind = "spech"', "kind"),
        ("shutdown = 2027-01-20", 'shutdown = "soon"', "shutdown"),
        ('successor = "gpt-realtime-2.1"', "", "both a shutdown date and a successor"),
        ('successor = "gpt-transcribe"', 'successor = "gpt-none"', "no successor of its kind"),
        ('successor = "gpt-transcribe"', 'successor = "whisper-1"', "whisper-1 does not outlive"),
        ('successor = "gpt-transcribe"', 'successor = "gpt-realtime-2"', "successor of its kind"),
        ('id = "gpt-realtime-2"', 'id = "gpt-realtime-2.1"', "twice"),
        ('id = "gpt-realtime-2"', 'id = "mini"', "also something else"),
        ("deprecated = 2026-08-26", "deprecated = 2027-08-26", "later shutdown date"),
        ('alias_of = "gpt-realtime-2025-08-28"', 'alias_of = "gpt-1"', "an alias of nothing"),
        ('"websocket"', '"pigeon"', "transports"),
        ("[not_realtime]", "[never]\n[not_realtime]", "never"),
    ],
)
def test_wrong_data_is_not_loaded(found: str, replacement: str, complaint: str) -> None:
    assert found in TEXT

    with pytest.raises(ValueError, match=complaint):
        Catalogue.read(TEXT.replace(found, replacement))


# ── which model, when ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("model_id", "on", "status"),
    [
        ("gpt-realtime-2.1-mini", TODAY, "active"),
        ("gpt-realtime-mini", date(2026, 7, 19), "active"),
        ("gpt-realtime-mini", date(2026, 7, 20), "deprecated"),
        ("gpt-realtime-mini", MINIS_OFF - timedelta(days=1), "deprecated"),
        ("gpt-realtime-mini", MINIS_OFF, "retired"),
        ("gpt-4o-mini-transcribe-2025-03-20", TODAY, "deprecated"),
        ("gpt-realtime-mini-2025-10-06", TODAY, "retired"),
    ],
)
def test_a_model_is_off_on_the_day_of_its_shutdown(model_id: str, on: date, status: str) -> None:
    model = CATALOGUE.get(model_id)

    assert model
    assert model.status_on(on) == status


@pytest.mark.parametrize(
    ("asked", "need", "on", "used"),
    [
        ("mini", SPEECH, TODAY, "gpt-realtime-2.1-mini"),
        ("flagship", SPEECH, TODAY, "gpt-realtime-2.1"),
        ("transcribe", SPOKEN, TODAY, "gpt-4o-mini-transcribe"),
        ("transcribe", DICTATION, TODAY, "gpt-4o-mini-transcribe"),
        ("transcribe", DICTATION, TRANSCRIBERS_OFF, "gpt-transcribe"),
        ("transcribe", DICTATION_WITH_VAD, TRANSCRIBERS_OFF, "gpt-transcribe"),
        ("gpt-realtime-mini", SPEECH, TODAY, "gpt-realtime-mini"),
        ("gpt-realtime-mini", SPEECH, MINIS_OFF, "gpt-realtime-2.1-mini"),
        ("gpt-realtime", SPEECH, MINIS_OFF, "gpt-realtime-2.1"),
        ("gpt-realtime-mini-2025-10-06", SPEECH, TODAY, "gpt-realtime-2.1-mini"),
        ("gpt-4o-realtime-preview", SPEECH, TODAY, "gpt-realtime-2.1"),
        ("gpt-4o-mini-realtime-preview-2024-12-17", SPEECH, TODAY, "gpt-realtime-2.1-mini"),
        ("gpt-4o-mini-transcribe-2025-03-20", SPOKEN, MINIS_OFF, "gpt-4o-mini-transcribe"),
        ("gpt-4o-mini-transcribe-2025-03-20", DICTATION, TRANSCRIBERS_OFF, "gpt-transcribe"),
        ("gpt-transcribe", PUSH_TO_TALK, TODAY, "gpt-transcribe"),
    ],
)
def test_what_is_asked_becomes_a_model_that_lives_and_fits(
    asked: str, need: Need, on: date, used: str
) -> None:
    found = resolved(asked, need, on=on)

    assert (found.asked, found.used) == (asked, used)
    assert found.model is CATALOGUE.get(used)


@pytest.mark.parametrize("family", ["mini", "flagship"])
def test_a_speech_family_stands_for_a_model_that_is_not_going_away(family: str) -> None:
    for days in range(0, 1000, 10):
        day = TODAY + timedelta(days=days)
        found = resolved(family, on=day)
        assert found.model
        assert found.model.status_on(day) == "active"
        assert found.notices == ()


def test_a_replacement_says_what_was_asked_and_what_is_used() -> None:
    assert notices(resolved("gpt-realtime-mini-2025-10-06")) == [
        {
            "code": "model_replaced",
            "requested": "gpt-realtime-mini-2025-10-06",
            "used": "gpt-realtime-2.1-mini",
            "detail": "OpenAI shut gpt-realtime-mini-2025-10-06 down on 2026-07-23;"
            " gpt-realtime-2.1-mini takes its place.",
        }
    ]


@pytest.mark.parametrize(
    ("asked", "need", "sunset", "then"),
    [
        ("transcribe", SPOKEN, "2027-02-26", "nothing that fits will take its place"),
        ("transcribe", DICTATION, "2027-02-26", "gpt-transcribe will take its place"),
    ],
)
def test_a_deprecated_model_is_used_and_its_last_day_announced(
    asked: str, need: Need, sunset: str, then: str
) -> None:
    assert notices(resolved(asked, need)) == [
        {
            "code": "model_deprecated",
            "model": "gpt-4o-mini-transcribe",
            "sunset": sunset,
            "detail": f"OpenAI shuts gpt-4o-mini-transcribe down on {sunset}; {then}.",
        }
    ]


def test_a_replacement_that_is_itself_going_away_says_both() -> None:
    found = resolved("gpt-4o-mini-transcribe-2025-03-20", SPOKEN, on=MINIS_OFF)

    assert [notice["code"] for notice in notices(found)] == ["model_replaced", "model_deprecated"]


def test_who_refuses_replacements_gets_a_retired_model_refused_but_not_a_deprecated_one() -> None:
    day_before = resolved("gpt-realtime-mini", on=MINIS_OFF - timedelta(days=1), policy="refuse")

    assert day_before.used == "gpt-realtime-mini"
    with pytest.raises(ModelRetired, match=r"gpt-realtime-mini was shut down on 2027-01-20"):
        resolved("gpt-realtime-mini", on=MINIS_OFF, policy="refuse")


@pytest.mark.parametrize("policy", ["replace", "refuse"])
@pytest.mark.parametrize("need", [SPOKEN, PUSH_TO_TALK])
def test_a_spoken_session_goes_on_without_a_transcriber_when_none_is_left(
    need: Need, policy: ModelPolicy
) -> None:
    found = resolved("transcribe", need, on=TRANSCRIBERS_OFF, policy=policy)

    assert (found.used, found.model) == (None, None)
    assert [notice["code"] for notice in notices(found)] == ["transcription_unavailable"]


def test_an_exact_transcriber_that_is_gone_is_dropped_or_refused_as_the_operator_wants() -> None:
    found = resolved("whisper-1", SPOKEN, on=TRANSCRIBERS_OFF, policy="replace")

    assert found.used is None
    with pytest.raises(ModelRetired):
        resolved("whisper-1", SPOKEN, on=TRANSCRIBERS_OFF, policy="refuse")


def test_a_transcription_session_for_which_nothing_is_left_is_refused() -> None:
    manual_only = TEXT.replace("\ntranscription = {}", '\ntranscription.turn_detections = ["none"]')
    catalogue = Catalogue.read(manual_only)

    with pytest.raises(ModelRetired, match="nothing fits instead"):
        resolved("transcribe", DICTATION_WITH_VAD, on=TRANSCRIBERS_OFF, catalogue=catalogue)


@pytest.mark.parametrize("session_type", ["realtime", "transcription"])
@pytest.mark.parametrize("turn_detection", ["server_vad", "semantic_vad", "none"])
@pytest.mark.parametrize("on", [TODAY, MINIS_OFF, TRANSCRIBERS_OFF])
def test_a_stand_in_never_narrows_how_clients_connect(
    session_type: SessionType, turn_detection: TurnDetection, on: date
) -> None:
    need = Need("transcription", session_type, turn_detection)

    for asked in ("transcribe", "gpt-4o-mini-transcribe-2025-03-20", "whisper-1"):
        found = resolved(asked, need, on=on)
        if found.model and found.used != asked:
            assert found.model.serves[session_type].transports == ("webrtc", "websocket")


# ── what cannot be used ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("asked", "need", "advice"),
    [
        ("gpt-live-transcribe", SPOKEN, "these do: gpt-4o-mini-transcribe, "),
        ("gpt-live-transcribe", DICTATION_WITH_VAD, "gpt-transcribe"),
        ("gpt-live-transcribe", DICTATION_WITH_VAD, "with turn detection none it would$"),
        ("gpt-live-transcribe", SPOKEN, "diarize$"),
        ("gpt-realtime-whisper", SPOKEN, "whisper-1"),
        ("gpt-transcribe", SPOKEN, "turn detection semantic_vad"),
        ("gpt-realtime-2.1", SPOKEN, "gpt-4o-transcribe"),
        ("mini", DICTATION, "gpt-live-transcribe"),
        ("transcribe", SPEECH, "gpt-realtime-2.1-mini"),
        ("gpt-realtime-translate", SPEECH, "gpt-realtime-2.1-mini"),
        ("gpt-realtme-mini", SPEECH, "did you mean gpt-realtime-mini"),
        ("minni", SPEECH, "did you mean mini"),
        ("gpt-99", SPEECH, "the family mini or flagship always works"),
        ("gpt-99", SPOKEN, "the family transcribe always works"),
        ("gpt-live-1", SPEECH, "another API"),
        ("gpt-audio-mini", SPEECH, "chat completions"),
        ("gpt-realtime-2025-08-25", SPEECH, "gpt-realtime-2025-08-28"),
    ],
)
def test_a_model_that_cannot_serve_is_refused_with_what_can(
    asked: str, need: Need, advice: str
) -> None:
    with pytest.raises(UnusableModel, match=advice):
        resolved(asked, need)


def test_what_fits_does_not_name_the_dead() -> None:
    with pytest.raises(UnusableModel) as refusal:
        resolved("transcribe", SPEECH)

    assert "preview" not in str(refusal.value)


def test_an_unknown_id_is_taken_as_it_is_where_the_operator_allows_it() -> None:
    assert resolved("my-azure-deployment", allow_unknown=True) == Resolved(
        "my-azure-deployment", "my-azure-deployment", None
    )


def test_gpt_live_is_refused_even_where_unknown_ids_are_allowed() -> None:
    with pytest.raises(UnusableModel, match="gpt-live-1 belongs to another API"):
        resolved("gpt-live-1", allow_unknown=True)
