"""Session profiles as an operator writes them: tables of a TOML file, or the settings alone.

A profile holds members that are ours and members of OpenAI's session, under short names or in
``session``. Ours are checked here; OpenAI's are put in their places, and ``profiles`` then checks
the whole session against OpenAI's rules. A fault is one line: where, what is wrong, what to do.
"""

import difflib
import math
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from app.minting.json_shape import Fault, shown
from app.minting.session_members import (
    AUDIO_ORDER,
    AUDIO_SIDE_ORDER,
    SESSION_ORDER,
    TRANSCRIPTION,
    TURN_DETECTION,
    VOICE,
    Json,
    MemberPath,
    as_voice,
    drop,
    has,
    in_order,
    member,
    put,
)
from app.settings import Settings

Item = TypeVar("Item")

SHORT_NAMES: Mapping[str, MemberPath] = {
    "type": ("type",),
    "model": ("model",),
    "output_modalities": ("output_modalities",),
    "instructions": ("instructions",),
    "transcription": TRANSCRIPTION,
    "turn_detection": TURN_DETECTION,
    "voice": VOICE,
    "speed": ("audio", "output", "speed"),
    "max_output_tokens": ("max_output_tokens",),
    "tools": ("tools",),
}
"""Members of OpenAI's session that a profile may name without saying where they stand."""

# TOML has no null, so "none" stands for it. Only turn detection is on when it is left out; for the
# others null is what OpenAI does anyway, and its own schema wants them left out rather than null.
_NULL_MEANS_LEFT_OUT: tuple[MemberPath, ...] = (
    TRANSCRIPTION,
    ("audio", "input", "noise_reduction"),
    ("tracing",),
    ("prompt",),
)

_SETTINGS = {
    "model": "OPENAI_REALTIME_MODEL",
    "instructions": "OPENAI_REALTIME_INSTRUCTIONS",
    "voice": "OPENAI_REALTIME_VOICE",
    "max_output_tokens": "OPENAI_REALTIME_MAX_TOKENS",
    "transcription": "OPENAI_REALTIME_TRANSCRIPTION_MODEL",
}
"""Which setting gives which member of the profile ``default``."""


class ProfilesFault(Exception):
    """The profiles cannot be used. One line per fault, each saying what to do."""

    def __init__(self, faults: list[str]) -> None:
        self.faults = faults
        super().__init__("\n".join(faults))


def _variable_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", name):
        raise ValueError("must be letters, digits and _, at most 64, and not start with a digit")
    return name


VariableName: TypeAlias = Annotated[str, AfterValidator(_variable_name)]


def _no_repeats(items: list[Item]) -> list[Item]:
    if any(item in items[:index] for index, item in enumerate(items)):
        raise ValueError("names something twice")
    return items


class ProfileTable(BaseModel):
    """One ``[profiles.NAME]`` table."""

    model_config = ConfigDict(
        extra="forbid", strict=True, use_attribute_docstrings=True, hide_input_in_errors=True
    )

    description: str = ""
    """For the people who choose among profiles."""

    variables: Annotated[list[VariableName], AfterValidator(_no_repeats)] = []
    """Names that callers must fill; ``{name}`` in the instructions is where the value goes."""

    ttl_seconds: Annotated[int, Field(ge=10, le=7200)] = 60
    """How long a token opens sessions; OpenAI takes 10 to 7200."""

    allow: Annotated[list[Literal["language", "voice"]], AfterValidator(_no_repeats)] = []
    """What a caller may choose."""

    roles: Annotated[
        list[Literal["user", "admin"]], Field(min_length=1), AfterValidator(_no_repeats)
    ] = ["user", "admin"]
    """Whose profile it is."""

    session: Json = {}
    """Any other member of OpenAI's session, in OpenAI's own shape."""

    # Members of OpenAI's session, see SHORT_NAMES.
    type: Any = None
    model: Any = None
    output_modalities: Any = None
    instructions: Any = None
    transcription: Any = None
    turn_detection: Any = None
    voice: Any = None
    speed: Any = None
    max_output_tokens: Any = None
    tools: Any = None


