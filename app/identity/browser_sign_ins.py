"""Sign-ins that a browser holds as a cookie, for the pages under `/admin`.

The cookie is opaque, and known to the database by its digest alone. Behind it stands a sign-in like
any other, so that whatever ends those ends these: a disabled account, another role or password, a
sign-out everywhere.
"""

import hashlib
import hmac
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import sqlalchemy as sa

from app.audit.denials import Denials
from app.audit.events import Event
from app.audit.log import Log
from app.base.clock import Clock, from_unix_microseconds, to_unix_microseconds
from app.base.db import Database, metadata
from app.base.errors import (
    AuditUnavailable,
    FieldError,
    InsufficientScope,
    InvalidRequest,
    InvalidToken,
    RateLimited,
    Unauthenticated,
)
from app.base.ids import new_id
from app.identity.callers import Caller, Callers, Origin
from app.identity.guessing import PasswordGuesses
from app.identity.passwords import Passwords
from app.identity.sign_in import SignIn, insert_sign_in, signed_in
from app.identity.users import SCOPES, User, sign_ins, users

LIFETIME = timedelta(hours=12)
"""From signing in until the password is needed again, whatever happens between."""

IDLE = timedelta(minutes=30)
"""How long the cookie stays good without a request."""

USE_EVERY = timedelta(minutes=5)
"""How far the time of its last use may lie behind; so a browser may be out that much earlier."""

FRESH = timedelta(minutes=15)
"""How long after the password was given dangerous acts do not ask for it."""

ENTRANCE = "audit:read"
"""The scope without which there is nothing to see."""

_NOT_HERE = frozenset({"mint"})
"""Scopes that a role may have, and that no page needs."""

_FORM = re.compile(r"rtc_[A-Za-z0-9_-]{43}")  # 256 bits; scanners and our logs know the prefix

browser_sign_ins = sa.Table(
    "browser_sign_ins",
    metadata,
    sa.Column("cookie_sha256", sa.LargeBinary(32), primary_key=True),
    sa.Column(
        "sign_in_id",
        sa.String(40),
        sa.ForeignKey("sign_ins.id", ondelete="CASCADE"),
        nullable=False,
        unique=True,
    ),
    sa.Column("used_at", sa.BigInteger, nullable=False),  # Unix µs; up to `USE_EVERY` behind
    sa.Column("password_at", sa.BigInteger, nullable=False),  # Unix µs; when it was last given
)


class _NothingLeft(Exception):
    """Another request has done it meanwhile."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who looks at the pages."""

    caller: Caller
    user: User
    began_at: datetime
    ends_at: datetime
    password_at: datetime
    form_token: str = field(repr=False)
    """Stands in every form of theirs, and in nobody else's."""

    def may(self, scope: str) -> bool:
        """Tell whether they may do what *scope* is for."""
        return scope in self.caller.scopes

    def is_fresh(self, now: datetime) -> bool:
        """Tell whether they gave their password a moment ago."""
        return now - self.password_at <= FRESH


