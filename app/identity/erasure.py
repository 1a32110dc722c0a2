"""Erasing a person: what identifies them goes, what was done stays, and the chain stays whole."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import sqlalchemy as sa

from app.audit.events import audit_events, audit_personal
from app.audit.log import Log
from app.audit.personal_data import delete_personal
from app.base.clock import Clock, to_unix_microseconds
from app.base.db import Database
from app.base.errors import Conflict, NotFound
from app.base.ids import is_id
from app.identity.acts import By, act
from app.identity.erased import erased_account, erased_subject
from app.identity.external_users import external_users
from app.identity.passwords import Passwords
from app.identity.users import OPERATOR, end_all_credentials, see_another_admin, users

AT_ONCE = 2_000
"""Rows whose personal data go in one transaction."""

LOOKED_THROUGH = 20_000
"""Rows that are looked up, or through, in one read."""

_ERASE_USER, _ERASE_DATA = "user.erase", "personal_data.erase"


@dataclass(frozen=True, slots=True)
class Erased:
    """What was erased."""

    user_id: str
    rows: int  # whose personal data are gone


class Erasure:
    """Erases people, each act with its row."""

    def __init__(self, *, database: Database, log: Log, passwords: Passwords, clock: Clock) -> None:
        self._database = database
        self._log = log
        self._passwords = passwords
        self._clock = clock

    async def erase(self, who: str, *, by: By) -> Erased:
        """Erase what identifies a person, and disable their account for good.

        Args:
            who: The address of an account; the `usr_…` of one, or of an external issuer's user; the
                `eus_…` of a backend's end user.
            by: Who does it.

        Raises:
            NotFound: There is nobody of this name.
            Conflict: Admins would erase themselves, or the last admin; the operator may.
            Overloaded: Too many passwords are being checked.
            AuditUnavailable: The log is away; what was erased before stays so.
        """
        user_id, email = await self._database.read(partial(_find, who=who))
        if not isinstance(by, str) and by.user_id == user_id:
            raise Conflict("Nobody can erase themselves. Let another admin do it.")
        unknown = await self._passwords.hash(secrets.token_urlsafe())

        def stop(tx: sa.Connection) -> None:
            if by != OPERATOR:
                see_another_admin(tx, user_id)
            self._stop(tx, user_id=user_id, unknown=unknown)

        await self._log.record([act(_ERASE_USER, user_id, by)], stop)
        rows = 0
        while ids := await self._database.read(partial(_rows_of, user_id=user_id)):
            rows += await self._forget(ids, user_id, by)
        # Whoever tried to sign in with their address need not have been known to be them.
        after: str | None = ""
        while email is not None and after is not None:
            ids, after = await self._database.read(partial(_rows_with, email=email, after=after))
            rows += await self._forget(ids, user_id, by)
        # Last: as long as their name is there, whoever was interrupted can ask again.
        await self._log.record([], partial(self._take_name, user_id=user_id, unknown=unknown))
        await self._database.scrub()
        return Erased(user_id, rows)

    async def _forget(self, event_ids: Sequence[str], user_id: str, by: By) -> int:
        """Delete the personal data of these rows; return of how many there are."""
        for start in range(0, len(event_ids), AT_ONCE):
            some = event_ids[start : start + AT_ONCE]
            told = act(_ERASE_DATA, user_id, by, count=len(some))
            await self._log.record([told], partial(delete_personal, event_ids=some))
        return len(event_ids)

    def _stop(self, tx: sa.Connection, *, user_id: str, unknown: str) -> None:
        now = to_unix_microseconds(self._clock())
        values = {
            "password_hash": unknown,
            "disabled_at": sa.func.coalesce(users.c.disabled_at, now),
        }
        tx.execute(users.update().where(users.c.id == user_id).values(values))
        end_all_credentials(tx, user_id, now=now)
        theirs = external_users.c.id == user_id
        since = sa.func.coalesce(external_users.c.disabled_at, now)
        tx.execute(external_users.update().where(theirs).values(disabled_at=since))

    def _take_name(self, tx: sa.Connection, *, user_id: str, unknown: str) -> None:
        self._stop(tx, user_id=user_id, unknown=unknown)  # somebody may have enabled them meanwhile
        account, external = users.c.id == user_id, external_users.c.id == user_id
        tx.execute(users.update().where(account).values(email=erased_account(user_id)))
        tx.execute(external_users.update().where(external).values(subject=erased_subject(user_id)))


def _find(tx: sa.Connection, *, who: str) -> tuple[str, str | None]:
    """Return id and address of whoever is called *who*."""
    account = sa.select(users.c.id, users.c.email)
    if is_id(who, "usr"):
        if row := tx.execute(account.where(users.c.id == who)).first():
            return row.id, row.email
        external = sa.select(external_users.c.id).where(external_users.c.id == who)
        if tx.scalar(external):
            return who, None
    elif is_id(who, "eus"):
        seen = sa.select(audit_events.c.seq).where(audit_events.c.actor == who).limit(1)
        if tx.scalar(seen):
            return who, None
    elif who.isprintable():
        wanted = account.where(users.c.email == who.strip().lower())
        if row := tx.execute(wanted).first():
            return row.id, row.email
    raise NotFound("There is nobody of this name; see: realtime-tokens users list")


def _rows_of(tx: sa.Connection, *, user_id: str) -> Sequence[str]:
    """Return rows by and about them that still have personal data, as far as goes at once."""
    events, personal = audit_events.c, audit_personal.c
    # The rows about the erasing have the address of whoever does it, and come with each round.
    about = (events.target == user_id) & events.action.not_in([_ERASE_USER, _ERASE_DATA])
    theirs = sa.select(events.event_id).where((events.actor == user_id) | about)
    wanted = sa.select(personal.event_id).where(personal.event_id.in_(theirs))
    return tx.scalars(wanted.limit(LOOKED_THROUGH)).all()


def _rows_with(tx: sa.Connection, *, email: str, after: str) -> tuple[Sequence[str], str | None]:
    """Return the rows behind *after* that have this address, and how far was looked; None: all."""
    c = audit_personal.c
    some = sa.select(c.event_id).where(c.event_id > after).order_by(c.event_id)
    last = tx.scalar(sa.select(sa.func.max(some.limit(LOOKED_THROUGH).subquery().c.event_id)))
    if last is None:
        return [], None
    has_it = c.data.contains(f'"email":"{email}"', autoescape=True)
    found = sa.select(c.event_id).where(c.event_id > after, c.event_id <= last, has_it)
    return tx.scalars(found).all(), last
