"""Who makes this request, and whether they still may."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import sqlalchemy as sa

from app.audit.denials import Denials
from app.audit.events import Event, Personal
from app.audit.log import Guard, Lookup
from app.base.clock import Clock, to_unix_microseconds
from app.base.db import Database
from app.base.errors import (
    InsufficientScope,
    InvalidToken,
    Problem,
    RateLimited,
    Unauthenticated,
    UserDisabled,
)
from app.identity.access_tokens import AccessTokens
from app.identity.guessing import BadCredentials
from app.identity.users import SCOPES, Role, sign_ins, users


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request comes from, for the log."""

    request_id: str | None = None
    ip: str | None = None
    user_agent: str | None = None

    def personal(self, email: str | None = None) -> Personal:
        """Return what of it identifies a person."""
        return Personal(ip=self.ip, user_agent=self.user_agent, email=email)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes this request, as their credential says; see `still_allowed` for the present."""

    user_id: str
    sign_in_id: str
    credential: str  # the jti of the access token
    scopes: frozenset[str]
    origin: Origin

    @property
    def role(self) -> Role:
        """The least role that has all the scopes of the credential."""
        if self.scopes <= SCOPES["user"]:
            return "user"
        return "auditor" if self.scopes <= SCOPES["auditor"] else "admin"


class Callers:
    """Tells who calls from the credential they show."""

    def __init__(
        self,
        *,
        access_tokens: AccessTokens,
        bad_credentials: BadCredentials,
        database: Database,
        denials: Denials,
        clock: Clock,
    ) -> None:
        self._access_tokens = access_tokens
        self._bad_credentials = bad_credentials
        self._database = database
        self._denials = denials
        self._clock = clock

    async def authenticate(
        self, authorization: str | None, origin: Origin, *, scope: str | None
    ) -> Caller:
        """Return the caller whose credential this is, if it carries *scope*.

        The signature alone is checked here. Whether the user may still act stands in the
        database: a mint asks together with its first row, every other route calls `confirm`.

        Raises:
            Unauthenticated: There is no bearer credential.
            InvalidToken: There is one, but it is not good.
            InsufficientScope: It is good, but not for this.
            RateLimited: Too many that were not good have come from this address.
        """
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated
        try:
            self._bad_credentials.check(origin.ip)
            claims = self._access_tokens.verify(token.strip(" "))
        except (InvalidToken, RateLimited) as problem:
            await self._deny(problem, origin)
            if isinstance(problem, InvalidToken):
                await self._bad_credentials.count(origin.ip)
            raise
        caller = Caller(claims.sub, claims.sid, claims.jti, claims.scope, origin)
        if scope is not None and scope not in caller.scopes:
            insufficient = InsufficientScope(scope)
            await self._deny(insufficient, origin, caller)
            raise insufficient
        return caller

    async def confirm(self, caller: Caller) -> None:
        """See in the database that *caller* may still act.

        Raises:
            InvalidToken, UserDisabled, InsufficientScope: As `still_allowed`.
        """
        s, u = sign_ins.c, users.c
        standing = sa.select(s.id, u.id, u.role, u.disabled_at, s.revoked_at, s.expires_at)
        standing = standing.join_from(sign_ins, users).where(s.id == caller.sign_in_id)
        row = await self._database.read(lambda tx: tx.execute(standing).first())
        try:
            _judge(caller, self._clock(), row)
        except Problem as problem:
            await self._deny(problem, caller.origin, caller)
            raise

    async def _deny(self, problem: Problem, origin: Origin, caller: Caller | None = None) -> None:
        event = Event(
            action="access_token.verify",
            outcome="denied",
            reason=problem.code,
            actor=caller.user_id if caller else None,
            credential=caller.credential if caller else None,
            sign_in=caller.sign_in_id if caller else None,
            request_id=origin.request_id,
            personal=origin.personal(),
        )
        await self._denials.record(event)


def still_allowed(caller: Caller, *, now: datetime) -> Guard:
    """Return the guard under which rows are only written while *caller* may still act.

    It refuses with InvalidToken when the sign-in is revoked or past its lifetime or the user is
    gone, UserDisabled, or InsufficientScope when the role has since lost a scope that the
    credential carries.
    """
    return Guard(_STANDING, caller.sign_in_id, partial(_judge, caller, now))


_STANDING = Lookup(
    sqlite="SELECT sign_ins.id, users.id, users.role, users.disabled_at, sign_ins.revoked_at,"
    " sign_ins.expires_at FROM sign_ins JOIN users ON users.id = sign_ins.user_id"
    " WHERE sign_ins.id = ?",
    postgres="SELECT sign_ins.id, users.id, users.role, users.disabled_at, sign_ins.revoked_at,"
    " sign_ins.expires_at FROM sign_ins JOIN users ON users.id = sign_ins.user_id"
    " WHERE sign_ins.id = ANY($1)",
)


def _judge(caller: Caller, now: datetime, standing: Sequence[Any] | None) -> None:
    if standing is None or standing[1] != caller.user_id:
        raise InvalidToken
    role, disabled_at, revoked_at, expires_at = standing[2:]
    if disabled_at is not None:
        raise UserDisabled
    if revoked_at is not None:
        raise InvalidToken
    if expires_at is not None and expires_at <= to_unix_microseconds(now):
        raise InvalidToken
    for lost in sorted(caller.scopes - SCOPES[role]):
        raise InsufficientScope(lost)
