"""Everybody whom the service knows: its own accounts, and the users of other issuers."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from app.base.clock import from_unix_microseconds
from app.base.db import Database
from app.base.errors import InvalidCursor, NotFound
from app.base.ids import is_id
from app.identity.acts import By
from app.identity.external_users import ExternalUsers, external_users
from app.identity.users import Role, Users, users

LARGEST_PAGE = 200

LONGEST_SEARCH = 254
"""Characters; as long as an address may be."""


@dataclass(frozen=True, slots=True)
class Person:
    """One user, of whichever kind."""

    id: str
    name: str
    """The e-mail address; of an external user what their issuer calls them."""

    issuer: str | None
    """Who vouches for them; None for an account of our own."""

    role: Role | None
    """None for external users: it stands in their tokens."""

    created_at: datetime
    disabled_at: datetime | None
    last_sign_in_at: datetime | None
    """With the password; external users never sign in here."""

    @classmethod
    def of(cls, row: sa.Row[Any]) -> "Person":
        """Read a row of `_EVERYBODY`."""
        return cls(
            id=row.id,
            name=row.name,
            issuer=row.issuer,
            role=row.role,
            created_at=from_unix_microseconds(row.created_at),
            disabled_at=_instant(row.disabled_at),
            last_sign_in_at=_instant(row.last_sign_in_at),
        )


@dataclass(frozen=True, slots=True)
class People:
    """A page of users, newest first, and where the next one begins."""

    people: Sequence[Person]
    next_cursor: str | None


_EVERYBODY = (
    sa.select(
        users.c.id,
        users.c.email.label("name"),
        sa.null().cast(sa.String).label("issuer"),
        users.c.role,
        users.c.created_at,
        users.c.disabled_at,
        users.c.last_sign_in_at,
    )
    .union_all(
        sa.select(
            external_users.c.id,
            external_users.c.subject,
            external_users.c.issuer,
            sa.null().cast(sa.String),
            external_users.c.created_at,
            external_users.c.disabled_at,
            sa.null().cast(sa.BigInteger),
        )
    )
    .subquery("everybody")
)


class Directory:
    """Lists everybody, and stops and lets act whoever it is."""

    def __init__(self, *, database: Database, users: Users, external_users: ExternalUsers) -> None:
        self._database = database
        self._users = users
        self._external_users = external_users

    async def page(
        self, *, limit: int, search: str | None = None, cursor: str | None = None
    ) -> People:
        """Return up to *limit* users, newest first.

        Args:
            limit: 1 to `LARGEST_PAGE`.
            search: A part of the name, in lower or upper case, or the whole id; printable.
            cursor: ``next_cursor`` of the page before: the id of its last user.

        Raises:
            InvalidCursor: *cursor* is nobody's.
        """
        c = _EVERYBODY.c
        wanted = sa.select(_EVERYBODY).order_by(c.created_at.desc(), c.id.desc()).limit(limit + 1)
        if search:
            wanted = wanted.where((c.id == search) | _holds(c.name, search))
        if cursor is not None:
            last = await self._find(cursor)
            if last is None:
                raise InvalidCursor
            after = (last.created_at, last.id)
            wanted = wanted.where(sa.tuple_(c.created_at, c.id) < sa.tuple_(*after))
        rows = await self._database.read(lambda tx: tx.execute(wanted).all())
        people = [Person.of(row) for row in rows[:limit]]
        return People(people, people[-1].id if len(rows) > limit else None)

    async def get(self, user_id: str) -> Person:
        """Return one user.

        Raises:
            NotFound: Nobody has this id.
        """
        row = await self._find(user_id)
        if row is None:
            raise NotFound("Nobody has this id.")
        return Person.of(row)

    async def known(self, ids: Collection[str]) -> dict[str, Person]:
        """Return those of *ids* who are users, by id."""
        wanted = sa.select(_EVERYBODY).where(_EVERYBODY.c.id.in_(ids))
        rows = await self._database.read(lambda tx: tx.execute(wanted).all())
        return {row.id: Person.of(row) for row in rows}

    async def set_role(self, user_id: str, role: str, *, by: By) -> Person:
        """Give an account another role; external users have theirs from their issuer.

        Raises:
            NotFound: No account has this id.
            InvalidRequest, Conflict: See `Users.set_role`.
        """
        if not is_id(user_id, "usr") or await self._users.get(user_id) is None:
            raise NotFound("No account has this id.")
        await self._users.set_role(user_id, role, by=by)
        return await self.get(user_id)

    async def disable(self, user_id: str, *, by: By) -> Person:
        """Stop a user: no mint that begins later succeeds, and their sign-ins end.

        Raises:
            NotFound: Nobody has this id.
            Conflict: See `Users.disable`.
        """
        await (await self._holder(user_id)).disable(user_id, by=by)
        return await self.get(user_id)

    async def enable(self, user_id: str, *, by: By) -> Person:
        """Let a user act again.

        Raises:
            NotFound: Nobody has this id.
            Conflict: They were erased.
        """
        await (await self._holder(user_id)).enable(user_id, by=by)
        return await self.get(user_id)

    async def _holder(self, user_id: str) -> Users | ExternalUsers:
        person = await self.get(user_id)
        return self._users if person.issuer is None else self._external_users

    async def _find(self, user_id: str) -> sa.Row[Any] | None:
        if not is_id(user_id, "usr"):  # PostgreSQL would not take every text, such as a NUL
            return None
        wanted = sa.select(_EVERYBODY).where(_EVERYBODY.c.id == user_id)
        return await self._database.read(lambda tx: tx.execute(wanted).first())


def _holds(column: sa.ColumnElement[str], part: str) -> sa.ColumnElement[bool]:
    """Return the condition that *column* has *part* in it, whatever the case of its letters."""
    return sa.func.lower(column).contains(part.lower(), autoescape=True)


def _instant(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else from_unix_microseconds(microseconds)
