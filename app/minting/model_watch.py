"""Keeps an eye on OpenAI's list of models, so that no end of one comes as a surprise."""

import asyncio
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import partial
from typing import Any, Literal, TypeAlias

import sqlalchemy as sa
import structlog

from app.audit.events import Event
from app.audit.log import Log
from app.base.clock import Clock
from app.base.db import Database
from app.base.errors import UpstreamMisconfigured, UpstreamProblem, UpstreamRejected
from app.base.metrics import Metrics
from app.identity.callers import Caller
from app.minting.catalogue import Catalogue, Model
from app.minting.listed_models import (
    CHANGE_KINDS,
    Change,
    Findings,
    ListedModel,
    Look,
    Overtaken,
    changes,
    read_findings,
    write_findings,
)
from app.minting.model_notices import ModelNotice, changed_lately, standing_notices
from app.minting.openai import OpenAI, UpstreamModel
from app.minting.profiles import Binding, Profiles

SERVICE = "service"
"""The actor of what the service does by itself."""

By: TypeAlias = Caller | str
"""Who asks: a caller, the operator on the command line, or `SERVICE`."""

EVERY = timedelta(days=1)
RETRY = timedelta(hours=1)
"""After a look that failed and may go well the next time."""

HELD_BACK_SECONDS = (180, 360)
"""How long a look that is due waits: another instance may be the one to do it, and OpenAI is not
asked by a service that restarts again and again."""


@dataclass(frozen=True, slots=True)
class ModelStanding:
    """A model of the catalogue as it stands on one day."""

    model: Model
    status: Literal["active", "deprecated", "retired"]
    days_left: int | None
    """Until its shutdown, from 1; None when it is off, or no end is announced."""

    source: Literal["built_in", "openai"] | None
    """Who names the day of its shutdown; None when nobody does."""

    said_at: datetime | None
    """Since when OpenAI names it."""

    listed: bool | None
    """Whether OpenAI's latest list had it; None before the first look."""

    profiles: tuple[str, ...]
    """The profiles that use it, by name."""


@dataclass(frozen=True, slots=True)
class ModelOverview:
    """All that there is to see about models on one day."""

    today: date
    look: Look
    models: tuple[ModelStanding, ...]
    unknown: tuple[ListedModel, ...]
    """What OpenAI lists and the catalogue does not know, as far as it looks like ours."""

    bindings: tuple[Binding, ...]


