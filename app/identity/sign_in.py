"""Signing in with e-mail and password, and staying so: OAuth's grants, for first-party use."""

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

import sqlalchemy as sa

from app.audit.denials import Denials
from app.audit.events import Event
from app.audit.log import Log
from app.base.clock import Clock, from_unix_microseconds, to_unix_microseconds
from app.base.db import Database
from app.base.errors import RateLimited
from app.base.ids import new_id
from app.identity import refresh_tokens
from app.identity.access_tokens import AccessTokens
from app.identity.callers import Origin
from app.identity.guessing import PasswordGuesses
from app.identity.passwords import Passwords
from app.identity.refresh_tokens import RefreshToken, is_refresh_token
from app.identity.sign_out import SignOut
from app.identity.users import LONGEST_EMAIL, SCOPES, User, Users, sign_ins, users

_MICROSECOND = timedelta(microseconds=1)


class GrantRefused(Exception):
    """The token endpoint's refusal.

    Args:
        error: What programs are told.
        description: What people are told.
        reason: What the log is told, where that is more.

    Source: RFC 6749 section 5.2.
    """

    def __init__(
        self,
        error: Literal[
            "invalid_request", "invalid_grant", "unsupported_grant_type", "invalid_scope"
        ],
        description: str,
        *,
        reason: str | None = None,
    ) -> None:
        self.error = error
        self.description = description
        self.reason = reason or error
        super().__init__(description)


@dataclass(frozen=True, slots=True)
class Granted:
    """What a successful grant gives; lifetimes in seconds."""

    access_token: str = field(repr=False)
    expires_in: int
    scope: str
    refresh_token: str = field(repr=False)
    refresh_expires_in: int
    """While it is not used, and never beyond the sign-in's lifetime."""


@dataclass(frozen=True, slots=True)
class Proven:
    """Somebody who has given their password."""

    user: User
    rehashed: str | None = field(repr=False)
    """The password under today's parameters, if it was hashed with older ones."""


