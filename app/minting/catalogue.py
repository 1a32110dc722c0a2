"""OpenAI's Realtime models: what they serve, how long they live, what follows them.

The data is ``catalogue.toml`` beside this file. ``resolve`` turns what an operator asks for, a
family or an exact id, into the model to use on a given day.
"""

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from functools import cache
from importlib import resources
from typing import Any, Literal, Self, TypeAlias, get_args

from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass as checked_dataclass

from app.base.errors import ModelRetired

Kind: TypeAlias = Literal["speech", "transcription", "translation"]
SessionType: TypeAlias = Literal["realtime", "transcription"]
TurnDetection: TypeAlias = Literal["server_vad", "semantic_vad", "none"]
Transport: TypeAlias = Literal["webrtc", "websocket"]
Status: TypeAlias = Literal["active", "deprecated", "retired"]
ModelPolicy: TypeAlias = Literal["replace", "refuse"]

TRANSPORTS: tuple[Transport, ...] = get_args(Transport)
_TURN_DETECTIONS: tuple[TurnDetection, ...] = get_args(TurnDetection)
_NO_OTHERS = ConfigDict(extra="forbid")


class UnusableModel(Exception):
    """A configured model is unknown, not Realtime, or does not serve the session it is set for.

    The message says what would do.
    """


@dataclass(frozen=True, slots=True)
class Need:
    """What a session asks of one of its models."""

    kind: Literal["speech", "transcription"]
    """Whether it is the model that answers, or the one that writes down what was said."""

    session_type: SessionType
    turn_detection: TurnDetection

    def __str__(self) -> str:
        role = "speech model" if self.kind == "speech" else "transcriber"
        return (
            f"the {role} of a session of type {self.session_type}"
            f" with turn detection {self.turn_detection}"
        )


@checked_dataclass(frozen=True, slots=True, config=_NO_OTHERS)
class Terms:
    """Under which terms a model serves one type of session."""

    turn_detections: tuple[TurnDetection, ...] = _TURN_DETECTIONS
    transports: tuple[Transport, ...] = TRANSPORTS


@checked_dataclass(frozen=True, slots=True, config=_NO_OTHERS)
class Prices:
    """What a model costs, in USD; None where OpenAI asks nothing or says nothing."""

    text_input: Decimal | None = None
    """Per million tokens, as are the next seven."""

    cached_text_input: Decimal | None = None
    text_output: Decimal | None = None
    audio_input: Decimal | None = None
    cached_audio_input: Decimal | None = None
    audio_output: Decimal | None = None
    image_input: Decimal | None = None
    cached_image_input: Decimal | None = None

    audio_minute: Decimal | None = None
    """Per minute of audio, for models that are billed by time."""

    estimated_audio_minute: Decimal | None = None
    """About what the tokens of a minute cost, where OpenAI names a figure."""


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=_NO_OTHERS)
class Model:
    """One model id of OpenAI."""

    id: str
    family: str
    kind: Kind
    serves: Mapping[SessionType, Terms]
    """The types of session it serves; a type that is missing it does not serve."""

    alias_of: str | None = None
    """The dated id this one points at."""

    released: date | None = None
    deprecated: date | None = None
    """When OpenAI announced the shutdown, where that is known."""

    shutdown: date | None = None
    """First day without the model."""

    successor: str | None = None
    """The id OpenAI names as its replacement."""

    reasoning: bool = False
    """Whether it takes ``reasoning`` and ``parallel_tool_calls``."""

    context_tokens: int | None = None
    max_output_tokens: int | None = None
    """What the model can do; a session may ask for at most 4,096."""

    prices: Prices = Prices()

    def status_on(self, today: date) -> Status:
        """Return where in its life the model is; on the day of its shutdown it is off."""
        if self.shutdown is None:
            return "active"
        if today >= self.shutdown:
            return "retired"
        announced = self.deprecated is None or today >= self.deprecated
        return "deprecated" if announced else "active"

    def fits(self, need: Need) -> bool:
        """Tell whether the model does what *need* says, dead or alive."""
        terms = self.serves.get(need.session_type)
        return (
            self.kind == need.kind
            and terms is not None
            and need.turn_detection in terms.turn_detections
        )

    def may_stand_in(self, need: Need) -> bool:
        """Tell whether the model fits and keeps every transport open.

        Nobody chose a stand-in by name, so it must not change how clients have to connect.
        """
        return self.fits(need) and set(self.serves[need.session_type].transports) == {*TRANSPORTS}


