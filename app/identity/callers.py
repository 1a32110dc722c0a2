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
    Unauthenticated,
    UserDisabled,
)
from app.identity.access_tokens import AccessTokens
from app.identity.external_tokens import ExternalTokens
from app.identity.external_users import STANDING as EXTERNAL_STANDING
from app.identity.external_users import ExternalUsers, external_users
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
    sign_in_id: str | None  # None: an external issuer vouches for them
    credential: str  # the jti of the access token, or a digest that names it
    scopes: frozenset[str]
    origin: Origin

    @property
    def role(self) -> Role:
        """The least role that has all the scopes of the credential."""
        if self.scopes <= SCOPES["user"]:
            return "user"
        return "auditor" if self.scopes <= SCOPES["auditor"] else "admin"


class Callers:
    """Tells who calls from the credential they show.

    Args:
        external: None where no external issuer is configured.
    """

    def __init__(
        self,
        *,
        access_tokens: AccessTokens,
        external: tuple[ExternalTokens, ExternalUsers] | None = None,
        database: Database,
        denials: Denials,
        clock: Clock,
    ) -> None:
        self._access_tokens = access_tokens
        self._external = external
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
            IssuerUnavailable: Nobody can tell whether it is good: its issuer's keys are not there.
            AuditUnavailable: It tells of a new user, who cannot be written down.
        """
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated
        try:
            caller = await self._caller(token.strip(" "), origin)
        except (InvalidToken, InsufficientScope) as problem:
            await self._deny(problem, origin)
            raise
        if scope is not None and scope not in caller.scopes:
            insufficient = InsufficientScope(scope)
            await self._deny(insufficient, origin, caller)
            raise insufficient
        return caller

    async def _caller(self, token: str, origin: Origin) -> Caller:
        """Return whose token this is, by the verifier whose token it claims to be."""
        if self._external is None or self._access_tokens.wrote(token):
            claims = self._access_tokens.verify(token)
            return Caller(claims.sub, claims.sid, claims.jti, claims.scope, origin)
        tokens, known = self._external
        said = await tokens.verify(token)
        user_id = await known.id_of(
            said.issuer,
            said.subject,
            credential=said.credential,
            request_id=origin.request_id,
            personal=origin.personal(),
        )
        return Caller(user_id, None, said.credential, SCOPES[said.role], origin)

    async def confirm(self, caller: Caller) -> None:
        """See in the database that *caller* may still act.

        Raises:
            InvalidToken, UserDisabled, InsufficientScope: As `still_allowed`.
        """
        wanted = _standing_of(caller)
        row = await self._database.read(lambda tx: tx.execute(wanted).first())
        try:
            still_allowed(caller, now=self._clock()).judge(row)
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
    credential carries. Users of an external issuer have neither sign-in nor role here.
    """
    if caller.sign_in_id is None:
        return Guard(EXTERNAL_STANDING, caller.user_id, _judge_external)
    return Guard(_STANDING, caller.sign_in_id, partial(_judge, caller, now))


_STANDING = Lookup(
    columns=(
        "sign_ins.id",
        "users.id",
        "users.role",
        "users.disabled_at",
        "sign_ins.revoked_at",
        "sign_ins.expires_at",
    ),
    source="sign_ins JOIN users ON users.id = sign_ins.user_id",
)


def _standing_of(caller: Caller) -> sa.Executable:
    """Return the question that the guard's lookup asks, for a read of its own."""
    s, u, e = sign_ins.c, users.c, external_users.c
    if caller.sign_in_id is None:
        return sa.select(e.id, e.disabled_at).where(e.id == caller.user_id)
    standing = sa.select(s.id, u.id, u.role, u.disabled_at, s.revoked_at, s.expires_at)
    return standing.join_from(sign_ins, users).where(s.id == caller.sign_in_id)


def _judge_external(standing: Sequence[Any] | None) -> None:
    if standing is None:
        raise InvalidToken
    if standing[1] is not None:
        raise UserDisabled


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
