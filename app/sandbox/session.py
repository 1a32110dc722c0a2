"""A session as it is in force: its defaults, how it is shown, and what an update may change.

A session in force is the GA session object with every default filled in. The functions take and
return such objects and change none of them.
"""

import json
from collections.abc import Mapping
from typing import Any

from app.minting.session_shape import PCM_RATE_HZ, conflicts, faults
from app.sandbox.errors import Refusal, refusal_of

MOST_CHARACTERS = 1_000_000  # of a session that was updated, as JSON
DEFAULT_INSTRUCTIONS = (
    "You are the sandbox of the Realtime token service, a stand-in for OpenAI. Your answers are"
    " canned, your voice is a row of soft tones, and everything around them is as in the real API."
)

_PCM = {"type": "audio/pcm", "rate": PCM_RATE_HZ}

_TURN_DETECTION: dict[str, dict[str, object]] = {
    "server_vad": {
        "type": "server_vad",
        "threshold": 0.5,
        "prefix_padding_ms": 300,
        "silence_duration_ms": 200,  # OpenAI's prose says 500; every captured session says 200
        "idle_timeout_ms": None,
        "create_response": True,
        "interrupt_response": True,
    },
    "semantic_vad": {
        "type": "semantic_vad",
        "eagerness": "auto",
        "create_response": True,
        "interrupt_response": True,
    },
}
_OF_RESPONSES = ("idle_timeout_ms", "create_response", "interrupt_response")

_INPUT: dict[str, object] = {
    "format": _PCM,
    "transcription": None,
    "noise_reduction": None,
    "turn_detection": _TURN_DETECTION["server_vad"],
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "realtime": {
        "type": "realtime",
        "output_modalities": ["audio"],
        "instructions": DEFAULT_INSTRUCTIONS,
        "tools": [],
        "tool_choice": "auto",
        "max_output_tokens": "inf",
        "tracing": None,
        "truncation": "auto",
        "prompt": None,
        "audio": {
            "input": _INPUT,
            "output": {"format": _PCM, "voice": "alloy", "speed": 1.0},
        },
        "include": None,
    },
    "transcription": {"type": "transcription", "audio": {"input": _INPUT}, "include": None},
}


def in_force(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the session that *given*, a session without faults, asks for."""
    return _merged(_DEFAULTS[given["type"]], given)


def updated(
    session: Mapping[str, Any], given: Mapping[str, Any], *, has_spoken: bool
) -> dict[str, Any]:
    """Return *session* with the members of *given*, the session of a ``session.update``.

    Args:
        session: The session in force.
        given: What the client wants to change; not yet checked.
        has_spoken: Assistant audio is part of the conversation, which fixes the voice.

    Raises:
        Refusal: Nothing of *given* may take effect.
    """
    other = "transcription" if session["type"] == "realtime" else "realtime"
    if given.get("type") == other:
        raise Refusal(
            f"Passing a {other} session update event to a {session['type']} session is not"
            " allowed.",
            param="session.type",
        )
    for fault in faults(given, partial=True):
        raise refusal_of(fault)
    if given.get("model", session.get("model")) != session.get("model"):
        raise Refusal(
            "Cannot update the model of a session.", code="invalid_value", param="session.model"
        )
    tracing = session.get("tracing")
    if tracing is not None and given.get("tracing", tracing) != tracing:
        raise Refusal(
            "Cannot update tracing once it is on.", code="invalid_value", param="session.tracing"
        )
    after = _merged(session, given)
    if has_spoken and _voice(after) != _voice(session):
        raise Refusal(
            "Cannot update a conversation's voice if assistant audio is present.",
            code="cannot_update_voice",
            param="session.audio.output.voice",
        )
    for fault in conflicts(after):
        raise refusal_of(fault)
    if len(json.dumps(after)) > MOST_CHARACTERS:
        raise Refusal(
            f"Invalid 'session': too large. Expected at most {MOST_CHARACTERS} characters.",
            code="string_above_max_length",
            param="session",
        )
    return after


def for_response(session: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return *session* as *given*, the ``response`` of a ``response.create``, overrides it."""
    own = {"conversation", "input", "metadata"}
    return _merged(session, {name: given[name] for name in given if name not in own})


def shown_as(session: Mapping[str, Any], *, session_id: str, expires_at: int) -> dict[str, Any]:
    """Return *session* as the mint and the session events show it.

    Args:
        session: The session in force.
        session_id: ``sess_…``
        expires_at: Unix seconds when the session ends; 0 in the answer of a mint.
    """
    realtime = session["type"] == "realtime"
    return {
        "type": session["type"],
        "object": "realtime.session" if realtime else "realtime.transcription_session",
        "id": session_id,
        **session,
        "expires_at": expires_at,
    }


def _voice(session: Mapping[str, Any]) -> Any:
    return session["audio"].get("output", {}).get("voice")  # a transcription session has none


def _merged(current: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    audio = {}
    for side, members in current["audio"].items():
        changes = given.get("audio", {}).get(side, {})
        settled = {name: _settled(name, changes[name], members.get(name)) for name in changes}
        audio[side] = {**members, **settled}
    if current["type"] == "transcription" and (detection := audio["input"]["turn_detection"]):
        # There are no responses to create or to interrupt, so OpenAI does not show these.
        audio["input"]["turn_detection"] = {
            name: value for name, value in detection.items() if name not in _OF_RESPONSES
        }
    return {**current, **given, "audio": audio}


def _settled(name: str, value: Any, current: Any) -> Any:
    """Return what member *name* of an audio side becomes when it is set to *value*.

    An object of the same kind as the current one keeps what *value* leaves out; one of another kind
    starts from its defaults.
    """
    if not isinstance(value, Mapping):
        return value
    kept = current if isinstance(current, Mapping) else {}
    match name:
        case "format" if value["type"] == _PCM["type"]:
            return _PCM
        case "noise_reduction":
            return {**kept, **value}
        case "turn_detection":
            kind = value["type"]
            return {**_TURN_DETECTION[kind], **(kept if kept.get("type") == kind else {}), **value}
        case "transcription":
            same = kept.get("model") == value.get("model", kept.get("model"))
            return {
                "model": None,
                "language": None,
                "prompt": None,
                **(kept if same else {}),
                **value,
            }
        case _:
            return value