@dataclass(frozen=True, slots=True)
class Draft:
    """A profile as it was written, with its session put together but not checked."""

    name: str
    table: ProfileTable
    session: Json
    """What goes to OpenAI, with models and {variables} as they were written."""

    origin: Callable[[str], str]
    """Says where a key of the table is to be corrected."""

    def line(self, param: str, text: str) -> str:
        """Return the line for a fault of the session's member *param*, dotted."""
        for short, path in SHORT_NAMES.items():
            dotted = ".".join(path)
            if re.match(rf"{dotted}(?![a-z_])", param) and not has(self.table.session, path):
                return f"{self.origin(short + param[len(dotted) :])}: {text}"
        return f"{self.origin(f'session.{param}')}: {text}"

    def line_for(self, fault: Fault) -> str:
        """Return the line for a *fault* that OpenAI's rules find in the session."""
        param = fault.param.removeprefix("session.")
        if fault.code == "unknown_parameter":
            return self.line(param, self._unknown_member(param.rpartition(".")[2]))
        if fault.code == "missing_required_parameter":
            return self.line(param, "is missing")
        # The line says where; the rest of OpenAI's sentence says what.
        return self.line(param, re.sub(r"^Invalid (?:type for )?'[^']*': ", "", fault.message))

    def _unknown_member(self, name: str) -> str:
        hint = _did_you_mean(name, [*SESSION_ORDER, *AUDIO_ORDER, *AUDIO_SIDE_ORDER])
        kind = shown(self.session["type"])
        return f"OpenAI takes no such member here in a session of type {kind}{hint}"


def read_drafts(settings: Settings) -> tuple[list[Draft], list[str]]:
    """Return every profile that can be read, and one line for each fault of our own members.

    The settings give the profile ``default``, unless the file has one of that name.
    """
    drafts, faults = _read_file(settings.profiles_file) if settings.profiles_file else ([], [])
    if all(draft.name != "default" for draft in drafts):
        drafts.insert(0, _default_draft(settings))
    for draft in drafts:
        faults += _own_faults(draft)
    return drafts, faults


def not_json(value: object, at: str = "") -> Iterator[tuple[str, str]]:
    """Give what TOML can say and JSON cannot: dates and times, nan and inf."""
    match value:
        case dict():
            for name, inner in value.items():
                yield from not_json(inner, f"{at}.{shown(name)}" if at else shown(name))
        case list():
            for index, inner in enumerate(value):
                yield from not_json(inner, f"{at}[{index}]")
        case float() if not math.isfinite(value):
            yield at, 'is no number in JSON; for no limit OpenAI takes the text "inf"'
        case None | bool() | int() | float() | str():
            pass
        case _:
            yield at, "is a date or time, which JSON does not have; put it in quotes"


def _read_file(path: Path) -> tuple[list[Draft], list[str]]:
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        return [], [f"{path}: cannot be read: {error.strerror}"]
    except UnicodeDecodeError:
        return [], [f"{path}: is not UTF-8 text"]
    except tomllib.TOMLDecodeError as error:
        return [], [f"{path}: is not TOML: {error}"]
    tables = data.pop("profiles", {})
    faults = [
        f"{path}: {shown(key)}: stands outside of the profiles; write it below [profiles.NAME]"
        for key in data
    ]
    if not isinstance(tables, dict):
        return [], [*faults, f"{path}: profiles: must be tables; write [profiles.NAME]"]
    drafts = []
    for name, table in tables.items():
        place = f"{path}: profiles.{shown(name)}"
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", name):
            rule = "lower-case letters, digits, _ and -, at most 64, the first a letter or digit"
            faults.append(f"{place}: cannot be the name of a profile; allowed: {rule}")
        if not isinstance(table, dict):
            faults.append(f"{place}: must be a table; write [profiles.NAME]")
            continue
        try:
            checked = ProfileTable.model_validate(table)
        except ValidationError as error:
            faults += [f"{place}{fault}" for fault in _model_faults(error)]
        else:
            drafts.append(Draft(name, checked, _session_of(checked), _keys_below(place)))
    return drafts, faults


def _keys_below(place: str) -> Callable[[str], str]:
    return lambda key: f"{place}.{key}"


