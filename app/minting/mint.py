"""The hot path: one client secret for one caller, and a trace of the attempt either way."""

import asyncio
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import structlog

from app.audit.denials import Denials
from app.audit.events import Event
from app.audit.log import AlreadyRecorded, Log
from app.base.clock import Clock
from app.base.errors import (
    AuditUnavailable,
    InvalidRequest,
    MintingOff,
    Problem,
    UpstreamProblem,
)
from app.base.ids import new_id
from app.base.metrics import Metrics
from app.identity.callers import Caller, still_allowed
from app.minting.admission import Admission
from app.minting.catalogue import Notice
from app.minting.limits import MintLimits
from app.minting.openai import ClientSecret, OpenAI
from app.minting.profiles import PlannedSession, Profiles, Wish

ACTION = "client_secret.mint"


@dataclass(frozen=True, slots=True)
class Minted:
    """What the caller gets. The secret is in here: hand it out, never log it."""

    id: str
    secret: ClientSecret
    expires_in: int
    plan: PlannedSession
    connect: Mapping[str, str]
    environment: Literal["live", "sandbox"]

    @property
    def notices(self) -> tuple[Notice, ...]:
        """What the integrator should know about the models in use."""
        return self.plan.notices


class Minter:
    """Mints client secrets.

    Args:
        metrics: Where attempts are counted.
        fingerprint_key: Keys the fingerprint by which a leaked secret is traced.
        safety_key: Keys the opaque name under which OpenAI knows a user.
        connect: Where a client opens its session, by transport.
        minting_on: The panic switch.
    """

    def __init__(
        self,
        *,
        admission: Admission,
        profiles: Profiles,
        limits: MintLimits,
        openai: OpenAI,
        log: Log,
        denials: Denials,
        metrics: Metrics,
        clock: Clock,
        fingerprint_key: bytes,
        safety_key: bytes,
        connect: Mapping[str, str],
        environment: Literal["live", "sandbox"],
        minting_on: bool,
    ) -> None:
        self._admission = admission
        self._profiles = profiles
        self._limits = limits
        self._openai = openai
        self._log = log
        self._denials = denials
        self._metrics = metrics
        self._clock = clock
        self._fingerprint_key = fingerprint_key
        self._safety_key = safety_key
        self._connect = connect
        self._environment = environment
        self._minting_on = minting_on
        self._logger = structlog.get_logger(__name__)
        metrics.expect_mints(profiles.names)

    async def mint(self, caller: Caller, wish: Wish) -> Minted:
        """Give *caller* one client secret, and leave a trace of the attempt either way.

        Raises:
            Overloaded: Too many mints are under way or waiting; this one leaves no trace.
            MintingOff: The operator has switched minting off.
            ProfileNotFound, OverrideNotAllowed, InvalidRequest, ModelRetired: The wish cannot be
                met; see `Profiles.session_for`.
            RateLimited, QuotaExceeded: The caller has asked too often.
            InvalidToken, UserDisabled, InsufficientScope: The caller may no longer act.
            UpstreamProblem: OpenAI gave none; after a time-out it may still have minted one.
            AuditUnavailable: The log cannot be written; nothing is handed out.
        """
        async with self._admission.place():
            with self._metrics.minting(self._profiles.known_name(wish.profile)):
                return await self._mint(caller, wish)

    async def _mint(self, caller: Caller, wish: Wish) -> Minted:
        attempt_id = new_id("tok")
        plan: PlannedSession | None = None
        try:
            # Step 1: our rules. Nothing has left the process yet.
            if not self._minting_on:
                raise MintingOff
            plan = self._profiles.session_for(
                caller.role, wish, today=self._clock().date(), only=caller.profiles
            )
            await self._limits.take(caller)

            # Step 2: the intent is on disk, and in that transaction the caller is still allowed.
            attempt = _attempt(attempt_id, caller, plan)
            await self._log.record(
                [Event(outcome="requested", personal=caller.origin.personal(), **attempt)],
                guard=still_allowed(caller, now=self._clock()),
            )
        except (AuditUnavailable, InvalidRequest):
            raise  # nothing was denied: it could not be written, or not be read
        except Problem as problem:
            await self._deny(problem, caller, wish, plan, attempt_id)
            raise

        # Step 3: ask OpenAI. No transaction is open while we wait.
        asked_at = self._clock()
        try:
            with self._metrics.asking_upstream():
                secret = await self._openai.create_client_secret(
                    plan.session,
                    ttl_seconds=plan.ttl_seconds,
                    safety_identifier=keyed(self._safety_key, caller.user_id),
                    client_request_id=attempt_id,
                )
        except BaseException as error:
            # A refusal, a time-out, a cancelled request or a bug: the attempt gets its outcome.
            await self._settle_without_secret(attempt, error)
            raise

        # Step 4: the outcome is on disk. Only now may the secret leave. The write goes on when the
        # client hangs up, so that the row tells of every secret that OpenAI gave us.
        issued = Event(
            outcome="issued",
            expires_at=secret.expires_at,
            upstream_status=200,
            upstream_request_id=secret.upstream_request_id,
            upstream_session_id=secret.upstream_session_id,
            upstream_ms=secret.upstream_ms,
            token_fingerprint=self.fingerprint(secret.value.get_secret_value()),
            **attempt,
        )
        try:
            await self._log.record([issued])
        except AlreadyRecorded:
            # The sweep took this attempt for lost, and its row stands: the secret is dropped.
            self._logger.warning("client_secret_dropped", attempt_id=attempt_id)
            raise AuditUnavailable(retry_after_seconds=1) from None
        return Minted(
            id=attempt_id,
            secret=secret,
            expires_in=_seconds_left(secret.expires_at, plan.ttl_seconds, asked_at),
            plan=plan,
            connect={way: url for way, url in self._connect.items() if way in plan.transports},
            environment=self._environment,
        )

    def fingerprint(self, value: str) -> str:
        """Return the keyed digest under which the log knows a client secret, in hex."""
        return keyed(self._fingerprint_key, value)

    async def _settle_without_secret(
        self, attempt: Mapping[str, Any], error: BaseException
    ) -> None:
        """Give *attempt* the outcome ``failed``, or ``unknown`` when a secret may exist."""
        if isinstance(error, UpstreamProblem):
            self._logger.warning(
                "upstream_refused",
                attempt_id=attempt["attempt_id"],
                problem=error.code,
                upstream_status=error.upstream_status,
                upstream_code=error.upstream_code,
                upstream_request_id=error.upstream_request_id,
            )
            outcome = Event(
                outcome="unknown" if error.may_have_minted else "failed",
                reason=error.code,
                upstream_status=error.upstream_status,
                upstream_code=error.upstream_code,
                upstream_request_id=error.upstream_request_id,
                **attempt,
            )
        else:
            reason = "cancelled" if isinstance(error, asyncio.CancelledError) else "internal_error"
            outcome = Event(outcome="unknown", reason=reason, **attempt)
        try:
            await self._log.record([outcome])
        except (AuditUnavailable, AlreadyRecorded):
            # The refusal stands; the sweep gives the attempt its outcome when the log is back.
            self._logger.warning("outcome_not_recorded", attempt_id=attempt["attempt_id"])

    async def _deny(
        self,
        problem: Problem,
        caller: Caller,
        wish: Wish,
        plan: PlannedSession | None,
        attempt_id: str,
    ) -> None:
        event = Event(
            action=ACTION,
            outcome="denied",
            reason=problem.code,
            attempt_id=attempt_id,
            actor=caller.user_id,
            credential=caller.credential,
            sign_in=caller.sign_in_id,
            request_id=caller.origin.request_id,
            profile=plan.profile if plan else self._profiles.known_name(wish.profile),
            personal=caller.origin.personal(),
        )
        await self._denials.record(event)


def keyed(key: bytes, text: str) -> str:
    """Return a digest of *text* that nobody can make without the *key*, in hex."""
    return hmac.digest(key, text.encode(errors="surrogatepass"), hashlib.sha256).hex()


def _attempt(attempt_id: str, caller: Caller, plan: PlannedSession) -> dict[str, Any]:
    """Return what the rows of one attempt have in common, as members of `Event`."""
    return {
        "action": ACTION,
        "attempt_id": attempt_id,
        "actor": caller.user_id,
        "credential": caller.credential,
        "sign_in": caller.sign_in_id,
        "request_id": caller.origin.request_id,
        "profile": plan.profile,
        "model_asked": plan.model_asked,
        "model_used": plan.model,
        "transcription_model": plan.transcription_model,
        "language": plan.language,
        "ttl_seconds": plan.ttl_seconds,
        "config_digest": plan.config_digest,
    }


def _seconds_left(expires_at: int, ttl_seconds: int, asked_at: datetime) -> int:
    """Return how long the secret is good, for clients whose clocks are wrong.

    Never more than was asked for, whatever OpenAI's clock says against ours.
    """
    return max(0, min(ttl_seconds, expires_at - int(asked_at.timestamp())))
