"""What an admin has to know about models."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Literal, TypeAlias

import sqlalchemy as sa

from app.audit.matches import Filters
from app.audit.search import newest
from app.base.errors import UpstreamMisconfigured
from app.minting.catalogue import Catalogue
from app.minting.listed_models import CHANGE_KINDS, Findings
from app.minting.profiles import Binding

SOON_DAYS = 30
VERY_SOON_DAYS = 7

MOST_NEWS = 50

Severity: TypeAlias = Literal["urgent", "warning", "info"]
Code: TypeAlias = Literal[
    "profile_mints_nothing",
    "model_ends",
    "model_replaced",
    "transcription_unavailable",
    "model_not_listed",
    "date_doubted",
    "models_not_refreshed",
    "model_changed",
]


@dataclass(frozen=True, slots=True)
class ModelNotice:
    """Something to know, in a sentence."""

    code: Code
    severity: Severity
    detail: str
    model: str | None = None
    profiles: tuple[str, ...] = ()
    """Which are concerned, by name."""

    sunset: date | None = None
    """First day without the model."""

    days_left: int | None = None
    at: datetime | None = None
    """When it was found, where that is the news."""


def standing_notices(
    found: Findings,
    *,
    bindings: Sequence[Binding],
    users: Mapping[str, tuple[str, ...]],
    built_in: Catalogue,
    today: date,
) -> list[ModelNotice]:
    """Return what is the matter today, what is urgent first.

    Args:
        found: What OpenAI's list says.
        bindings: What the profiles use.
        users: The models in use, each with the names of its profiles.
        built_in: The catalogue of this release.
        today: Ends are counted from here.
    """
    notices = [
        *_of_profiles(bindings),
        *_of_ends(found, bindings=bindings, built_in=built_in, today=today),
        *_of_models(found, users=users),
        *_of_the_look(found),
    ]
    order: tuple[Severity, ...] = ("urgent", "warning", "info")
    return sorted(notices, key=lambda notice: order.index(notice.severity))


def changed_lately(tx: sa.Connection, *, since: datetime) -> list[ModelNotice]:
    """Return what the looks have changed, newest first, from the rows that tell of it."""
    rows = newest(tx, Filters(action="model.change", since=since), limit=MOST_NEWS)
    return [_news(row.recorded_at, row.members) for row in rows]


def _of_profiles(bindings: Sequence[Binding]) -> Iterator[ModelNotice]:
    for binding in bindings:
        name = binding.profile.name
        if binding.refusal:
            detail = f"The profile {name} mints nothing. {binding.refusal}"
            yield ModelNotice("profile_mints_nothing", "urgent", detail, profiles=(name,))
        for notice in binding.notices:
            # The end of a model is told once for all of its profiles, see below.
            if notice.code != "model_deprecated":
                detail = f"Profile {name}: {notice.detail}"
                yield ModelNotice(
                    notice.code, "warning", detail, model=notice.requested, profiles=(name,)
                )


def _of_ends(
    found: Findings, *, bindings: Sequence[Binding], built_in: Catalogue, today: date
) -> Iterator[ModelNotice]:
    # What comes after a model depends on the session; profiles that agree are told of together.
    endings: dict[tuple[str, date, str], list[str]] = {}
    for binding in bindings:
        told = {notice.model: notice.detail for notice in binding.notices}
        for use in binding.models:
            sunset = found.shutdown_of(use.used, built_in) if use.used else None
            if use.used and sunset and sunset > today:
                detail = told.get(use.used, f"OpenAI shuts {use.used} down on {sunset}.")
                endings.setdefault((use.used, sunset, detail), []).append(binding.profile.name)
    for (model, sunset, detail), profiles in endings.items():
        left = (sunset - today).days
        yield ModelNotice(
            "model_ends",
            _severity(left),
            f"{detail} Days left: {left}. Used by: {', '.join(profiles)}.",
            model=model,
            profiles=tuple(profiles),
            sunset=sunset,
            days_left=left,
        )


def _severity(days_left: int) -> Severity:
    if days_left <= VERY_SOON_DAYS:
        return "urgent"
    return "warning" if days_left <= SOON_DAYS else "info"


def _of_models(found: Findings, *, users: Mapping[str, tuple[str, ...]]) -> Iterator[ModelNotice]:
    for model, profiles in users.items():
        used_by = f"Used by: {', '.join(profiles)}."
        if found.lists(model) is False:
            yield ModelNotice(
                "model_not_listed",
                "warning",
                f"OpenAI's list does not have {model}. {used_by} See whether the API key's project"
                " may use it, or name another model.",
                model=model,
                profiles=profiles,
            )
        listed = found.listed.get(model)
        if listed and listed.doubted_at and found.lists(model):
            yield ModelNotice(
                "date_doubted",
                "warning",
                f"OpenAI's list names an end of {model} that cannot be. {used_by} What was known"
                " before stays: see OpenAI's deprecations page.",
                model=model,
                profiles=profiles,
                at=listed.doubted_at,
            )


def _of_the_look(found: Findings) -> Iterator[ModelNotice]:
    look = found.look
    if look.problem is None:
        return
    last = f"{look.succeeded_at:%Y-%m-%d %H:%M} UTC" if look.succeeded_at else "never"
    what_to_do = (
        " Let the API key list models."
        if look.problem == UpstreamMisconfigured.code
        else " It is tried again."
    )
    yield ModelNotice(
        "models_not_refreshed",
        "warning",
        f"OpenAI's list of models could not be had ({look.problem}); the last time it could:"
        f" {last}. What was known stays.{what_to_do}",
        at=look.tried_at,
    )


def _news(at: datetime, row: Mapping[str, Any]) -> ModelNotice:
    before, after = row.get("shutdown_before"), row.get("shutdown_after")
    days = f" It was {before or 'open'}, and is {after or 'open'}." if before != after else ""
    what = CHANGE_KINDS.get(row["reason"], "something has changed")
    return ModelNotice(
        "model_changed",
        "info",
        f"{row['target']}: {what}.{days}",
        model=row["target"],
        sunset=date.fromisoformat(after) if after else None,
        at=at,
    )
