"""What OpenAI's own list says about models: kept beside the built-in catalogue, and laid over it.

`GET /v1/models` names ids and, for some, the first day without them. It does not say what a model
is good for, so it alters dates and nothing else.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from typing import Literal, TypeAlias

import sqlalchemy as sa

from app.base.clock import from_unix_microseconds, to_unix_microseconds
from app.base.db import metadata
from app.minting.catalogue import Catalogue
from app.minting.openai import UpstreamModel

MOST_UNKNOWN = 50
"""Ids that the catalogue does not know are kept up to here, in the order of the list."""

FARTHEST = timedelta(days=3653)
"""A shutdown is announced some months ahead; beyond ten years a date is a way of saying never."""

# An id that may be of interest. With a colon it is somebody's fine-tuned model.
_LOOKS_LIKE_OURS = re.compile(r"(?=.*(?:realtime|transcri|whisper))[a-z0-9][a-z0-9._-]{0,63}")

ChangeKind: TypeAlias = Literal[
    "date_announced", "date_moved", "date_withdrawn", "date_doubted", "appeared", "vanished"
]
CHANGE_KINDS: dict[ChangeKind, str] = {
    "date_announced": "its end was announced",
    "date_moved": "its end was moved",
    "date_withdrawn": "its end is no longer announced",
    "date_doubted": "OpenAI names an end that cannot be, so what was known stays",
    "appeared": "OpenAI lists it now",
    "vanished": "OpenAI lists it no longer",
}

listed_models = sa.Table(
    "listed_models",
    metadata,
    sa.Column("id", sa.String(256), primary_key=True),
    sa.Column("shutdown_date", sa.String(10)),  # YYYY-MM-DD, as OpenAI says; null if it says none
    sa.Column("said_at", sa.BigInteger, nullable=False),  # Unix µs; since when it says so
    sa.Column("doubted_at", sa.BigInteger),  # Unix µs; since when it says what cannot be
    sa.Column("listed_at", sa.BigInteger, nullable=False),  # Unix µs; when it was last in the list
)

model_look = sa.Table(
    "model_look",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),  # 1; the migration made it
    sa.Column("tried_at", sa.BigInteger),  # Unix µs
    sa.Column("succeeded_at", sa.BigInteger),  # Unix µs
    sa.Column("problem", sa.String(64)),  # code, when the last try failed
)


class Overtaken(Exception):
    """Another instance has looked meanwhile."""


@dataclass(frozen=True, slots=True)
class Look:
    """When OpenAI was last asked for its models, by whichever instance."""

    tried_at: datetime | None = None
    succeeded_at: datetime | None = None
    problem: str | None = None
    """Code of the problem, when the last try failed."""


@dataclass(frozen=True, slots=True)
class ListedModel:
    """What OpenAI's list says about one model."""

    id: str
    shutdown: date | None
    said_at: datetime
    """Since when it says so."""

    doubted_at: datetime | None
    """Since when it says something else that cannot be; `shutdown` is what it said before."""

    listed_at: datetime
    """When it was last in the list."""


@dataclass(frozen=True, slots=True)
class Change:
    """What two looks have found different about a model."""

    kind: ChangeKind
    model: str
    before: date | None
    """The end that held until now, built in or listed."""

    after: date | None
    """The end that holds now."""


