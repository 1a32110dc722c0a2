"""Every refusal the service can answer with, as RFC 9457 problems.

The tree, by who has to act:

Problem
├── caller:    Unauthenticated, InvalidToken, InsufficientScope, OverrideNotAllowed, UserDisabled,
│              NotFound, ProfileNotFound, MethodNotAllowed, InvalidCursor, RequestTimeout, Conflict,
│              BodyTooLarge, UnsupportedMediaType, InvalidRequest, RateLimited, QuotaExceeded
├── OpenAI:    UpstreamProblem: UpstreamRejected, UpstreamMisconfigured, UpstreamInvalidResponse,
│              UpstreamUnavailable, UpstreamRateLimited, UpstreamQuotaExhausted, UpstreamTimeout
└── operator:  InternalError, AuditUnavailable, IssuerUnavailable, Overloaded, ModelRetired,
               MintingOff
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class FieldError:
    """One field that was refused. Never holds what was submitted."""

    field: str
    reason: str


class Problem(Exception):
    """A refusal with a stable code. The message is one sentence for the caller.

    Args:
        detail: What happened and what to do; nothing secret, nothing that was submitted.
        retry_after_seconds: When asking again makes sense, for the ``Retry-After`` header.
        errors: The fields at fault, for 422.
    """

    status: ClassVar[HTTPStatus]
    code: ClassVar[str]
    title: ClassVar[str]
    advice: ClassVar[str]
    """What the page ``/errors/<code>`` tells a reader to do."""

    def __init__(
        self,
        detail: str | None = None,
        *,
        retry_after_seconds: int | None = None,
        errors: Sequence[FieldError] = (),
    ) -> None:
        self.detail = detail or f"{self.title}. {self.advice}"
        self.retry_after_seconds = retry_after_seconds
        self.errors = tuple(errors)
        super().__init__(self.detail)


class InvalidCursor(Problem):
    """The page marker is not one we gave out."""

    status = HTTPStatus.BAD_REQUEST
    code = "invalid_cursor"
    title = "The cursor is not valid"
    advice = "Use nextCursor of the previous answer unchanged, or leave the cursor out."


class Unauthenticated(Problem):
    """No credential came with the request."""

    status = HTTPStatus.UNAUTHORIZED
    code = "unauthenticated"
    title = "No credential was given"
    advice = (
        "Send Authorization: Bearer with an access token from POST /auth/token, or a service key."
    )


class InvalidToken(Problem):
    """The credential is expired, revoked, malformed or not ours."""

    status = HTTPStatus.UNAUTHORIZED
    code = "invalid_token"
    title = "The credential is not valid"
    advice = "Sign in again at POST /auth/token and send the new access token."


class InsufficientScope(Problem):
    """The credential is good, but not for this.

    Args:
        scope: What it lacks; None where no scope of a service key would do.
    """

    status = HTTPStatus.FORBIDDEN
    code = "insufficient_scope"
    title = "The credential does not allow this"
    advice = "Ask the operator for an account with the role, or a key with the scope, this needs."

    def __init__(self, scope: str | None) -> None:
        self.scope = scope
        super().__init__(
            f"This needs the scope {scope}, which the credential does not carry."
            if scope
            else "This is for whoever has signed in, which a service key has not."
        )


class OverrideNotAllowed(Problem):
    """The profile fixes what the caller wanted to choose."""

    status = HTTPStatus.FORBIDDEN
    code = "override_not_allowed"
    title = "The profile does not allow this override"
    advice = "Leave the named field out, or ask the operator to allow it in the profile."


class UserDisabled(Problem):
    """The account exists but may not act."""

    status = HTTPStatus.FORBIDDEN
    code = "user_disabled"
    title = "The account is disabled"
    advice = "Ask an administrator to enable the account."


class NotFound(Problem):
    """Nothing is at this path."""

    status = HTTPStatus.NOT_FOUND
    code = "not_found"
    title = "Nothing is here"
    advice = "Check the address against the API description at /docs."


class ProfileNotFound(Problem):
    """No such profile for this caller."""

    status = HTTPStatus.NOT_FOUND
    code = "profile_not_found"
    title = "There is no such profile for this caller"
    advice = "Ask for one of the profiles that GET /realtime/profiles lists."


class MethodNotAllowed(Problem):
    """The path exists, the method does not."""

    status = HTTPStatus.METHOD_NOT_ALLOWED
    code = "method_not_allowed"
    title = "The method is not allowed here"
    advice = "Use one of the methods in the Allow header."


class RequestTimeout(Problem):
    """The request did not arrive in time."""

    status = HTTPStatus.REQUEST_TIMEOUT
    code = "request_timeout"
    title = "The request took too long to arrive"
    advice = "Send the whole request at once."


class Conflict(Problem):
    """The state of things forbids it."""

    status = HTTPStatus.CONFLICT
    code = "conflict"
    title = "This conflicts with what is there"
    advice = "Read the present state and try again."


class BodyTooLarge(Problem):
    """The request body is over the limit."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    code = "body_too_large"
    title = "The request body is too large"
    advice = "Send at most 64 KiB."