@dataclass(frozen=True, slots=True)
class Notice:
    """Something about a mint that the caller and the operator should know."""

    code: Literal["model_deprecated", "model_replaced", "transcription_unavailable"]
    detail: str
    model: str | None = None
    """The deprecated model."""

    sunset: date | None = None
    """First day without it."""

    requested: str | None = None
    used: str | None = None

    def to_json(self) -> dict[str, str]:
        """Return the notice as it stands in a response; what is not set is left out."""
        members: dict[str, str | None] = {
            "code": self.code,
            "model": self.model,
            "sunset": self.sunset.isoformat() if self.sunset else None,
            "requested": self.requested,
            "used": self.used,
            "detail": self.detail,
        }
        return {name: value for name, value in members.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Resolved:
    """The model to use for what was asked."""

    asked: str
    used: str | None
    """None when a spoken session has to do without a transcriber."""

    model: Model | None
    """None when the id is allowed though unknown, and when none is used."""

    notices: tuple[Notice, ...] = ()


class Catalogue:
    """The models this service knows, in their order of preference."""

    def __init__(self, models: tuple[Model, ...], not_realtime: Mapping[str, str]) -> None:
        self.models = models
        self.not_realtime = not_realtime
        """Ids that look like Realtime models and are none, and why not."""
        self._by_id = {model.id: model for model in models}
        self.families = tuple(dict.fromkeys(model.family for model in models))

    @classmethod
    @cache
    def built_in(cls) -> Self:
        """Return the catalogue that comes with this release."""
        return cls.read(
            resources.files("app.minting").joinpath("catalogue.toml").read_text("utf-8")
        )

    @classmethod
    def read(cls, text: str) -> Self:
        """Return the catalogue that the TOML in *text* describes.

        Raises:
            ValueError: The data is wrong, which is a bug of whoever edited it.
        """
        data: dict[str, Any] = tomllib.loads(text, parse_float=Decimal)
        models = TypeAdapter(tuple[Model, ...]).validate_python(data.pop("models"))
        not_realtime = TypeAdapter(dict[str, str]).validate_python(data.pop("not_realtime"))
        if data:
            raise ValueError(f"unknown tables: {', '.join(data)}")
        catalogue = cls(models, not_realtime)
        if faults := list(catalogue._faults()):
            raise ValueError("; ".join(faults))
        return catalogue

    def with_shutdowns(self, shutdowns: Mapping[str, date]) -> "Catalogue":
        """Return the same catalogue with other ends.

        Nothing is asked of them: that a model ends before its successor does, or without one, is
        what OpenAI may announce any day, and `resolve` copes with it.

        Args:
            shutdowns: The first day without a model, by id; ids that are unknown here are passed
                over.
        """
        models = tuple(
            replace(model, shutdown=shutdowns.get(model.id, model.shutdown))
            for model in self.models
        )
        return Catalogue(models, self.not_realtime)

    def get(self, model_id: str) -> Model | None:
        """Return the model with exactly this id."""
        return self._by_id.get(model_id)

    def family(self, name: str) -> tuple[Model, ...]:
        """Return the models of a family, best first; none when there is no such family."""
        return tuple(model for model in self.models if model.family == name)

    def line_of(self, model: Model) -> Iterator[Model]:
        """Give *model*, its successor, the successor's successor and so on."""
        heir: Model | None = model
        while heir:
            yield heir
            heir = self._by_id[heir.successor] if heir.successor else None

    def _faults(self) -> Iterator[str]:
        if len(self._by_id) != len(self.models):
            yield "an id stands there twice"
        for model in self.models:
            if model.id in self.families or model.id in self.not_realtime:
                yield f"{model.id} is also something else"
            if (model.shutdown is None) != (model.successor is None):
                yield f"{model.id} needs both a shutdown date and a successor, or neither"
            if model.deprecated and not (model.shutdown and model.deprecated < model.shutdown):
                yield f"{model.id} is deprecated without a later shutdown date"
            if model.alias_of and model.alias_of not in self._by_id:
                yield f"{model.id} is an alias of nothing"
            heir = self._by_id.get(model.successor or model.id)
            if heir is None or heir.kind != model.kind:
                yield f"{model.id} has no successor of its kind"
            # Whoever follows must live longer; that also keeps the line from running in a circle.
            elif model.shutdown and heir.shutdown and heir.shutdown <= model.shutdown:
                yield f"{heir.id} does not outlive {model.id}, which it is to follow"


def resolve(
    asked: str,
    *,
    catalogue: Catalogue,
    today: date,
    policy: ModelPolicy,
    need: Need,
    allow_unknown: bool,
) -> Resolved:
    """Return the model to use today for *asked*, a family or an exact id.

    A family stands for its first model that is alive and fits. An exact id stands for itself, and
    once retired, if *policy* is to replace, for the first of its successors that is alive and fits.
    A spoken session for which no transcriber is left goes without one.

    Raises:
        UnusableModel: *asked* is unknown, not a Realtime model, or never served such a session.
        ModelRetired: *asked* is off and *policy* is to refuse, or nothing that lives fits.
    """
    exact = catalogue.get(asked)
    if exact is None and asked not in catalogue.families:
        return _resolve_unknown(asked, catalogue=catalogue, need=need, allow_unknown=allow_unknown)
    named = (exact,) if exact else catalogue.family(asked)
    if not any(model.fits(need) for model in named):
        by_hand = any(model.fits(replace(need, turn_detection="none")) for model in named)
        hint = "; with turn detection none it would" if by_hand else ""
        what_fits = _what_fits(catalogue, need, today)
        raise UnusableModel(f"{asked} does not serve as {need}; {what_fits}{hint}")

    candidates = tuple(catalogue.line_of(exact)) if exact and policy == "replace" else named

    def choice_on(day: date) -> Model | None:
        living = (model for model in candidates if model.status_on(day) != "retired")
        return next((model for model in living if model is exact or model.may_stand_in(need)), None)

    chosen = choice_on(today)
    if chosen is None:
        return _resolve_nothing(asked, exact, policy=policy, need=need)
    notices = []
    if exact and chosen is not exact:
        notices.append(_replaced(exact, chosen))
    if chosen.shutdown and chosen.status_on(today) == "deprecated":
        notices.append(_deprecated(chosen, chosen.shutdown, choice_on(chosen.shutdown)))
    return Resolved(asked, chosen.id, chosen, tuple(notices))


def _resolve_unknown(
    asked: str, *, catalogue: Catalogue, need: Need, allow_unknown: bool
) -> Resolved:
    if reason := catalogue.not_realtime.get(asked):
        raise UnusableModel(f"{asked} {reason}")
    if allow_unknown:
        return Resolved(asked, asked, None)
    suited = [model for model in catalogue.models if model.fits(need)]
    families = tuple(dict.fromkeys(model.family for model in suited))
    near = difflib.get_close_matches(asked, [*families, *(model.id for model in suited)], n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise UnusableModel(
        f"{asked} is not in the model catalogue{hint}; the family {' or '.join(families)} always"
        " works, and ALLOW_UNKNOWN_MODELS=true accepts any id"
    )


def _resolve_nothing(
    asked: str, exact: Model | None, *, policy: ModelPolicy, need: Need
) -> Resolved:
    refused = exact is not None and policy == "refuse"
    optional = need.kind == "transcription" and need.session_type == "realtime"
    if optional and not refused:
        detail = (
            "No transcription model that is left serves a spoken conversation with turn detection"
            f" {need.turn_detection}, so there is no transcription."
        )
        return Resolved(asked, None, None, (Notice("transcription_unavailable", detail),))
    since = f" on {exact.shutdown}" if exact else ""
    reason = "and this service does not replace models" if refused else "and nothing fits instead"
    raise ModelRetired(
        f"The model {asked} was shut down{since} {reason}. The operator has to name a live model."
    )


def _replaced(requested: Model, used: Model) -> Notice:
    detail = f"OpenAI shut {requested.id} down on {requested.shutdown}; {used.id} takes its place."
    return Notice("model_replaced", detail, requested=requested.id, used=used.id)


def _deprecated(model: Model, sunset: date, heir: Model | None) -> Notice:
    then = f"{heir.id} will take its place" if heir else "nothing that fits will take its place"
    detail = f"OpenAI shuts {model.id} down on {sunset}; {then}."
    return Notice("model_deprecated", detail, model=model.id, sunset=sunset)


def _what_fits(catalogue: Catalogue, need: Need, today: date) -> str:
    living = (model for model in catalogue.models if model.status_on(today) != "retired")
    fitting = [model.id for model in living if model.fits(need)]
    return f"these do: {', '.join(fitting)}" if fitting else "nothing does any more"