@dataclass(frozen=True, slots=True)
class Findings:
    """All that has been found in OpenAI's list so far."""

    look: Look = Look()
    listed: Mapping[str, ListedModel] = field(default_factory=dict)

    def over(self, built_in: Catalogue) -> Catalogue:
        """Return the catalogue with the dates that OpenAI names in place of its own."""
        return built_in.with_shutdowns(
            {model.id: model.shutdown for model in self.listed.values() if model.shutdown}
        )

    def shutdown_of(self, model_id: str, built_in: Catalogue) -> date | None:
        """Return the first day without a model, whether the catalogue knows it or not."""
        listed, model = self.listed.get(model_id), built_in.get(model_id)
        return (listed and listed.shutdown) or (model and model.shutdown) or None

    def lists(self, model_id: str) -> bool | None:
        """Tell whether the latest list had a model; None before the first look."""
        if self.look.succeeded_at is None:
            return None
        listed = self.listed.get(model_id)
        return listed is not None and listed.listed_at == self.look.succeeded_at

    def unknown(self, built_in: Catalogue) -> list[ListedModel]:
        """Return what looks like ours in the latest list, and is not in the catalogue."""
        found = [m for m in self.listed.values() if built_in.get(m.id) is None and self.lists(m.id)]
        return sorted(found, key=lambda model: model.id)

    def failed(self, problem: str, *, now: datetime) -> "Findings":
        """Return the same after a look that failed."""
        return replace(self, look=replace(self.look, tried_at=now, problem=problem))

    def updated(
        self,
        answer: Sequence[UpstreamModel],
        *,
        built_in: Catalogue,
        used: Collection[str],
        now: datetime,
    ) -> "Findings":
        """Return what is known after a look at *now* that brought this *answer*.

        Args:
            answer: The list. Of two entries for one id the first counts.
            built_in: What it says of its own models stays when one is no longer listed.
            used: Ids that are of interest too.
            now: Differs from the time of the look before.
        """
        listed = {name: m for name, m in self.listed.items() if built_in.get(name) or name in used}
        places, seen = MOST_UNKNOWN, set()
        for model in answer:
            of_ours = built_in.get(model.id) is not None or model.id in used
            if model.id in seen or not (of_ours or _may_be_ours(model.id, built_in)):
                continue
            if not of_ours:
                if not places:
                    continue
                places -= 1
            seen.add(model.id)
            listed[model.id] = self._said(model, built_in=built_in, now=now)
        return Findings(Look(tried_at=now, succeeded_at=now), listed)

    def _said(self, model: UpstreamModel, *, built_in: Catalogue, now: datetime) -> ListedModel:
        """Return what is known of one model that is in the list.

        What is listed is alive: a day that has passed when it is first named, or is centuries
        away, is a slip, and none that should stop mints.
        """
        before = self.listed.get(model.id) or ListedModel(model.id, None, now, None, now)
        says, shipped = model.shutdown_date, built_in.get(model.id)
        news = says not in {None, before.shutdown, shipped and shipped.shutdown}
        if not model.date_is_readable or (
            news and says and not timedelta(0) < says - now.date() <= FARTHEST
        ):
            return replace(before, doubted_at=before.doubted_at or now, listed_at=now)
        said_at = before.said_at if says == before.shutdown else now
        return ListedModel(model.id, says, said_at, doubted_at=None, listed_at=now)


def changes(before: Findings, after: Findings, *, built_in: Catalogue) -> Iterator[Change]:
    """Give what a look has changed, model by model."""
    for name in sorted(before.listed.keys() | after.listed.keys()):
        was, holds = before.shutdown_of(name, built_in), after.shutdown_of(name, built_in)
        stranger = name not in before.listed and built_in.get(name) is None
        if stranger or (before.lists(name) is False and after.lists(name)):
            yield Change("appeared", name, was, holds)
        elif before.lists(name) and not after.lists(name):
            yield Change("vanished", name, was, was)
            continue  # what was known of it stays, or no longer matters
        if was != holds and not stranger:
            kind: ChangeKind = "date_announced" if was is None else "date_moved"
            yield Change(kind if holds else "date_withdrawn", name, was, holds)
        said, says = before.listed.get(name), after.listed.get(name)
        if says and says.doubted_at and not (said and said.doubted_at):
            yield Change("date_doubted", name, was, holds)


def read_findings(tx: sa.Connection, *, unless: Look) -> Findings | None:
    """Return what is known; None when nobody has looked since *unless*."""
    row = tx.execute(model_look.select().where(model_look.c.id == 1)).one()
    look = Look(_instant(row.tried_at), _instant(row.succeeded_at), row.problem)
    if look == unless:
        return None
    models = [
        ListedModel(
            id=row.id,
            shutdown=date.fromisoformat(row.shutdown_date) if row.shutdown_date else None,
            said_at=from_unix_microseconds(row.said_at),
            doubted_at=_instant(row.doubted_at),
            listed_at=from_unix_microseconds(row.listed_at),
        )
        for row in tx.execute(listed_models.select())
    ]
    return Findings(look, {model.id: model for model in models})


def write_findings(tx: sa.Connection, *, before: Findings, after: Findings) -> None:
    """Put *after* in the place of *before*.

    Raises:
        Overtaken: Another instance has put something else there.
    """
    c, look = model_look.c, after.look
    unchanged = (c.id == 1) & (c.tried_at == _microseconds(before.look.tried_at))
    values = {
        "tried_at": _microseconds(look.tried_at),
        "succeeded_at": _microseconds(look.succeeded_at),
        "problem": look.problem,
    }
    if tx.execute(model_look.update().where(unchanged).values(values)).rowcount == 0:
        raise Overtaken
    if after.listed != before.listed:
        tx.execute(listed_models.delete())
        rows = [
            {
                "id": model.id,
                "shutdown_date": model.shutdown.isoformat() if model.shutdown else None,
                "said_at": _microseconds(model.said_at),
                "doubted_at": _microseconds(model.doubted_at),
                "listed_at": _microseconds(model.listed_at),
            }
            for model in after.listed.values()
        ]
        if rows:
            tx.execute(listed_models.insert(), rows)


def _may_be_ours(model_id: str, built_in: Catalogue) -> bool:
    known_better = model_id in built_in.not_realtime
    return not known_better and _LOOKS_LIKE_OURS.fullmatch(model_id) is not None


def _instant(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else from_unix_microseconds(microseconds)


def _microseconds(at: datetime | None) -> int | None:
    return None if at is None else to_unix_microseconds(at)