class ModelWatch:
    """Asks OpenAI once a day, and keeps the catalogue in force.

    That is the built-in one with the dates that OpenAI names. Every instance reads from the
    database what any of them has found.

    Args:
        built_in: The catalogue of this release.
        profiles: Resolve models by the catalogue in force, see `Profiles.follow`.
    """

    def __init__(
        self,
        *,
        built_in: Catalogue,
        profiles: Profiles,
        openai: OpenAI,
        database: Database,
        log: Log,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self.catalogue = built_in
        """The one in force."""

        self._built_in = built_in
        self._profiles = profiles
        self._openai = openai
        self._database = database
        self._log = log
        self._metrics = metrics
        self._clock = clock
        self._found = Findings()
        self._looking = asyncio.Lock()
        self._look_at: datetime | None = None
        self._warned_on = date.min
        self._logger = structlog.get_logger(__name__)
        metrics.expect_model_changes(CHANGE_KINDS)
        metrics.watch_models(self.days_left)

    async def read(self) -> None:
        """Take over what any instance has found meanwhile.

        Raises:
            AuditUnavailable: The database is away; what was known stays.
        """
        found = await self._database.read(partial(read_findings, unless=self._found.look))
        if found is not None:
            self._adopt(found)

    async def keep_up(self) -> None:
        """Read what others have found, look when it is time, and warn once a day; a chore.

        Raises:
            AuditUnavailable: The database is away; the next round tries again.
        """
        await self.read()
        now = self._clock()
        if not self._is_due(now):
            self._look_at = None
        elif self._look_at is None:
            least, most = HELD_BACK_SECONDS
            held_back = least + secrets.randbelow(most - least)
            self._look_at = now + timedelta(seconds=held_back)
        elif now >= self._look_at:
            self._look_at = None  # whatever comes of it, the next one waits too
            with suppress(UpstreamProblem):  # `refresh` has said so
                await self.refresh(by=SERVICE)
        self._warn()

    async def refresh(self, *, by: By) -> list[Change]:
        """Ask OpenAI for its models now, and return what that has changed.

        The look leaves a row, and so does each change.

        Raises:
            UpstreamProblem: OpenAI gave no list. What was known stays.
            AuditUnavailable: It cannot be written down; nothing has changed.
        """
        async with self._looking:
            await self.read()
            try:
                answer = await self._openai.list_models()
            except UpstreamProblem as problem:
                await self._note_failure(problem, by)
                raise
            return await self._note(answer, by)

    def overview(self) -> ModelOverview:
        """Return all that there is to see about models today."""
        today = self._clock().date()
        bindings = self._profiles.bindings(today)
        users = _users_of(bindings)
        return ModelOverview(
            today=today,
            look=self._found.look,
            models=tuple(
                self._standing(model, users.get(model.id, ()), today)
                for model in self.catalogue.models
            ),
            unknown=tuple(self._found.unknown(self._built_in)),
            bindings=tuple(bindings),
        )

    async def notices(self) -> list[ModelNotice]:
        """Return what an admin has to know about models: what is urgent first, news last.

        Raises:
            AuditUnavailable: The log cannot be read.
        """
        since = self._clock() - timedelta(days=7)
        news = await self._database.read(partial(changed_lately, since=since))
        return [*self._standing_notices(), *news]

    def days_left(self) -> Mapping[str, int]:
        """Return for each model in use whose end is announced how many days are left, from 1."""
        today = self._clock().date()
        return {
            name: (shutdown - today).days
            for name in _users_of(self._profiles.bindings(today))
            if (shutdown := self._found.shutdown_of(name, self._built_in)) and shutdown > today
        }

    def _is_due(self, now: datetime) -> bool:
        look = self._found.look
        if look.tried_at is None or now < look.tried_at:  # by a clock that was wrong
            return True
        # A key that may not list models will not be allowed to within the hour.
        done_for_today = look.problem in {None, UpstreamMisconfigured.code, UpstreamRejected.code}
        return now - look.tried_at >= (EVERY if done_for_today else RETRY)

    def _adopt(self, found: Findings) -> None:
        self._found = found
        self.catalogue = found.over(self._built_in)
        self._profiles.follow(self.catalogue)

    async def _note_failure(self, problem: UpstreamProblem, by: By) -> None:
        failed = _event(
            by,
            action="model.refresh",
            outcome="failed",
            reason=problem.code,
            upstream_status=problem.upstream_status,
            upstream_code=problem.upstream_code,
            upstream_request_id=problem.upstream_request_id,
        )
        while True:
            after = self._found.failed(problem.code, now=self._clock())
            if await self._replace(after, [failed]):
                break
        self._metrics.model_looks.labels("failed").inc()
        self._logger.warning("models_not_refreshed", problem=problem.code)

    async def _note(self, answer: tuple[UpstreamModel, ...], by: By) -> list[Change]:
        while True:
            now = self._clock()
            before, used = self._found, _users_of(self._profiles.bindings(now.date()))
            after = before.updated(answer, built_in=self._built_in, used=used, now=now)
            changed = list(changes(before, after, built_in=self._built_in))
            events = [_event(by, action="model.refresh", outcome="succeeded")]
            events += [_event_of(change, by) for change in changed]
            if await self._replace(after, events):
                break
        self._metrics.model_looks.labels("ok").inc()
        for change in changed:
            self._metrics.model_changes.labels(change.kind).inc()
            self._logger.warning(
                "model_changed",
                model=change.model,
                change=change.kind,
                shutdown_before=str(change.before or ""),
                shutdown_after=str(change.after or ""),
            )
        return changed

    async def _replace(self, after: Findings, events: list[Event]) -> bool:
        """Write *after* and *events* down; or take over what another instance has found meanwhile.

        Returns:
            Whether they were written.
        """

        def change(tx: sa.Connection) -> None:
            write_findings(tx, before=self._found, after=after)

        try:
            await self._log.record(events, change)
        except Overtaken:
            await self.read()
            return False
        self._adopt(after)
        return True

    def _standing(self, model: Model, users: tuple[str, ...], today: date) -> ModelStanding:
        listed = self._found.listed.get(model.id)
        said = listed is not None and listed.shutdown is not None
        ahead = (model.shutdown - today).days if model.shutdown else 0
        return ModelStanding(
            model=model,
            status=model.status_on(today),
            days_left=ahead if ahead > 0 else None,
            source=("openai" if said else "built_in") if model.shutdown else None,
            said_at=listed.said_at if listed and said else None,
            listed=self._found.lists(model.id),
            profiles=users,
        )

    def _standing_notices(self) -> list[ModelNotice]:
        today = self._clock().date()
        bindings = self._profiles.bindings(today)
        users = _users_of(bindings)
        return standing_notices(
            self._found, bindings=bindings, users=users, built_in=self._built_in, today=today
        )

    def _warn(self) -> None:
        """Put into the server's log what cannot wait, once a day."""
        today = self._clock().date()
        if today == self._warned_on:
            return
        for notice in self._standing_notices():
            if notice.severity != "info":
                self._logger.warning(notice.code, note=notice.detail, severity=notice.severity)
        self._warned_on = today


def _users_of(bindings: list[Binding]) -> dict[str, tuple[str, ...]]:
    """Return the models in use, each with the names of its profiles."""
    users: dict[str, tuple[str, ...]] = {}
    for binding in bindings:
        for use in binding.models:
            if use.used is not None:
                users[use.used] = (*users.get(use.used, ()), binding.profile.name)
    return users


def _event_of(change: Change, by: By) -> Event:
    return _event(
        by,
        action="model.change",
        outcome="succeeded",
        reason=change.kind,
        target=change.model,
        shutdown_before=change.before.isoformat() if change.before else None,
        shutdown_after=change.after.isoformat() if change.after else None,
    )


def _event(by: By, **facts: Any) -> Event:
    """Return the row that tells what *by* has done."""
    if not isinstance(by, Caller):
        return Event(actor=by, **facts)
    return Event(
        actor=by.user_id,
        credential=by.credential,
        sign_in=by.sign_in_id,
        request_id=by.origin.request_id,
        personal=by.origin.personal(),
        **facts,
    )
