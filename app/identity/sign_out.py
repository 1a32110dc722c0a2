"""Ending sign-ins: by a token of theirs, all of a user's at once, and those whose time is over."""

from contextlib import suppress

import sqlalchemy as sa

from app.audit.events import Event
from app.audit.log import Log
from app.base.clock import Clock, to_unix_microseconds
from app.base.db import Database
from app.base.errors import Conflict, InvalidToken, NotFound
from app.base.ids import is_id
from app.identity import refresh_tokens
from app.identity.access_tokens import AccessTokens
from app.identity.acts import act
from app.identity.callers import Caller, Origin
from app.identity.refresh_tokens import is_refresh_token
from app.identity.users import sign_ins, users

AT_ONCE = 50
"""Sign-ins deleted in one round; each may have some thousand refresh tokens."""


class _NothingLeft(Exception):
    """Somebody else has done it meanwhile."""


class SignOut:
    """Ends sign-ins; what was issued under them is refused from then on, on every instance."""

    def __init__(
        self, *, database: Database, log: Log, access_tokens: AccessTokens, clock: Clock
    ) -> None:
        self._database = database
        self._log = log
        self._access_tokens = access_tokens
        self._clock = clock

    async def by_token(self, token: str, origin: Origin) -> None:
        """End the sign-in that *token* comes from; nothing happens when it is none of ours.

        Args:
            token: Anything a stranger may have sent. An access token has to be good still, while
                any refresh token that we remember will do, a used or expired one too.
            origin: Where the request comes from.

        Raises:
            AuditUnavailable: It cannot be written down; the sign-in goes on.

        Source: RFC 7009 section 2.
        """
        if is_refresh_token(token):
            found = await self._database.read(lambda tx: refresh_tokens.find(tx, token))
            if found is not None:
                await self.end(found.sign_in_id, user_id=found.user.id, origin=origin)
            return
        with suppress(InvalidToken):
            claims = self._access_tokens.verify(token)
            await self.end(claims.sid, user_id=claims.sub, origin=origin)

    async def end(
        self, sign_in_id: str, *, user_id: str, origin: Origin, reason: str | None = None
    ) -> None:
        """End one sign-in of *user_id*, unless it has ended already.

        Raises:
            AuditUnavailable: It cannot be written down; the sign-in goes on.
        """
        wanted = (sign_ins.c.id == sign_in_id) & (sign_ins.c.user_id == user_id)

        def revoke(tx: sa.Connection) -> None:
            if self._revoke(tx, wanted) == 0:
                raise _NothingLeft

        event = Event(
            action="sign_in.revoke",
            outcome="succeeded",
            reason=reason,
            actor=user_id,
            sign_in=sign_in_id,
            request_id=origin.request_id,
            personal=origin.personal(),
        )
        with suppress(_NothingLeft):
            await self._log.record([event], revoke)

    async def everywhere(self, caller: Caller) -> None:
        """End every sign-in of the caller, this one too.

        Raises:
            Conflict: The caller signed in at an identity provider, and can only sign out there.
            AuditUnavailable: It cannot be written down; all of them go on.
        """
        if caller.sign_in_id is None:
            raise Conflict("You are signed in at your identity provider. Sign out there.")
        event = Event(
            action="user.sign_out",
            outcome="succeeded",
            actor=caller.user_id,
            credential=caller.credential,
            sign_in=caller.sign_in_id,
            request_id=caller.origin.request_id,
            personal=caller.origin.personal(),
        )
        wanted = sign_ins.c.user_id == caller.user_id
        await self._log.record([event], lambda tx: self._revoke(tx, wanted))

    async def of_user(self, user_id: str, *, by: Caller) -> None:
        """End every sign-in of an account, at the word of an admin.

        Raises:
            NotFound: No account has this id.
            AuditUnavailable: It cannot be written down; all of them go on.
        """
        if not is_id(user_id, "usr"):  # PostgreSQL would not take every text, such as a NUL
            raise NotFound("No account has this id.")
        known = sa.select(users.c.id).where(users.c.id == user_id)

        def revoke(tx: sa.Connection) -> None:
            if tx.execute(known).first() is None:
                raise NotFound("No account has this id.")
            self._revoke(tx, sign_ins.c.user_id == user_id)

        await self._log.record([act("user.sign_out", user_id, by)], revoke)

    async def forget_expired(self) -> int:
        """Delete sign-ins past their lifetime, with all their refresh tokens; return how many.

        A sign-in that is gone is refused like one that has expired.

        Raises:
            AuditUnavailable: It cannot be written down; they stay.
        """
        now = to_unix_microseconds(self._clock())
        expired = sa.select(sign_ins.c.id).where(sign_ins.c.expires_at <= now).limit(AT_ONCE)
        ids = await self._database.read(lambda tx: tx.scalars(expired).all())
        if not ids:
            return 0

        def delete(tx: sa.Connection) -> None:
            if tx.execute(sign_ins.delete().where(sign_ins.c.id.in_(ids))).rowcount < len(ids):
                raise _NothingLeft  # the row would count what another instance deleted

        event = Event(action="sign_in.expire", outcome="succeeded", count=len(ids))
        try:
            await self._log.record([event], delete)
        except _NothingLeft:
            return 0
        return len(ids)

    def _revoke(self, tx: sa.Connection, wanted: sa.ColumnElement[bool]) -> int:
        """End the *wanted* sign-ins that stand; return how many did."""
        standing = wanted & sign_ins.c.revoked_at.is_(None)
        now = to_unix_microseconds(self._clock())
        return tx.execute(sign_ins.update().where(standing).values(revoked_at=now)).rowcount
