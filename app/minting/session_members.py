"""Where the members of OpenAI's session stand, and how to read and set them."""

from collections.abc import Mapping
from typing import Any, TypeAlias

Json: TypeAlias = dict[str, Any]
MemberPath: TypeAlias = tuple[str, ...]

TRANSCRIPTION: MemberPath = ("audio", "input", "transcription")
TURN_DETECTION: MemberPath = ("audio", "input", "turn_detection")
VOICE: MemberPath = ("audio", "output", "voice")

SESSION_ORDER = (
    *("type", "model", "output_modalities", "instructions", "audio", "max_output_tokens"),
    *("tools", "tool_choice", "parallel_tool_calls", "reasoning", "truncation", "tracing"),
    *("prompt", "include"),
)
"""The members of a session, in the order in which a person reads it best."""

AUDIO_ORDER = ("input", "output")
AUDIO_SIDE_ORDER = (
    *("format", "noise_reduction", "transcription", "turn_detection"),
    *("voice", "speed"),
)


def member(session: Mapping[str, Any], path: MemberPath) -> Any:
    """Return the member of *session* at *path*, None when it is not there."""
    value: Any = session
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def has(session: Mapping[str, Any], path: MemberPath) -> bool:
    """Tell whether *session* has a member at *path*, be it null."""
    parent = member(session, path[:-1])
    return isinstance(parent, Mapping) and path[-1] in parent


def put(session: Json, path: MemberPath, value: Any) -> None:
    """Set the member of *session* at *path*; where something else is in the way, leave that."""
    for name in path[:-1]:
        session = session.setdefault(name, {})
        if not isinstance(session, dict):
            return
    session[path[-1]] = value


def drop(session: Json, path: MemberPath) -> None:
    """Take the member at *path* out of *session*, and what is empty without it."""
    *parents, name = path
    parent = member(session, tuple(parents))
    if isinstance(parent, dict):
        parent.pop(name, None)
        if parents and not parent:
            drop(session, tuple(parents))


def in_order(session: Json) -> Json:
    """Return *session* with its members in a pleasant order; unknown ones come last."""
    session = _sorted(session, SESSION_ORDER)
    if isinstance(audio := session.get("audio"), dict):
        session["audio"] = {
            side: _sorted(settings, AUDIO_SIDE_ORDER) if isinstance(settings, dict) else settings
            for side, settings in _sorted(audio, AUDIO_ORDER).items()
        }
    return session


def as_voice(name: str) -> str | dict[str, str]:
    """Return a voice as OpenAI takes it: by its name, or as an object when it is a custom one."""
    return {"id": name} if name.startswith("voice_") else name


def _sorted(members: Json, order: tuple[str, ...]) -> Json:
    ranks = {name: rank for rank, name in enumerate(order)}
    return dict(sorted(members.items(), key=lambda item: ranks.get(item[0], len(order))))