class SignIn:
    """Exchanges a password, later a refresh token, for an access token and the next refresh token.

    Args:
        guesses: Who has to wait before a password or a token is looked at.
        lifetime: From signing in with the password until that is needed again.
        idle: How long a refresh token stays good unused.
    """

    def __init__(
        self,
        *,
        users: Users,
        passwords: Passwords,
        access_tokens: AccessTokens,
        sign_out: SignOut,
        guesses: PasswordGuesses,
        lifetime: timedelta,
        idle: timedelta,
        database: Database,
        log: Log,
        denials: Denials,
        clock: Clock,
    ) -> None:
        self._users = users
        self._passwords = passwords
        self._access_tokens = access_tokens
        self._sign_out = sign_out
        self._guesses = guesses
        self._lifetime = lifetime // _MICROSECOND
        self._idle = idle // _MICROSECOND
        self._database = database
        self._log = log
        self._denials = denials
        self._clock = clock

    async def with_password(
        self, origin: Origin, *, email: str, password: str, scope: str | None = None
    ) -> Granted:
        """Check the password and begin a sign-in.

        Every refusal after the limits costs one password hash, so that neither the answer nor its
        time tells which accounts exist.

        Raises:
            RateLimited: Too many attempts for this account or from this address.
            Overloaded: Too many passwords are being checked.
            GrantRefused: ``invalid_grant`` for every wrong combination, ``invalid_scope`` when
                more is asked than the role has.
            AuditUnavailable: The sign-in cannot be written down.
        """
        proven = await self.prove(origin, email=email, password=password)
        try:
            scopes = _narrowed(SCOPES[proven.user.role], scope)
            return await self.begin(proven.user, scopes, origin, rehashed=proven.rehashed)
        except GrantRefused as refusal:
            await self._deny("user.sign_in", refusal, origin, proven.user)
            raise

    async def prove(self, origin: Origin, *, email: str, password: str) -> Proven:
        """Return whose password this is; nothing begins by that.

        Raises:
            RateLimited, Overloaded: As `with_password`.
            GrantRefused: ``invalid_grant`` for every wrong combination.
        """
        account = email.strip().lower()[:LONGEST_EMAIL]
        user: User | None = None
        try:
            async with self._guesses.guess(account, origin.ip) as guess:
                user = await self._users.find(account)
                right = await self._passwords.verify(password, user.password_hash if user else None)
                guess.right = right and user is not None and user.disabled_at is None
            if user is None:
                raise _wrong("unknown_account")
            if not right:
                raise _wrong("wrong_password")
            if user.disabled_at is not None:
                raise _wrong("user_disabled")
        except (RateLimited, GrantRefused) as refusal:
            await self._deny("user.sign_in", refusal, origin, user)
            raise
        return Proven(user, await self._rehash(user, password))

    async def begin(
        self, user: User, scopes: frozenset[str], origin: Origin, *, rehashed: str | None = None
    ) -> Granted:
        """Write the sign-in down and issue its first tokens.

        Raises:
            GrantRefused: The account is disabled, or got another password a moment ago.
            AuditUnavailable: The sign-in cannot be written down.
        """
        sign_in_id = new_id("sgn")
        now = to_unix_microseconds(self._clock())
        ends_at = now + self._lifetime
        refresh_until = min(now + self._idle, ends_at)

        def insert(tx: sa.Connection) -> str:
            insert_sign_in(
                tx, Proven(user, rehashed), sign_in_id, scopes=scopes, now=now, ends_at=ends_at
            )
            return refresh_tokens.issue(tx, sign_in_id, now=now, expires_at=refresh_until)

        refresh_token = await self._log.record([signed_in(user, sign_in_id, origin)], insert)
        return self._granted(
            user, sign_in_id, scopes, refresh_token, refresh_until - now, ends_at=ends_at
        )

    async def with_refresh_token(
        self, origin: Origin, *, token: str, scope: str | None = None
    ) -> Granted:
        """Use a refresh token up: exchange it for an access token and the next of its family.

        Args:
            origin: Where the request comes from.
            token: Anything a stranger may have sent. One that comes back more than
                `refresh_tokens.GRACE` after it was used up ends its sign-in.
            scope: What the access token shall be good for, of what the sign-in was granted; None
                for all of it that the role still has. The next refresh token stays good for all.

        Raises:
            RateLimited: Too many attempts from this address.
            GrantRefused: ``invalid_grant`` for every token that is not good, ``invalid_scope``
                when more is asked than was granted; then the token is not used up.
            AuditUnavailable: The exchange, or the end of the sign-in, is not known to be written
                down. The token may be used up then.

        Source: RFC 6749 section 6, RFC 9700 section 4.14.2.
        """
        found: RefreshToken | None = None
        try:
            await self._guesses.attempt(origin.ip)

            # Nothing is read for what we cannot have issued.
            if is_refresh_token(token):
                found = await self._database.read(lambda tx: refresh_tokens.find(tx, token))
            if found is None:
                raise _not_good("unknown_refresh_token")
            fault = found.fault(to_unix_microseconds(self._clock()))
            if fault == "refresh_token_reuse":
                await self._sign_out.end(
                    found.sign_in_id, user_id=found.user.id, origin=origin, reason=fault
                )
            if fault is not None:
                raise _not_good(fault)

            scopes = _narrowed(found.scopes & SCOPES[found.user.role], scope)
            return await self._renew(found, scopes, origin)
        except (RateLimited, GrantRefused) as refusal:
            user, sign_in_id = (found.user, found.sign_in_id) if found else (None, None)
            await self._deny("sign_in.refresh", refusal, origin, user, sign_in_id)
            raise

    async def _renew(self, token: RefreshToken, scopes: frozenset[str], origin: Origin) -> Granted:
        """Put the next token in the place of *token*; of those who try at once, one gets it."""
        now = to_unix_microseconds(self._clock())
        refresh_until = min(now + self._idle, token.sign_in_expires_at)

        def rotate(tx: sa.Connection) -> str:
            if not refresh_tokens.use_up(tx, token, now=now):
                raise _not_good("refresh_token_repeated")
            return refresh_tokens.issue(tx, token.sign_in_id, now=now, expires_at=refresh_until)

        event = Event(
            action="sign_in.refresh",
            outcome="succeeded",
            actor=token.user.id,
            sign_in=token.sign_in_id,
            request_id=origin.request_id,
            role=token.user.role,
            personal=origin.personal(token.user.email),
        )
        successor = await self._log.record([event], rotate)
        return self._granted(
            token.user,
            token.sign_in_id,
            scopes,
            successor,
            refresh_until - now,
            ends_at=token.sign_in_expires_at,
        )

    def _granted(
        self,
        user: User,
        sign_in_id: str,
        scopes: frozenset[str],
        refresh_token: str,
        refresh_microseconds: int,
        *,
        ends_at: int,
    ) -> Granted:
        scope = " ".join(sorted(scopes))
        issued = self._access_tokens.issue(
            user_id=user.id,
            scope=scope,
            sign_in_id=sign_in_id,
            until=from_unix_microseconds(ends_at),
        )
        return Granted(
            access_token=issued.token,
            expires_in=issued.expires_in,
            scope=scope,
            refresh_token=refresh_token,
            refresh_expires_in=refresh_microseconds // 1_000_000,
        )

    async def _rehash(self, user: User, password: str) -> str | None:
        """Return the password under today's parameters, if it was hashed with older ones."""
        if self._passwords.needs_rehash(user.password_hash):
            return await self._passwords.hash(password)
        return None

    async def _deny(
        self,
        action: str,
        refusal: RateLimited | GrantRefused,
        origin: Origin,
        user: User | None,
        sign_in_id: str | None = None,
    ) -> None:
        event = Event(
            action=action,
            outcome="denied",
            reason=refusal.code if isinstance(refusal, RateLimited) else refusal.reason,
            actor=user.id if user else None,
            sign_in=sign_in_id,
            request_id=origin.request_id,
            personal=origin.personal(user.email if user else None),
        )
        await self._denials.record(event)