class BrowserSignIns:
    """Begins sign-ins that a browser holds, and recognises them.

    Args:
        form_key: Gives each sign-in the token of its forms.
    """

    def __init__(
        self,
        *,
        sign_in: SignIn,
        callers: Callers,
        passwords: Passwords,
        guesses: PasswordGuesses,
        form_key: bytes,
        database: Database,
        log: Log,
        denials: Denials,
        clock: Clock,
    ) -> None:
        self._sign_in = sign_in
        self._callers = callers
        self._passwords = passwords
        self._guesses = guesses
        self._form_key = form_key
        self._database = database
        self._log = log
        self._denials = denials
        self._clock = clock

    async def begin(self, origin: Origin, *, email: str, password: str) -> str:
        """Check the password, begin a sign-in and return the value of its cookie.

        Raises:
            RateLimited: Too many attempts for this account or from this address.
            Overloaded: Too many passwords are being checked.
            GrantRefused: The e-mail address or the password is wrong.
            InsufficientScope: They are right, but the role has no business here.
            AuditUnavailable: The sign-in cannot be written down.
        """
        proven = await self._sign_in.prove(origin, email=email, password=password)
        user = proven.user
        scopes = SCOPES[user.role] - _NOT_HERE
        if ENTRANCE not in scopes:
            refusal = InsufficientScope(ENTRANCE)
            await self._deny("user.sign_in", refusal.code, user, origin)
            raise refusal
        cookie = f"rtc_{secrets.token_urlsafe(32)}"
        sign_in_id = new_id("sgn")
        now = to_unix_microseconds(self._clock())
        row = {
            "cookie_sha256": _sha256(cookie),
            "sign_in_id": sign_in_id,
            "used_at": now,
            "password_at": now,
        }

        def insert(tx: sa.Connection) -> None:
            ends_at = now + LIFETIME // timedelta(microseconds=1)
            insert_sign_in(tx, proven, sign_in_id, scopes=scopes, now=now, ends_at=ends_at)
            tx.execute(browser_sign_ins.insert(), row)

        await self._log.record([signed_in(user, sign_in_id, origin)], insert)
        return cookie

    async def visitor(self, cookie: str | None, origin: Origin, *, scope: str) -> Visitor:
        """Return who holds this cookie, if they may do what *scope* is for.

        Args:
            cookie: Anything a stranger may have sent; None when there is none.
            origin: Where the request comes from.
            scope: What the page needs.

        Raises:
            Unauthenticated: There is no cookie.
            InvalidToken: It is none of ours, or its sign-in has ended.
            UserDisabled: The account is disabled.
            InsufficientScope: The role does not have the scope.
            AuditUnavailable: The database is away.
        """
        if cookie is None:
            raise Unauthenticated
        if _FORM.fullmatch(cookie) is None:  # nothing is read for what we cannot have issued
            raise InvalidToken
        wanted = (
            sa.select(users, browser_sign_ins, sign_ins.c.created_at.label("began_at"))
            .add_columns(sign_ins.c.scopes, sign_ins.c.expires_at)
            .join_from(browser_sign_ins, sign_ins)
            .join(users)
            .where(browser_sign_ins.c.cookie_sha256 == _sha256(cookie))
        )
        row = await self._database.read(lambda tx: tx.execute(wanted).first())
        if row is None:
            raise InvalidToken
        # The cookie itself must not be written down, and its sign-in is a name for it.
        scopes = frozenset(row.scopes.split())
        caller = Caller(row.id, row.sign_in_id, row.sign_in_id, scopes, origin)
        await self._callers.confirm(caller)
        now = self._clock()
        used_at = from_unix_microseconds(row.used_at)
        if now - used_at > IDLE:
            raise InvalidToken
        if scope not in scopes:
            refusal = InsufficientScope(scope)
            await self._deny("sign_in.use", refusal.code, User.of(row), origin, row.sign_in_id)
            raise refusal
        if now - used_at >= USE_EVERY:
            await self._note_use(caller)
        return Visitor(
            caller=caller,
            user=User.of(row),
            began_at=from_unix_microseconds(row.began_at),
            ends_at=from_unix_microseconds(row.expires_at),
            password_at=from_unix_microseconds(row.password_at),
            form_token=hmac.digest(self._form_key, row.sign_in_id.encode(), "sha256").hex(),
        )

    async def confirm(self, visitor: Visitor, password: str) -> None:
        """Check the visitor's password once more; dangerous acts are open for `FRESH` then.

        Raises:
            InvalidRequest: It is wrong.
            RateLimited: Too many wrong passwords.
            Overloaded: Too many passwords are being checked.
            AuditUnavailable: It cannot be written down.
        """
        user, caller = visitor.user, visitor.caller
        action = "user.confirm_password"
        try:
            async with self._guesses.guess(user.email, caller.origin.ip) as guess:
                guess.right = await self._passwords.verify(password, user.password_hash)
        except RateLimited as refusal:
            await self._deny(action, refusal.code, user, caller.origin, caller.sign_in_id)
            raise
        if not guess.right:
            await self._deny(action, "wrong_password", user, caller.origin, caller.sign_in_id)
            raise InvalidRequest(errors=[FieldError("password", "is wrong")])
        with suppress(_NothingLeft):
            await self._log.record(
                [_event(action, caller)], lambda tx: self._set(tx, caller, "password_at")
            )

    async def _note_use(self, caller: Caller) -> None:
        """Write down that the cookie is in use; reading goes on while nothing can be written."""
        with suppress(_NothingLeft, AuditUnavailable):
            await self._log.record(
                [_event("sign_in.use", caller)],
                lambda tx: self._set(tx, caller, "used_at", every=USE_EVERY),
            )

    def _set(
        self, tx: sa.Connection, caller: Caller, column: str, *, every: timedelta = timedelta(0)
    ) -> None:
        """Set an instant of the sign-in to now, unless another request did within *every*."""
        now = self._clock()
        last = browser_sign_ins.c[column]
        due = last <= to_unix_microseconds(now - every)
        theirs = browser_sign_ins.c.sign_in_id == caller.sign_in_id
        values = {column: to_unix_microseconds(now)}
        if tx.execute(browser_sign_ins.update().where(theirs & due).values(values)).rowcount == 0:
            raise _NothingLeft

    async def _deny(
        self, action: str, reason: str, user: User, origin: Origin, sign_in_id: str | None = None
    ) -> None:
        event = Event(
            action=action,
            outcome="denied",
            reason=reason,
            actor=user.id,
            sign_in=sign_in_id,
            request_id=origin.request_id,
            personal=origin.personal(user.email),
        )
        await self._denials.record(event)


def _event(action: str, caller: Caller) -> Event:
    return Event(
        action=action,
        outcome="succeeded",
        actor=caller.user_id,
        sign_in=caller.sign_in_id,
        request_id=caller.origin.request_id,
        personal=caller.origin.personal(),
    )


def _sha256(cookie: str) -> bytes:
    # Of 256 random bits a plain digest gives nothing away; a slow one is for passwords.
    return hashlib.sha256(cookie.encode()).digest()
