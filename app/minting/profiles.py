"""Session profiles: what a token is bound to, and what a caller may choose about it."""

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from typing import Any, Literal, Self, TypeAlias, get_args

from app.base.errors import (
    FieldError,
    InvalidRequest,
    ModelRetired,
    OverrideNotAllowed,
    ProfileNotFound,
)
from app.minting.catalogue import (
    TRANSPORTS,
    Catalogue,
    Need,
    Notice,
    Resolved,
    SessionType,
    Transport,
    TurnDetection,
    UnusableModel,
    resolve,
)
from app.minting.profiles_file import Draft, ProfilesFault, not_json, read_drafts
from app.minting.session_members import (
    TRANSCRIPTION,
    TURN_DETECTION,
    VOICE,
    Json,
    MemberPath,
    as_voice,
    drop,
    has,
    member,
    put,
)
from app.minting.session_shape import VOICES, faults
from app.settings import Settings

__all__ = [
    "Binding",
    "ModelUse",
    "PlannedSession",
    "Profile",
    "Profiles",
    "ProfilesFault",
    "Wish",
]

Resolver: TypeAlias = Callable[..., Resolved]
"""``resolve``, with the catalogue and what the operator wants already filled in."""

SHORTEST_TTL_SECONDS = 10
LONGEST_VARIABLE = 2_000  # characters

_NO_TEMPERATURE = (
    "OPENAI_REALTIME_TEMPERATURE has no effect: OpenAI's Realtime API no longer has a temperature."
)

_LANGUAGE = re.compile("[a-z]{2}")
_VOICE = re.compile(rf"{'|'.join(VOICES)}|voice_[A-Za-z0-9_-]{{1,64}}")

# Surrogates cannot be written as UTF-8; the rest are control characters, but for the newline.
_UNPRINTABLE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Wish:
    """What a caller asks for. Nothing in it has been checked."""

    profile: str = "default"
    language: str | None = None
    """ISO-639-1 code of the language that is spoken, for the transcription."""

    voice: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    ttl_seconds: int | None = None


@dataclass(frozen=True, slots=True)
class Profile:
    """What a token may be bound to."""

    name: str
    description: str
    type: SessionType
    allow: tuple[str, ...]
    """What a caller may choose: ``language``, ``voice``."""

    variables: tuple[str, ...]
    """What a caller must give."""

    ttl_seconds: int
    roles: tuple[str, ...]
    session: Mapping[str, Any]
    """OpenAI's session, with models and {variables} as the operator wrote them."""


MOST_SESSIONS = 1000
"""Planned sessions that are kept; some kilobytes each."""


@dataclass(frozen=True, slots=True)
class PlannedSession:
    """The session one token is bound to, ready to be sent."""

    profile: str
    session: Json
    """Exactly what OpenAI gets and the caller sees. Others get the same object: never alter it."""

    ttl_seconds: int
    model: str
    """The model that answers; in a transcription session the one that transcribes."""

    model_asked: str
    """The same as the operator named it: a family or an id."""

    transcription_model: str | None
    language: str | None
    transports: tuple[Transport, ...]
    """Over which the models of this session can be reached."""

    notices: tuple[Notice, ...]
    config_digest: str
    """SHA-256 of ``session`` as compact JSON with sorted keys, in UTF-8; hex."""


@dataclass(frozen=True, slots=True)
class ModelUse:
    """A model that a profile names, and what became of that."""

    kind: Literal["speech", "transcription"]
    asked: str
    """A family or an id, as the operator named it."""

    used: str | None
    """None when a spoken session has to do without a transcriber."""