def insert_sign_in(
    tx: sa.Connection,
    proven: Proven,
    sign_in_id: str,
    *,
    scopes: frozenset[str],
    now: int,
    ends_at: int,
) -> None:
    """Begin the sign-in of somebody who is still as they were proven; instants in Unix µs.

    Raises:
        GrantRefused: The account is disabled, or got another password a moment ago.
    """
    user = proven.user
    unchanged = (
        (users.c.id == user.id)
        & users.c.disabled_at.is_(None)
        & (users.c.password_hash == user.password_hash)
    )
    touched = {"password_hash": proven.rehashed or user.password_hash, "last_sign_in_at": now}
    if tx.execute(users.update().where(unchanged).values(touched)).rowcount == 0:
        raise GrantRefused(
            "invalid_grant",
            "The account is disabled or has just changed.",
            reason="account_changed",
        )
    row = {
        "id": sign_in_id,
        "user_id": user.id,
        "scopes": " ".join(sorted(scopes)),
        "created_at": now,
        "expires_at": ends_at,
        "revoked_at": None,
    }
    tx.execute(sign_ins.insert(), row)


def signed_in(user: User, sign_in_id: str, origin: Origin) -> Event:
    """Return the row that tells of a sign-in."""
    return Event(
        action="user.sign_in",
        outcome="succeeded",
        actor=user.id,
        sign_in=sign_in_id,
        request_id=origin.request_id,
        role=user.role,
        personal=origin.personal(user.email),
    )


def _wrong(reason: str) -> GrantRefused:
    return GrantRefused(
        "invalid_grant", "The e-mail address or the password is wrong.", reason=reason
    )


def _not_good(reason: str) -> GrantRefused:
    return GrantRefused(
        "invalid_grant", "The refresh token is not good. Sign in again.", reason=reason
    )


def _narrowed(allowed: frozenset[str], scope: str | None) -> frozenset[str]:
    """Return the scopes asked for, by default all that are *allowed*.

    Raises:
        GrantRefused: None is asked for, or more than is allowed.
    """
    scopes = allowed if scope is None else frozenset(scope.split())
    if not scopes or not scopes <= allowed:
        named = " ".join(sorted(allowed))
        raise GrantRefused("invalid_scope", f"This account may ask for: {named}.")
    return scopes
