"""Changing a password over HTTP: as JSON, and on the page where a link leads."""

from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Self

from fastapi import APIRouter, Body, Form, Path, Response
from fastapi.responses import HTMLResponse
from pydantic import Field, SecretStr

from app.base.errors import (
    AuditUnavailable,
    Conflict,
    FieldError,
    InvalidRequest,
    NotFound,
    Overloaded,
    Problem,
    RateLimited,
)
from app.identity.password_changes import NewLink
from app.identity.password_rules import MIN_LENGTH
from app.identity.passwords import MAX_LENGTH
from app.runtime import RESET_PAGE
from app.web.auth import NO_STORE
from app.web.callers import Admin, AnyCaller, OriginDep, RuntimeDep
from app.web.pages import page_templates
from app.web.problems import problem_responses
from app.web.schema import Answer, Asked, success

router = APIRouter()

_RULES = (
    f"{MIN_LENGTH} to {MAX_LENGTH} characters of any kind, not easily guessed, without a part of"
    " the e-mail address or the name of this service."
)
_EASY = FieldError(
    "newPassword",
    'is too easy to guess. Repeats like "aaa" are easy to guess. Four or more words that have'
    " nothing to do with one another make a good one.",
)
_SPENT = FieldError("token", "is not good any more, or never was; ask for a new link")
_EXAMPLE_PASSWORD = "violin harbour seventeen plums"
_EXAMPLE_CHANGE = {
    "currentPassword": "correct horse battery staple",
    "newPassword": _EXAMPLE_PASSWORD,
}
_EXAMPLE_RESET = {"token": "rts_9Jx…", "password": _EXAMPLE_PASSWORD}
_PAGE_HEADERS = {
    **NO_STORE,
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
}


class PasswordChange(Asked):
    """Another password for the caller."""

    current_password: SecretStr = Field(description="The one that is to be replaced.")
    new_password: SecretStr = Field(description=f"The one to come: {_RULES}")


class PasswordReset(Asked):
    """Another password for whom a link was made."""

    token: SecretStr = Field(description="What follows the `#` in the link, or the whole link.")
    password: SecretStr = Field(description=f"The password to come: {_RULES}")


class ResetLink(Answer):
    """A link to set a password. Who has it has the account."""

    link: str = Field(description="Good once; making another one or changing the password ends it.")
    expires_at: datetime = Field(description="When it ends at the latest, RFC 3339.")

    @classmethod
    def of(cls, link: NewLink) -> Self:
        """Put *link* into an answer."""
        return cls(link=link.url, expires_at=link.expires_at)


@router.post(
    "/auth/password",
    operation_id="changePassword",
    summary="Change one's password",
    tags=["Sign-in"],
    status_code=HTTPStatus.NO_CONTENT,
    responses={
        204: {"description": "It is changed; all other sign-ins have ended."},
        **problem_responses(
            InvalidRequest(errors=[_EASY]),
            Conflict("You are signed in at your identity provider. Change it there."),
            RateLimited,
            AuditUnavailable,
            Overloaded,
        ),
    },
)
async def change_password(
    change: Annotated[
        PasswordChange,
        Body(openapi_examples={"change": {"value": _EXAMPLE_CHANGE}}),
    ],
    caller: AnyCaller,
    runtime: RuntimeDep,
) -> None:
    """Give the caller another password and end their other sign-ins, on all devices.

    Wrong passwords count as at `POST /auth/token`: after some, each further try has to wait.
    """
    await runtime.password_changes.by_owner(
        caller,
        current=change.current_password.get_secret_value(),
        new=change.new_password.get_secret_value(),
    )


@router.post(
    "/auth/reset",
    operation_id="resetPassword",
    summary="Set a password by a link",
    tags=["Sign-in"],
    status_code=HTTPStatus.NO_CONTENT,
    responses={
        204: {"description": "It is set; all sign-ins of the account have ended."},
        **problem_responses(
            InvalidRequest(errors=[_SPENT]), RateLimited, AuditUnavailable, Overloaded
        ),
    },
)
async def reset_password(
    reset: Annotated[
        PasswordReset,
        Body(openapi_examples={"reset": {"value": _EXAMPLE_RESET}}),
    ],
    origin: OriginDep,
    runtime: RuntimeDep,
) -> None:
    """Set a password by the token of a link that an admin has made.

    The token is used up. A password that may not be set leaves it as it is.
    """
    await runtime.password_changes.by_link(
        origin, token=reset.token.get_secret_value(), new=reset.password.get_secret_value()
    )


@router.post(
    "/admin/api/users/{id}/reset-link",
    operation_id="makeResetLink",
    summary="Make a link to set a user's password",
    tags=["Users"],
    responses={
        **success(
            "The link, shown this once. Give it to the user over a way that nobody else reads.",
            example={
                "link": "https://tokens.example.com/reset#rts_9Jx…",
                "expiresAt": "2026-11-20T13:00:00Z",
            },
            cache_control="no-store",
        ),
        **problem_responses(
            NotFound("No account has this id."),
            Conflict("The account is disabled. Enable it first."),
            AuditUnavailable,
        ),
    },
)
async def make_reset_link(
    user_id: Annotated[str, Path(alias="id", description="`usr_…`")],
    caller: Admin,
    runtime: RuntimeDep,
    response: Response,
) -> ResetLink:
    """Make a link by which whoever has it may set the user's password, once, within an hour.

    An older link of the user ends. The password stays as it is until the link is used.
    """
    link = await runtime.password_changes.make_link(user_id, by=caller)
    response.headers.update(NO_STORE)
    return ResetLink.of(link)


def reset_page(*, public_url: str) -> APIRouter:
    """Return the page where a link leads.

    The token follows a ``#`` in the link, so that browsers never send it in an address. A script
    moves it into the form; without scripts the user does, by hand.

    Args:
        public_url: Without a slash at its end.
    """
    page = page_templates(public_url).get_template("reset.html")
    router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)

    def shown(
        status: int = HTTPStatus.OK,
        *,
        done: bool = False,
        token: str = "",
        problem: Problem | None = None,
    ) -> HTMLResponse:
        faults = {error.field: error.reason for error in problem.errors} if problem else {}
        text = page.render(
            done=done,
            token=token,
            detail=problem.detail if problem and not faults else "",
            faults=faults,
            shortest=MIN_LENGTH,
            longest=MAX_LENGTH,
        )
        headers = dict(_PAGE_HEADERS)
        if problem and problem.retry_after_seconds is not None:
            headers["Retry-After"] = str(problem.retry_after_seconds)
        return HTMLResponse(text, status, headers)

    @router.get(RESET_PAGE)
    async def ask() -> HTMLResponse:
        return shown()

    @router.post(RESET_PAGE)
    async def reset(
        runtime: RuntimeDep,
        origin: OriginDep,
        token: Annotated[SecretStr, Form()],
        password: Annotated[SecretStr, Form()],
    ) -> HTMLResponse:
        sent = token.get_secret_value()
        try:
            await runtime.password_changes.by_link(
                origin, token=sent, new=password.get_secret_value()
            )
        except Problem as problem:
            return shown(problem.status, token=sent, problem=problem)
        return shown(done=True)

    return router