def _default_draft(settings: Settings) -> Draft:
    transcribes = settings.openai_realtime_transcription_model != "none"
    members = {
        "description": "A spoken conversation",
        "ttl_seconds": settings.client_secret_ttl_seconds,
        "allow": ["language", "voice"] if transcribes else ["voice"],
        "model": settings.openai_realtime_model,
        "output_modalities": ["audio"],
        "instructions": settings.openai_realtime_instructions,
        "transcription": (
            {"model": settings.openai_realtime_transcription_model} if transcribes else "none"
        ),
        "turn_detection": {"type": "semantic_vad"},
        "voice": settings.openai_realtime_voice,
        "max_output_tokens": settings.openai_realtime_max_tokens,
    }
    table = ProfileTable.model_validate(
        {name: value for name, value in members.items() if value is not None}
    )
    return Draft(
        "default", table, _session_of(table), lambda key: _SETTINGS[re.split(r"[.\[]", key)[0]]
    )


def _session_of(table: ProfileTable) -> Json:
    session = deepcopy(table.session)
    for short, path in SHORT_NAMES.items():
        if short in table.model_fields_set:
            put(session, path, getattr(table, short))
    if isinstance(table.voice, str):
        put(session, VOICE, as_voice(table.voice))

    # What a profile leaves out: the models are what this service is for, so they are always named.
    if session.setdefault("type", "realtime") == "realtime":
        session.setdefault("model", "mini")
    if not has(session, TRANSCRIPTION):
        put(session, TRANSCRIPTION, {})
    if isinstance(transcription := member(session, TRANSCRIPTION), dict):
        put(session, TRANSCRIPTION, {"model": "transcribe"} | transcription)

    if member(session, TURN_DETECTION) == "none":
        put(session, TURN_DETECTION, None)
    for path in _NULL_MEANS_LEFT_OUT:
        if member(session, path) == "none":
            drop(session, path)

    return in_order(session)


def _own_faults(draft: Draft) -> Iterator[str]:
    table = draft.table
    for short, path in SHORT_NAMES.items():
        if short in table.model_fields_set and has(table.session, path):
            twice = f"is given here and as session.{'.'.join(path)}; keep one of them"
            yield f"{draft.origin(short)}: {twice}"

    instructions = str(draft.session.get("instructions"))
    for index, name in enumerate(table.variables):
        if f"{{{name}}}" not in instructions:
            place = draft.origin(f"variables[{index}]")
            yield f"{place}: the instructions never use {{{name}}}; use it or take the name out"
    yield from _purpose_faults(draft)
    yield from _secret_faults(draft)


def _purpose_faults(draft: Draft) -> Iterator[str]:
    """Give what makes no sense in a session of this type."""
    transcribes = member(draft.session, TRANSCRIPTION) is not None
    if draft.session.get("type") == "transcription":
        if not transcribes:
            yield draft.line(".".join(TRANSCRIPTION), "is what this type is for; none is no choice")
        if "voice" in draft.table.allow:
            yield f"{draft.origin('allow')}: a session of type transcription has no voice"
    elif "language" in draft.table.allow and not transcribes:
        yield f"{draft.origin('allow')}: language is the transcription's, and there is none"


def _secret_faults(draft: Draft) -> Iterator[str]:
    tools = draft.session.get("tools")
    for index, tool in enumerate(tools if isinstance(tools, list) else ()):
        for secret in ("authorization", "headers"):
            if isinstance(tool, dict) and secret in tool:
                yield draft.line(
                    f"tools[{index}].{secret}",
                    "whoever holds a token can read the tools, so no credential may stand here;"
                    " let a function tool call your own backend, which holds it",
                )


def _model_faults(error: ValidationError) -> Iterator[str]:
    for fault in error.errors(include_url=False, include_input=False):
        key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            yield f"{key}: {_unknown_key(str(fault['loc'][-1]))}"
        else:
            text = fault["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
            yield f"{key}: {text}"


def _unknown_key(key: str) -> str:
    if key in SESSION_ORDER:
        return f"is OpenAI's; write it as session.{key}"
    known = list(ProfileTable.model_fields)
    return f"is not a member of a profile{_did_you_mean(key, known)}; allowed: {', '.join(known)}"


def _did_you_mean(name: str, known: list[str]) -> str:
    near = () if name in known else difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""
