"""Signing in with e-mail and password: OAuth's password grant, for first-party use."""

from dataclasses import dataclass, field
from typing import Literal

import sqlalchemy as sa

from app.audit.denials import Denials, network_of
from app.audit.events import Event
from app.audit.log import Log
from app.base.clock import Clock, to_unix_microseconds
from app.base.errors import RateLimited
from app.base.ids import new_id
from app.base.limits import Allowance, Limits
from app.identity.access_tokens import AccessTokens
from app.identity.callers import Origin
from app.identity.passwords import Passwords
from app.identity.users import LONGEST_EMAIL, SCOPES, User, Users, sign_ins, users


class GrantRefused(Exception):
    """The token endpoint's refusal.

    Source: RFC 6749 section 5.2.
    """

    def __init__(
        self,
        error: Literal[
            "invalid_request", "invalid_grant", "unsupported_grant_type", "invalid_scope"
        ],
        description: str,
    ) -> None:
        self.error = error
        self.description = description
        super().__init__(description)


@dataclass(frozen=True, slots=True)
class Granted:
    """What a successful grant gives."""

    access_token: str = field(repr=False)
    expires_in: int
    scope: str
    user: User


class SignIn:
    """Exchanges a password for an access token.

    Args:
        per_account: Attempts for one account from one address. Counted by both, so that a stranger
            elsewhere cannot lock the owner out.
        per_address: Attempts from one address, whatever the account.
    """

    def __init__(
        self,
        *,
        users: Users,
        passwords: Passwords,
        access_tokens: AccessTokens,
        limits: Limits,
        per_account: Allowance,
        per_address: Allowance,
        log: Log,
        denials: Denials,
        clock: Clock,
    ) -> None:
        self._users = users
        self._passwords = passwords
        self._access_tokens = access_tokens
        self._limits = limits
        self._per_account = per_account
        self._per_address = per_address
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
            GrantRefused: ``invalid_grant`` for every wrong combination, ``invalid_scope`` when
                more is asked than the role has.
            AuditUnavailable: The sign-in cannot be written down.
        """
        address = network_of(origin.ip or "unknown")
        account = email.strip().lower()[:LONGEST_EMAIL]
        try:
            await self._limits.take(self._per_address, address)
            await self._limits.take(self._per_account, account, address)
        except RateLimited as problem:
            await self._deny(origin, None, reason=problem.code)
            raise

        user = await self._users.find(account)
        right = await self._passwords.verify(password, user.password_hash if user else None)
        if user is None or not right or user.disabled_at is not None:
            reason = "unknown_account" if user is None else "wrong_password"
            await self._deny(origin, user, reason="user_disabled" if user and right else reason)
            raise GrantRefused("invalid_grant", "The e-mail address or the password is wrong.")

        scopes = SCOPES[user.role] if scope is None else frozenset(scope.split())
        if not scopes or not scopes <= SCOPES[user.role]:
            await self._deny(origin, user, reason="invalid_scope")
            allowed = " ".join(sorted(SCOPES[user.role]))
            raise GrantRefused("invalid_scope", f"This account may ask for: {allowed}.")

        rehashed = await self._rehash(user, password)
        try:
            return await self.begin(user, scopes, origin, rehashed=rehashed)
        except GrantRefused:
            await self._deny(origin, user, reason="account_changed")
            raise

    async def begin(
        self, user: User, scopes: frozenset[str], origin: Origin, *, rehashed: str | None = None
    ) -> Granted:
        """Write the sign-in down and issue its first access token.

        Raises:
            GrantRefused: The account is disabled, or got another password a moment ago.
            AuditUnavailable: The sign-in cannot be written down.
        """
        sign_in_id = new_id("sgn")
        now = to_unix_microseconds(self._clock())

        def insert(tx: sa.Connection) -> None:
            unchanged = (
                (users.c.id == user.id)
                & users.c.disabled_at.is_(None)
                & (users.c.password_hash == user.password_hash)
            )
            touched = users.update().where(unchanged)
            touched = touched.values(password_hash=rehashed or user.password_hash)
            if tx.execute(touched).rowcount == 0:
                raise GrantRefused("invalid_grant", "The account is disabled or has just changed.")
            row = {"id": sign_in_id, "user_id": user.id, "created_at": now, "revoked_at": None}
            tx.execute(sign_ins.insert(), row)

        event = Event(
            action="user.sign_in",
            outcome="succeeded",
            actor=user.id,
            sign_in=sign_in_id,
            request_id=origin.request_id,
            role=user.role,
            personal=origin.personal(user.email),
        )
        await self._log.record([event], insert)
        scope = " ".join(sorted(scopes))
        issued = self._access_tokens.issue(user_id=user.id, scope=scope, sign_in_id=sign_in_id)
        return Granted(issued.token, issued.expires_in, scope, user)

    async def _rehash(self, user: User, password: str) -> str | None:
        """Return the password under today's parameters, if it was hashed with older ones."""
        if self._passwords.needs_rehash(user.password_hash):
            return await self._passwords.hash(password)
        return None

    async def _deny(self, origin: Origin, user: User | None, *, reason: str) -> None:
        event = Event(
            action="user.sign_in",
            outcome="denied",
            reason=reason,
            actor=user.id if user else None,
            request_id=origin.request_id,
            personal=origin.personal(user.email if user else None),
        )
        await self._denials.record(event)
