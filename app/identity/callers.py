"""Who makes this request, and whether they still may."""

import sqlite3
from dataclasses import dataclass

import sqlalchemy as sa

from app.audit.denials import Denials
from app.audit.log import Event, Personal
from app.base.db import Database
from app.base.errors import (
    InsufficientScope,
    InvalidToken,
    Problem,
    Unauthenticated,
    UserDisabled,
)
from app.identity.access_tokens import AccessTokens
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
        self, *, access_tokens: AccessTokens, database: Database, denials: Denials
    ) -> None:
        self._access_tokens = access_tokens
        self._database = database
        self._denials = denials

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
        """
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated
        try:
            claims = self._access_tokens.verify(token.strip(" "))
        except InvalidToken as problem:
            await self._deny(problem, origin)
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
        standing = sa.select(users.c.role, users.c.disabled_at, sign_ins.c.revoked_at).where(
            users.c.id == caller.user_id,
            sign_ins.c.id == caller.sign_in_id,
            sign_ins.c.user_id == users.c.id,
        )
        row = await self._database.read(lambda tx: tx.execute(standing).first())
        try:
            _judge(caller, tuple(row) if row else None)
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
            request_id=origin.request_id,
            personal=origin.personal(),
        )
        await self._denials.record(event, key=caller.user_id if caller else origin.ip or "unknown")


def still_allowed(driver: sqlite3.Connection, caller: Caller) -> None:
    """Check *caller* inside the writer's transaction, where nothing can change in between.

    Raises:
        InvalidToken: The sign-in is revoked, or the user is gone.
        UserDisabled: The account is disabled.
        InsufficientScope: The role has since lost a scope that the credential carries.
    """
    row = driver.execute(
        "SELECT users.role, users.disabled_at, sign_ins.revoked_at"
        " FROM sign_ins JOIN users ON users.id = sign_ins.user_id"
        " WHERE sign_ins.id = ? AND users.id = ?",
        (caller.sign_in_id, caller.user_id),
    ).fetchone()
    _judge(caller, row)


def _judge(caller: Caller, row: tuple[Role, int | None, int | None] | None) -> None:
    if row is None:
        raise InvalidToken
    role, disabled_at, revoked_at = row
    if disabled_at is not None:
        raise UserDisabled
    if revoked_at is not None:
        raise InvalidToken
    for lost in sorted(caller.scopes - SCOPES[role]):
        raise InsufficientScope(lost)