class UnsupportedMediaType(Problem):
    """The body is not of the type this route reads."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    code = "unsupported_media_type"
    title = "The content type is not supported here"
    advice = "Send JSON as Content-Type: application/json."


class InvalidRequest(Problem):
    """Fields are missing, unknown or wrong."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    code = "invalid_request"
    title = "The request is not valid"
    advice = "Correct the fields listed under errors."


class RateLimited(Problem):
    """Too many requests for now."""

    status = HTTPStatus.TOO_MANY_REQUESTS
    code = "rate_limited"
    title = "Too many requests"
    advice = "Wait as long as Retry-After says, then ask again."


class QuotaExceeded(Problem):
    """The day's allowance is used up."""

    status = HTTPStatus.TOO_MANY_REQUESTS
    code = "quota_exceeded"
    title = "The daily quota is used up"
    advice = "Wait as long as Retry-After says, or ask the operator for a higher quota."


class InternalError(Problem):
    """A bug of ours."""

    status = HTTPStatus.INTERNAL_SERVER_ERROR
    code = "internal_error"
    title = "Something went wrong here"
    advice = "Tell the operator the requestId; the server's log has the rest under it."


class UpstreamProblem(Problem):
    """OpenAI did not give us a client secret.

    Args:
        may_have_minted: The request may have reached OpenAI and no readable answer came, so a
            secret may exist that nobody holds.
        upstream_status: HTTP status of OpenAI's answer, if there was one.
        upstream_code: ``error.code`` (else ``error.type``) of OpenAI's answer, cut to a safe form.
        upstream_request_id: ``x-request-id`` of OpenAI's answer.
        detail: One sentence of ours; nothing of OpenAI's text.
        retry_after_seconds: When asking again makes sense.
    """

    def __init__(
        self,
        detail: str | None = None,
        *,
        may_have_minted: bool = False,
        upstream_status: int | None = None,
        upstream_code: str | None = None,
        upstream_request_id: str | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(detail, retry_after_seconds=retry_after_seconds)
        self.may_have_minted = may_have_minted
        self.upstream_status = upstream_status
        self.upstream_code = upstream_code
        self.upstream_request_id = upstream_request_id


class UpstreamRejected(UpstreamProblem):
    """OpenAI answered 400 or 404: it does not take the session this service asked for."""

    status = HTTPStatus.BAD_GATEWAY
    code = "upstream_rejected"
    title = "OpenAI refused the session"
    advice = "The operator has to look at the profile; asking again will not help."


class UpstreamMisconfigured(UpstreamProblem):
    """OpenAI answered 401 or 403: the key does not work, or not for this."""

    status = HTTPStatus.BAD_GATEWAY
    code = "upstream_misconfigured"
    title = "OpenAI refused the service's credential"
    advice = "The operator has to check the API key; asking again will not help."


class UpstreamInvalidResponse(UpstreamProblem):
    """OpenAI's answer could not be read."""

    status = HTTPStatus.BAD_GATEWAY
    code = "upstream_invalid_response"
    title = "OpenAI's answer could not be read"
    advice = "Ask again; if it stays, tell the operator the requestId."


class UpstreamUnavailable(UpstreamProblem):
    """OpenAI cannot be reached or answers 5xx."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "upstream_unavailable"
    title = "OpenAI is not available"
    advice = "Wait a moment, or as long as Retry-After says, then ask again."


class UpstreamRateLimited(UpstreamProblem):
    """OpenAI asks the service to slow down."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "upstream_rate_limited"
    title = "OpenAI asks for fewer requests"
    advice = "Wait as long as Retry-After says, then ask again."


class UpstreamQuotaExhausted(UpstreamProblem):
    """The money or the hard limit at OpenAI is used up. Never retried."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "upstream_quota_exhausted"
    title = "The service's budget at OpenAI is used up"
    advice = "The operator has to add credit or raise the limit; asking again will not help."


class UpstreamTimeout(UpstreamProblem):
    """OpenAI did not answer in time; it may still have minted a secret."""

    status = HTTPStatus.GATEWAY_TIMEOUT
    code = "upstream_timeout"
    title = "OpenAI did not answer in time"
    advice = "Ask again in a moment."


class AuditUnavailable(Problem):
    """The log cannot be written, so nothing is handed out."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "audit_unavailable"
    title = "The audit log cannot be written"
    advice = "Ask again in a moment; without its log the service gives out nothing."


class IssuerUnavailable(Problem):
    """The keys of the caller's identity provider are not there, so nobody can tell who they are."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "issuer_unavailable"
    title = "The identity provider cannot be asked for its keys"
    advice = "Try again in a moment; the token may well be good."


class Overloaded(Problem):
    """More is asked than can be served."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "overloaded"
    title = "The service is overloaded"
    advice = "Wait as long as Retry-After says, then ask again."


class ModelRetired(Problem):
    """The profile's model is gone and nothing may stand in for it."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "model_retired"
    title = "The model of this profile has been shut down"
    advice = "The operator has to name a live model, or allow replacements."


class MintingOff(Problem):
    """The operator has switched minting off."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "minting_off"
    title = "Minting is switched off"
    advice = "The operator switched it off; ask again later."


def every_problem() -> Iterator[type[Problem]]:
    """Give every kind of problem that has a code of its own."""
    pending: list[type[Problem]] = [Problem]
    while pending:
        for kind in pending.pop().__subclasses__():
            if hasattr(kind, "code"):
                yield kind
            pending.append(kind)
