"""The people whom an external issuer vouches for: known by what it calls them, and by nothing else.

They have no address and no password here, and their role is what their token says. What they have
is a row, so that an admin can see and disable them.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from app.audit.events import Event, Personal
from app.audit.log import Log, Lookup
from app.base.clock import Clock, from_unix_microseconds, to_unix_microseconds
from app.base.db import Database, metadata
from app.base.errors import Conflict, NotFound
from app.base.ids import new_id
from app.identity.acts import By, act
from app.identity.erased import ERASED, is_erased
from app.identity.issuer_settings import LONGEST_ISSUER

LONGEST_SUBJECT = 255  # OpenID Connect Core, section 2

external_users = sa.Table(
    "external_users",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),  # usr_…, as for accounts of our own
    sa.Column("issuer", sa.String(LONGEST_ISSUER), nullable=False),  # `iss` of the tokens
    sa.Column("subject", sa.String(LONGEST_SUBJECT), nullable=False),  # what tells users apart
    sa.Column("created_at", sa.BigInteger, nullable=False),  # Unix µs
    sa.Column("disabled_at", sa.BigInteger),  # Unix µs
    sa.UniqueConstraint("issuer", "subject"),
)

STANDING = Lookup(
    columns=("external_users.id", "external_users.disabled_at"), source="external_users"
)
"""What has to be known of a user when they act."""


@dataclass(frozen=True, slots=True)
class ExternalUser:
    """One user of an external issuer."""

    id: str
    issuer: str
    subject: str
    created_at: datetime
    disabled_at: datetime | None

    @classmethod
    def of(cls, row: sa.Row[Any]) -> "ExternalUser":
        """Read a row of the table `external_users`."""
        return cls(
            id=row.id,
            issuer=row.issuer,
            subject=row.subject,
            created_at=from_unix_microseconds(row.created_at),
            disabled_at=from_unix_microseconds(row.disabled_at) if row.disabled_at else None,
        )


class ExternalUsers:
    """Gives users their row when they first come, and stops them; each act leaves its row."""

    def __init__(self, *, database: Database, log: Log, clock: Clock) -> None:
        self._database = database
        self._log = log
        self._clock = clock

    async def id_of(
        self,
        issuer: str,
        subject: str,
        *,
        credential: str,
        request_id: str | None,
        personal: Personal,
    ) -> str:
        """Return the `usr_…` of the one whom *issuer* calls *subject*, made when they are new.

        Args:
            issuer: One of the configured, at most 255 characters.
            subject: 1 to 255 printable ASCII characters.
            credential: The token that tells of them, for the row about a new user.
            request_id: Of the request that brings it.
            personal: Where that request comes from.

        Raises:
            AuditUnavailable: The database is away, or a new user cannot be written down.
        """
        c = external_users.c
        known = sa.select(c.id).where((c.issuer == issuer) & (c.subject == subject))
        if found := await self._database.read(lambda tx: tx.scalar(known)):
            return str(found)
        user_id = new_id("usr")
        row = {
            "id": user_id,
            "issuer": issuer,
            "subject": subject,
            "created_at": to_unix_microseconds(self._clock()),
            "disabled_at": None,
        }
        event = Event(
            action="user.create",
            outcome="succeeded",
            actor=user_id,
            credential=credential,
            request_id=request_id,
            personal=personal,
        )
        try:
            await self._log.record([event], lambda tx: tx.execute(external_users.insert(), row))
        except sa.exc.IntegrityError:
            # Another request of theirs was first, here or on another instance.
            return str(await self._database.read(lambda tx: tx.scalar(known)))
        return user_id

    async def get(self, user_id: str) -> ExternalUser | None:
        """Return the external user with this id, if there is one."""
        wanted = external_users.select().where(external_users.c.id == user_id)
        row = await self._database.read(lambda tx: tx.execute(wanted).first())
        return ExternalUser.of(row) if row else None

    async def all(self) -> list[ExternalUser]:
        """Return every external user, oldest first."""
        c = external_users.c
        wanted = external_users.select().order_by(c.created_at, c.id)
        rows = await self._database.read(lambda tx: tx.execute(wanted).all())
        return [ExternalUser.of(row) for row in rows]

    async def disable(self, user_id: str, *, by: By) -> ExternalUser:
        """Stop the user: no mint that begins later succeeds, whatever their issuer says.

        Raises:
            NotFound: No such external user.
        """
        now = to_unix_microseconds(self._clock())
        since = sa.func.coalesce(external_users.c.disabled_at, now)
        return await self._change(user_id, since, action="user.disable", by=by)

    async def enable(self, user_id: str, *, by: By) -> ExternalUser:
        """Let the user act again.

        Raises:
            NotFound: No such external user.
            Conflict: They were erased.
        """
        return await self._change(user_id, None, action="user.enable", by=by)

    async def _change(
        self, user_id: str, disabled_at: object, *, action: str, by: By
    ) -> ExternalUser:
        theirs = external_users.c.id == user_id

        def change(tx: sa.Connection) -> ExternalUser:
            tx.execute(external_users.update().where(theirs).values(disabled_at=disabled_at))
            row = tx.execute(external_users.select().where(theirs)).first()
            if row is None:
                raise NotFound("No external user has this id; see: realtime-tokens users list")
            if row.disabled_at is None and is_erased(row.id, row.subject):
                raise Conflict(ERASED)
            return ExternalUser.of(row)

        return await self._log.record([act(action, user_id, by)], change)