@dataclass(frozen=True, slots=True)
class Binding:
    """What a profile binds its tokens to on one day."""

    profile: Profile
    session: Json | None
    """As OpenAI would get it, its {variables} unfilled; None when the profile mints nothing."""

    models: tuple[ModelUse, ...] = ()
    transports: tuple[Transport, ...] = ()
    notices: tuple[Notice, ...] = ()
    refusal: str | None = None
    """Why the profile mints nothing."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """What of a planned session is the same for every caller on one day."""

    session_json: str
    """The session as text: reading it gives each mint a copy of its own, faster than deepcopy."""

    model: str
    model_asked: str
    models: tuple[ModelUse, ...]
    transports: tuple[Transport, ...]
    notices: tuple[Notice, ...]
    blanks: re.Pattern[str] | None
    """Finds the {variables} in the instructions."""


class Profiles:
    """The profiles of this installation.

    Args:
        profiles: Those of all roles.
        resolver: Says which model to use for what a profile asks.
        remarks: What else the operator should know, for ``warnings``.
    """

    def __init__(
        self, profiles: Sequence[Profile], *, resolver: Resolver, remarks: Sequence[str] = ()
    ) -> None:
        self._profiles = {profile.name: profile for profile in profiles}
        self._resolver = resolver
        self._remarks = remarks
        self._plans: dict[str, _Plan] = {}
        self._planned_on = date.min
        self._sessions: dict[tuple[str | int | None, ...], PlannedSession] = {}
        self._sessions_of = date.min

    @classmethod
    def read(cls, settings: Settings, *, catalogue: Catalogue, today: date) -> Self:
        """Read the profile that the settings give, and those of the profiles file.

        A model that has been shut down is no fault, so that what ran yesterday starts today; see
        ``warnings``.

        Raises:
            ProfilesFault: With one line for each thing that is wrong.
        """
        resolver = partial(
            resolve,
            catalogue=catalogue,
            policy=settings.model_policy,
            allow_unknown=settings.allow_unknown_models,
        )
        drafts, lines = read_drafts(settings)
        for draft in drafts:
            lines += _session_faults(draft, resolver, today)
        if lines:
            raise ProfilesFault(lines)
        remarks = [_NO_TEMPERATURE] if settings.openai_realtime_temperature is not None else []
        return cls([_profile_of(draft) for draft in drafts], resolver=resolver, remarks=remarks)

    def follow(self, catalogue: Catalogue) -> None:
        """Resolve models by *catalogue* from now on; it differs from the present one in dates."""
        self._resolver = partial(self._resolver, catalogue=catalogue)
        self._plans, self._sessions = {}, {}

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of all profiles."""
        return tuple(self._profiles)

    def for_role(self, role: str, *, only: Collection[str] | None = None) -> tuple[Profile, ...]:
        """Return the profiles a caller of this role may ask for; of those, *only* the named."""
        return tuple(
            profile
            for profile in self._profiles.values()
            if role in profile.roles and (only is None or profile.name in only)
        )

    def known_name(self, name: str) -> str | None:
        """Return *name* if a profile has it, for a log that takes nothing a stranger made up."""
        return name if name in self._profiles else None

    def session_for(
        self, role: str, wish: Wish, *, today: date, only: Collection[str] | None = None
    ) -> PlannedSession:
        """Return the session that a caller of this role gets for *wish*.

        Args:
            role: Who may ask for a profile at all.
            wish: What the caller asks for.
            today: Decides which models there are.
            only: Names of the profiles that the caller is restricted to.

        Raises:
            ProfileNotFound: There is no such profile, or not for this caller.
            OverrideNotAllowed: The profile does not let the caller choose that.
            InvalidRequest: What the caller chose or filled in is not possible.
            ModelRetired: The profile's model is off, and nothing may or can stand in for it.
        """
        profile = self._profiles.get(wish.profile)
        restricted = only is not None and wish.profile not in only
        if profile is None or role not in profile.roles or restricted:
            names = ", ".join(allowed.name for allowed in self.for_role(role, only=only)) or "none"
            raise ProfileNotFound(f"There is no such profile for this caller. There are: {names}.")
        _check(wish, profile)
        if wish.variables:
            return self._session_for(profile, wish, today)
        # Few sessions differ but in their variables, so nearly all mints find theirs here.
        if today != self._sessions_of or len(self._sessions) >= MOST_SESSIONS:
            self._sessions, self._sessions_of = {}, today
        key = (profile.name, wish.language, wish.voice, wish.ttl_seconds)
        if key not in self._sessions:
            self._sessions[key] = self._session_for(profile, wish, today)
        return self._sessions[key]

    def _session_for(self, profile: Profile, wish: Wish, today: date) -> PlannedSession:
        plan = self._plan_for(profile, today)
        session = json.loads(plan.session_json)
        if plan.blanks:
            session["instructions"] = plan.blanks.sub(
                lambda blank: wish.variables[blank[1]], session["instructions"]
            )
        transcription = member(session, TRANSCRIPTION)
        if transcription and wish.language:
            transcription.pop("languages", None)  # OpenAI takes one or the other
            transcription["language"] = wish.language
        if wish.voice:
            put(session, VOICE, as_voice(wish.voice))
        return PlannedSession(
            profile=profile.name,
            session=session,
            ttl_seconds=wish.ttl_seconds or profile.ttl_seconds,
            model=plan.model,
            model_asked=plan.model_asked,
            transcription_model=transcription["model"] if transcription else None,
            language=transcription.get("language") if transcription else None,
            transports=plan.transports,
            notices=plan.notices,
            config_digest=_digest(session),
        )

    def warnings(self, today: date) -> list[str]:
        """Return what the operator should know today, one line each, for the start-up log."""
        lines = list(self._remarks)
        for binding in self.bindings(today):
            name = binding.profile.name
            if binding.refusal:
                lines.append(f"profile {name} mints nothing: {binding.refusal}")
            for notice in binding.notices:
                left = f" {(notice.sunset - today).days} days are left." if notice.sunset else ""
                lines.append(f"profile {name}: {notice.detail}{left}")
        return lines

    def bindings(self, today: date) -> list[Binding]:
        """Return for each profile what it binds its tokens to."""
        return [self._binding(profile, today) for profile in self._profiles.values()]

    def _binding(self, profile: Profile, today: date) -> Binding:
        try:
            plan = self._plan_for(profile, today)
        except ModelRetired as refusal:
            return Binding(profile, None, refusal=refusal.detail)
        session = json.loads(plan.session_json)
        return Binding(profile, session, plan.models, plan.transports, plan.notices)

    def _plan_for(self, profile: Profile, today: date) -> _Plan:
        if today != self._planned_on:
            self._plans, self._planned_on = {}, today
        if profile.name not in self._plans:
            self._plans[profile.name] = _plan(profile, self._resolver, today)
        return self._plans[profile.name]


