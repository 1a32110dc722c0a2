"""Making, listing, replacing and revoking service keys, and what is noted down about their use."""

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import partial
from typing import Any

import sqlalchemy as sa
import structlog
from pydantic import SecretStr

from app.audit.events import Event
from app.audit.log import Change, Log
from app.base.clock import Clock, to_unix_microseconds
from app.base.db import Database
from app.base.errors import Conflict, FieldError, InvalidRequest, NotFound
from app.base.ids import is_id, new_id
from app.identity.callers import Caller
from app.identity.service_keys import (
    KEY_SCOPE_MEANINGS,
    USE_EVERY,
    ServiceKey,
    ServiceKeys,
    service_keys,
    sha256_of,
    write_key,
)
from app.identity.users import OPERATOR

LIFETIME_DAYS = 90
LONGEST_LIFETIME_DAYS = 366
OVERLAP_HOURS = 24
LONGEST_OVERLAP_HOURS = 168
LONGEST_NAME = 64  # characters
MOST_PROFILES = 64

ENDS_SOON = timedelta(days=14)
"""How long before its end a key is mentioned."""


class _NothingLeft(Exception):
    """Somebody else has done it meanwhile."""


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that has just been made, with its text, which nobody can ask for again."""

    text: SecretStr
    key: ServiceKey


class KeyRing:
    """The service keys of this installation; each act leaves its row in the log.

    Where a method takes *by*, None is the operator on the command line.

    Args:
        recogniser: Remembers which keys were used.
        environment: ``live`` or ``sandbox``; keys say it.
        profile_names: The profiles of the role ``user``, which is what a key can be used for.
    """

    def __init__(
        self,
        *,
        recogniser: ServiceKeys,
        environment: str,
        profile_names: Collection[str],
        database: Database,
        log: Log,
        clock: Clock,
    ) -> None:
        self._recogniser = recogniser
        self._environment = environment
        self._profile_names = profile_names
        self._database = database
        self._log = log
        self._clock = clock
        self._warned_on = date.min
        self._logger = structlog.get_logger(__name__)

    async def create(
        self,
        name: str,
        *,
        scopes: Collection[str],
        profiles: Collection[str] | None = None,
        lifetime_days: int = LIFETIME_DAYS,
        by: Caller | None,
    ) -> NewKey:
        """Make a key.

        Args:
            name: For people: 1 to 64 printable characters.
            scopes: One or more of `KEY_SCOPE_MEANINGS`.
            profiles: The only ones it may be used for, 1 to 64; None for all that users may.
            lifetime_days: 1 to 366.
            by: Who makes it.

        Raises:
            InvalidRequest: One of these is something else.
        """
        _see_that(
            1 <= len(name) <= LONGEST_NAME and name.isprintable(),
            "name",
            f"must have 1 to {LONGEST_NAME} characters, all of them printable",
        )
        _see_that(
            bool(scopes) and KEY_SCOPE_MEANINGS.keys() >= set(scopes),
            "scopes",
            f"must be one or more of {', '.join(KEY_SCOPE_MEANINGS)}",
        )
        if profiles is not None:
            _see_that(
                1 <= len(profiles) <= MOST_PROFILES and set(self._profile_names) >= set(profiles),
                "profiles",
                f"must be 1 to {MOST_PROFILES} of {', '.join(self._profile_names)};"
                " leave it out for all of them",
            )
        _see_lifetime(lifetime_days)
        return await self._log.record(
            *self._making(
                name,
                scopes=" ".join(sorted(set(scopes))),
                profiles=None if profiles is None else " ".join(sorted(set(profiles))),
                lifetime_days=lifetime_days,
                by=by,
            )
        )

    async def all(self) -> list[ServiceKey]:
        """Return every key there ever was, oldest first."""
        wanted = service_keys.select().order_by(service_keys.c.created_at, service_keys.c.id)
        rows = await self._database.read(lambda tx: tx.execute(wanted).all())
        return [ServiceKey.of(row) for row in rows]

    async def revoke(self, key_id: str, *, by: Caller | None) -> ServiceKey:
        """End a key at once, unless it is revoked already: no mint that begins later succeeds.

        Raises:
            NotFound: There is no such key.
        """
        standing = (service_keys.c.id == key_id) & service_keys.c.revoked_at.is_(None)
        now = to_unix_microseconds(self._clock())
        update = service_keys.update().where(standing).values(revoked_at=now)

        def change(tx: sa.Connection) -> None:
            if tx.execute(update).rowcount == 0:
                raise _NothingLeft

        await self._get(key_id)  # or say that there is none
        with suppress(_NothingLeft):
            await self._log.record([_event("service_key.revoke", key_id, by)], change)
        return await self._get(key_id)

    async def rotate(
        self,
        key_id: str,
        *,
        overlap_hours: int = OVERLAP_HOURS,
        lifetime_days: int = LIFETIME_DAYS,
        by: Caller | None,
    ) -> NewKey:
        """Make the successor of a key, which itself stays good for a while.

        The successor has its name, scopes and profiles, and a lifetime of its own.

        Args:
            key_id: A key that is good, and has no successor yet.
            overlap_hours: How long it stays good, 0 to 168; never longer than it would have.
            lifetime_days: Of the successor, 1 to 366.
            by: Who does it.

        Raises:
            InvalidRequest: A figure is out of its range.
            NotFound: There is no such key.
            Conflict: It is not good any more, or has a successor.
        """
        _see_that(
            0 <= overlap_hours <= LONGEST_OVERLAP_HOURS,
            "overlapHours",
            f"must be 0 to {LONGEST_OVERLAP_HOURS}",
        )
        _see_lifetime(lifetime_days)
        old = await self._get(key_id)
        now = self._clock()
        if old.fault(now) is not None:
            raise Conflict("The key is not good any more. Make a new one.")
        if old.successor_id is not None:
            raise Conflict(f"The key has a successor already: {old.successor_id}. Rotate that one.")
        ends_at = min(old.expires_at, now + timedelta(hours=overlap_hours))
        events, insert = self._making(
            old.name,
            scopes=" ".join(sorted(old.scopes)),
            profiles=None if old.profiles is None else " ".join(sorted(old.profiles)),
            lifetime_days=lifetime_days,
            by=by,
        )
        successor_id = events[0].target
        c = service_keys.c
        unchanged = (c.id == key_id) & c.revoked_at.is_(None) & c.successor_id.is_(None)
        values = {"successor_id": successor_id, "expires_at": to_unix_microseconds(ends_at)}
        replace = service_keys.update().where(unchanged).values(values)

        def change(tx: sa.Connection) -> NewKey:
            if tx.execute(replace).rowcount == 0:
                raise Conflict("The key has been rotated or revoked just now.")
            return insert(tx)

        event = _event(
            "service_key.rotate",
            key_id,
            by,
            successor=successor_id,
            expires_at=int(ends_at.timestamp()),
        )
        return await self._log.record([event, *events], change)

    async def note_uses(self) -> None:
        """Write down which keys were used, each at most once a minute, all instances together.

        Raises:
            AuditUnavailable: It cannot be written down; the next round tries again.
        """
        for key_id, at in list(self._recogniser.used.items()):
            event = Event(
                action="service_key.use", outcome="succeeded", actor=key_id, credential=key_id
            )
            with suppress(_NothingLeft):
                await self._log.record([event], partial(_note_use, key_id=key_id, at=at))
            if self._recogniser.used.get(key_id) == at:
                del self._recogniser.used[key_id]

    async def warnings(self) -> list[str]:
        """Return one line for each key that ends soon, unless it has a successor."""
        now = self._clock()
        return [
            f"the service key {key.id} ({key.name}) ends on {key.expires_at:%Y-%m-%d}"
            f" (days left: {(key.expires_at - now).days}); replace it with:"
            f" realtime-tokens keys rotate {key.id}"
            for key in await self.all()
            if ends_soon(key, now) and key.successor_id is None
        ]

    async def warn(self) -> None:
        """Put the warnings into the server's log, once a day.

        Raises:
            AuditUnavailable: The keys cannot be read; the next round tries again.
        """
        today = self._clock().date()
        if today != self._warned_on:
            for line in await self.warnings():
                self._logger.warning("service_key_ends_soon", note=line)
            self._warned_on = today

    async def _get(self, key_id: str) -> ServiceKey:
        wanted = service_keys.select().where(service_keys.c.id == key_id)
        row = None
        if is_id(key_id, "key"):
            row = await self._database.read(lambda tx: tx.execute(wanted).first())
        if row is None:
            raise NotFound("There is no service key with this id.")
        return ServiceKey.of(row)

    def _making(
        self,
        name: str,
        *,
        scopes: str,
        profiles: str | None,
        lifetime_days: int,
        by: Caller | None,
    ) -> tuple[list[Event], Change[NewKey]]:
        """Return the row that tells of a new key, and the change that makes it."""
        key_id = new_id("key")
        text = write_key(key_id, environment=self._environment)
        now = self._clock()
        expires_at = now + timedelta(days=lifetime_days)
        row = {
            "id": key_id,
            "key_sha256": sha256_of(text),
            "name": name,
            "scopes": scopes,
            "profiles": profiles,
            "created_at": to_unix_microseconds(now),
            "expires_at": to_unix_microseconds(expires_at),
        }

        def insert(tx: sa.Connection) -> NewKey:
            tx.execute(service_keys.insert(), row)
            made = tx.execute(service_keys.select().where(service_keys.c.id == key_id)).one()
            return NewKey(SecretStr(text), ServiceKey.of(made))

        event = _event(
            "service_key.create",
            key_id,
            by,
            scopes=scopes,
            profiles=profiles,
            expires_at=int(expires_at.timestamp()),
        )
        return [event], insert


def ends_soon(key: ServiceKey, now: datetime) -> bool:
    """Tell whether *key* is good, and will not be for long."""
    return key.fault(now) is None and key.expires_at - now <= ENDS_SOON


def _note_use(tx: sa.Connection, *, key_id: str, at: int) -> None:
    last, before = service_keys.c.last_used_at, at - USE_EVERY // timedelta(microseconds=1)
    due = (service_keys.c.id == key_id) & (last.is_(None) | (last <= before))
    if tx.execute(service_keys.update().where(due).values(last_used_at=at)).rowcount == 0:
        raise _NothingLeft  # another instance has noted it


def _event(action: str, target: str, by: Caller | None, **facts: Any) -> Event:
    """Return the row that tells what *by* has done to the key *target*."""
    if by is None:
        return Event(action=action, outcome="succeeded", actor=OPERATOR, target=target, **facts)
    return Event(
        action=action,
        outcome="succeeded",
        actor=by.user_id,
        target=target,
        credential=by.credential,
        sign_in=by.sign_in_id,
        request_id=by.origin.request_id,
        personal=by.origin.personal(),
        **facts,
    )


def _see_lifetime(days: int) -> None:
    _see_that(
        1 <= days <= LONGEST_LIFETIME_DAYS, "lifetimeDays", f"must be 1 to {LONGEST_LIFETIME_DAYS}"
    )


def _see_that(holds: bool, field: str, reason: str) -> None:  # noqa: FBT001 - reads as a sentence
    """Refuse the request because of *field*, unless *holds*.

    Raises:
        InvalidRequest: It does not.
    """
    if not holds:
        raise InvalidRequest(errors=[FieldError(field, reason)])
