"""Who makes this request, and whether they still may."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any

from app.audit.denials import Denials
from app.audit.events import Event, Personal
from app.audit.log import Guard, Lookup
from app.base.clock import Clock, from_unix_microseconds, to_unix_microseconds
from app.base.db import Database
from app.base.errors import (
    FieldError,
    InsufficientScope,
    InvalidRequest,
    InvalidToken,
    Problem,
    RateLimited,
    Unauthenticated,
    UserDisabled,
)
from app.identity.access_tokens import AccessTokens
from app.identity.end_users import EndUsers
from app.identity.external_tokens import ExternalTokens
from app.identity.external_users import STANDING as EXTERNAL_STANDING
from app.identity.external_users import ExternalUsers
from app.identity.guessing import BadCredentials
from app.identity.service_keys import (
    KEY_SCOPES,
    PREFIX,
    WHAT_TO_DO,
    Fault,
    KeyRefused,
    ServiceKey,
    ServiceKeys,
    standing_fault,
)
from app.identity.users import SCOPES, Role

_KEY_ACTION = "service_key.verify"


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

    user_id: str  # usr_…; with a service key key_…, or eus_… once it says on whose behalf
    sign_in_id: str | None  # None with a service key, and where an external issuer vouches for them
    credential: str  # the jti of the access token, a digest that names it, or the id of the key
    scopes: frozenset[str]
    origin: Origin
    key: ServiceKey | None = None

    @property
    def role(self) -> Role:
        """The least role that has all the scopes of the credential; of a service key, ``user``."""
        if self.key is not None or self.scopes <= SCOPES["user"]:
            return "user"
        return "auditor" if self.scopes <= SCOPES["auditor"] else "admin"

    @property
    def trace(self) -> dict[str, Any]:
        """Who did it, as members of a row."""
        return {
            "actor": self.user_id,
            "credential": self.credential,
            "sign_in": self.sign_in_id,
            "request_id": self.origin.request_id,
            "personal": self.origin.personal(),
        }

    @property
    def profiles(self) -> frozenset[str] | None:
        """The only profiles for this credential; None for all of the role."""
        return self.key.profiles if self.key is not None else None


class Callers:
    """Tells who calls from the credential they show.

    Args:
        external: None where no external issuer is configured.
    """

    def __init__(
        self,
        *,
        access_tokens: AccessTokens,
        bad_credentials: BadCredentials,
        external: tuple[ExternalTokens, ExternalUsers] | None = None,
        service_keys: ServiceKeys,
        end_users: EndUsers,
        database: Database,
        denials: Denials,
        clock: Clock,
    ) -> None:
        self._access_tokens = access_tokens
        self._bad_credentials = bad_credentials
        self._external = external
        self._service_keys = service_keys
        self._end_users = end_users
        self._database = database
        self._denials = denials
        self._clock = clock

    async def authenticate(
        self, authorization: str | None, origin: Origin, *, scope: str | None
    ) -> Caller:
        """Return the caller whose credential this is, if it carries *scope*.

        Of an access token the signature alone is checked here. Whether the user may still act
        stands in the database: a mint asks together with its first row, every other route calls
        `confirm`. A service key is looked up.

        Raises:
            Unauthenticated: There is no bearer credential.
            InvalidToken: There is one, but it is not good.
            InsufficientScope: It is good, but not for this.
            IssuerUnavailable: Nobody can tell whether it is good: its issuer's keys are not there.
            AuditUnavailable: It tells of a new user, or may be a service key, and the database is
                away.
            RateLimited: Too many that were not good have come from this address.
        """
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated
        token = token.strip(" ")
        try:
            self._bad_credentials.check(origin.ip)
        except RateLimited as problem:
            await self._deny(problem, origin)
            raise
        if token.startswith(PREFIX):
            return await self._with_service_key(token, origin, scope)
        try:
            caller = await self._caller(token, origin)
        except (InvalidToken, InsufficientScope) as problem:
            await self._deny(problem, origin)
            if isinstance(problem, InvalidToken):
                await self._bad_credentials.count(origin.ip)
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

    async def _with_service_key(self, text: str, origin: Origin, scope: str | None) -> Caller:
        try:
            key = await self._service_keys.recognise(text)
        except KeyRefused as refusal:
            refused = InvalidToken(WHAT_TO_DO[refusal.fault])
            holder = _holder_of(refusal.key, origin) if refusal.key else None
            await self._deny(refused, origin, holder, action=_KEY_ACTION, reason=refusal.fault)
            await self._bad_credentials.count(origin.ip)
            raise refused from None
        caller = _holder_of(key, origin)
        needed = KEY_SCOPES.get(scope or "")
        if needed not in caller.scopes:
            insufficient = InsufficientScope(needed or scope)
            await self._deny(insufficient, origin, caller, action=_KEY_ACTION)
            raise insufficient
        return caller

    def on_behalf_of(self, caller: Caller, user: str | None) -> Caller:
        """Return *caller* as the *user* that the request names: who is limited, and recorded.

        Raises:
            InvalidRequest: A service key names no end user, or one that cannot be; or somebody
                else names one.
        """
        if caller.key is None:
            if user is None:
                return caller
            reason = "is for service keys alone; leave it out"
            raise InvalidRequest(errors=[FieldError("user", reason)])
        if user is None:
            reason = "is needed with a service key: the end user on whose behalf you ask"
            raise InvalidRequest(errors=[FieldError("user", reason)])
        return replace(caller, user_id=self._end_users.pseudonym_of(user))

    async def confirm(self, caller: Caller) -> None:
        """See in the database that *caller* may still act.

        Raises:
            InvalidToken, UserDisabled, InsufficientScope: As `still_allowed`.
        """
        if caller.key is not None:
            return  # it has just been looked up
        guard = still_allowed(caller, now=self._clock())
        row = await self._database.read(guard.look_up)
        try:
            guard.judge(row)
        except Problem as problem:
            await self._deny(problem, caller.origin, caller)
            raise

    async def _deny(
        self,
        problem: Problem,
        origin: Origin,
        caller: Caller | None = None,
        *,
        action: str = "access_token.verify",
        reason: str | None = None,
    ) -> None:
        event = Event(
            action=action,
            outcome="denied",
            reason=reason or problem.code,
            actor=caller.user_id if caller else None,
            credential=caller.credential if caller else None,
            sign_in=caller.sign_in_id if caller else None,
            request_id=origin.request_id,
            personal=origin.personal(),
        )
        await self._denials.record(event)


def _holder_of(key: ServiceKey, origin: Origin) -> Caller:
    return Caller(key.id, None, key.id, key.scopes, origin, key)


def still_allowed(caller: Caller, *, now: datetime) -> Guard:
    """Return the guard under which rows are only written while *caller* may still act.

    It refuses with InvalidToken when the sign-in is revoked or past its lifetime or the user is
    gone, UserDisabled, or InsufficientScope when the role has since lost a scope that the
    credential carries. Users of an external issuer have neither sign-in nor role here. A service
    key is refused with InvalidToken when it is revoked or expired.
    """
    if caller.key is not None:
        return Guard(_KEY_STANDING, caller.credential, partial(_judge_key, now))
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


_KEY_STANDING = Lookup(
    columns=("service_keys.id", "service_keys.revoked_at", "service_keys.expires_at"),
    source="service_keys",
)


def _judge_key(now: datetime, standing: Sequence[Any] | None) -> None:
    # Nothing else of a key ever changes, and that has been looked at.
    fault: Fault | None = "service_key_unknown"
    if standing is not None:
        _, revoked_at, expires_at = standing
        fault = standing_fault(
            now,
            revoked=revoked_at is not None,
            expires_at=from_unix_microseconds(expires_at),
        )
    if fault is not None:
        raise InvalidToken(WHAT_TO_DO[fault])


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