def _profile_of(draft: Draft) -> Profile:
    return Profile(
        name=draft.name,
        description=draft.table.description,
        type=draft.session["type"],
        allow=tuple(draft.table.allow),
        variables=tuple(draft.table.variables),
        ttl_seconds=draft.table.ttl_seconds,
        roles=tuple(draft.table.roles),
        session=draft.session,
    )


def _models_of(session: Mapping[str, Any]) -> list[tuple[MemberPath, Need]]:
    """Return where *session* names a model, and what it needs of it; first the one that answers."""
    session_type = session["type"]
    if session_type not in get_args(SessionType):
        return []  # a draft with a fault
    turn_detection = _turn_detection(session)
    needs: list[tuple[MemberPath, Need]] = []
    if session_type == "realtime":
        needs.append((("model",), Need("speech", session_type, turn_detection)))
    if member(session, TRANSCRIPTION):
        transcriber = Need("transcription", session_type, turn_detection)
        needs.append(((*TRANSCRIPTION, "model"), transcriber))
    return needs


def _turn_detection(session: Mapping[str, Any]) -> TurnDetection:
    if has(session, TURN_DETECTION) and member(session, TURN_DETECTION) is None:
        return "none"
    kind = member(session, (*TURN_DETECTION, "type"))
    return "semantic_vad" if kind == "semantic_vad" else "server_vad"  # OpenAI's default


def _plan(profile: Profile, resolver: Resolver, today: date) -> _Plan:
    session: Json = deepcopy(dict(profile.session))
    places = _models_of(session)
    transports = set(TRANSPORTS)
    models: list[ModelUse] = []
    notices: list[Notice] = []
    for path, need in places:
        resolved = resolver(member(session, path), need=need, today=today)
        models.append(ModelUse(need.kind, resolved.asked, resolved.used))
        notices += resolved.notices
        if resolved.used is None:
            drop(session, TRANSCRIPTION)
        else:
            put(session, path, resolved.used)
        if resolved.model:
            transports &= set(resolved.model.serves[profile.type].transports)
    answering = places[0][0]
    names = "|".join(profile.variables)
    return _Plan(
        session_json=json.dumps(session),
        model=member(session, answering),
        model_asked=member(profile.session, answering),
        models=tuple(models),
        transports=tuple(way for way in TRANSPORTS if way in transports),
        notices=tuple(notices),
        blanks=re.compile(f"{{({names})}}") if names else None,
    )


def _session_faults(draft: Draft, resolver: Resolver, today: date) -> Iterator[str]:
    """Give what OpenAI would refuse about the session of *draft*, were it minted today."""
    session = deepcopy(draft.session)
    unfit = set()
    for path, need in _models_of(session):
        asked = member(session, path)
        if not isinstance(asked, str):
            continue  # named below
        try:
            resolved = resolver(asked, need=need, today=today)
        except UnusableModel as error:
            unfit.add(need.kind)
            yield draft.line(".".join(path), str(error))
        except ModelRetired:
            continue  # not for the start to refuse, see Profiles.warnings
        else:
            put(session, path, resolved.used or asked)
            if need.kind == "speech":
                yield from _reasoning_faults(draft, resolved)
    if unsayable := list(not_json(session)):
        yield from (draft.line(param, what) for param, what in unsayable)
        return  # OpenAI's rules are about JSON
    for fault in faults(session):
        # That an unfit transcriber knows no turn detection has been said, with what fits instead.
        if "transcription" not in unfit or fault.param != "session.audio.input.turn_detection":
            yield draft.line_for(fault)


def _reasoning_faults(draft: Draft, speech: Resolved) -> Iterator[str]:
    if speech.model and not speech.model.reasoning:
        for name in ("reasoning", "parallel_tool_calls"):
            if name in draft.session:
                yield draft.line(name, f"{speech.used} is no reasoning model; the family mini is")


def _check(wish: Wish, profile: Profile) -> None:
    chosen = {"language": wish.language, "voice": wish.voice}
    denied = [
        name for name, value in chosen.items() if value is not None and name not in profile.allow
    ]
    if denied:
        raise OverrideNotAllowed(
            f"The profile {profile.name} does not let the caller choose {' or '.join(denied)}."
        )
    if errors := list(_field_errors(wish, profile)):
        raise InvalidRequest(errors=errors)


def _field_errors(wish: Wish, profile: Profile) -> Iterator[FieldError]:
    if wish.language is not None and not _LANGUAGE.fullmatch(wish.language):
        yield FieldError("language", "must be an ISO-639-1 code such as en")
    if wish.voice is not None and not _VOICE.fullmatch(wish.voice):
        yield FieldError("voice", f"must be one of {', '.join(VOICES)}, or a custom voice_…")
    longest = profile.ttl_seconds
    if wish.ttl_seconds is not None and not SHORTEST_TTL_SECONDS <= wish.ttl_seconds <= longest:
        yield FieldError("ttlSeconds", f"must be {SHORTEST_TTL_SECONDS} to {longest}")
    for name in profile.variables:
        value = wish.variables.get(name)
        if value is None:
            yield FieldError(f"variables.{name}", "is missing, and this profile needs it")
        elif not 1 <= len(value) <= LONGEST_VARIABLE:
            yield FieldError(f"variables.{name}", f"must have 1 to {LONGEST_VARIABLE} characters")
        elif _UNPRINTABLE.search(value):
            yield FieldError(f"variables.{name}", "must have no control characters but newlines")
    if not wish.variables.keys() <= set(profile.variables):
        declared = ", ".join(profile.variables) or "none"
        yield FieldError("variables", f"has a name this profile does not know; it knows {declared}")


def _digest(session: Json) -> str:
    canonical = json.dumps(session, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
