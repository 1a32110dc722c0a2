"""Signing in with an account of our own, and the keys that prove our tokens."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Form, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from app.base.errors import (
    InsufficientScope,
    InvalidToken,
    Unauthenticated,
    UserDisabled,
)
from app.identity.sign_in import GrantRefused
from app.identity.users import User
from app.web.callers import AnyCaller, OriginDep, RuntimeDep
from app.web.problems import problem_responses
from app.web.schema import Answer

router = APIRouter(tags=["Sign-in"])

NO_STORE = {"Cache-Control": "no-store"}  # RFC 6749 section 5.1


class TokenGrant(BaseModel):
    """A successful answer of the token endpoint, RFC 6749 section 5.1."""

    access_token: str = Field(description="JWT, `typ` at+jwt, ES256.")
    token_type: Literal["Bearer"] = "Bearer"
    expires_in: int = Field(description="Seconds.")
    scope: str = Field(description="What the token is good for, separated by blanks.")


class GrantError(BaseModel):
    """A refusal of the token endpoint, RFC 6749 section 5.2."""

    error: str
    error_description: str


class Me(Answer):
    """The account behind the access token."""

    id: str
    email: str
    role: Literal["user", "auditor", "admin"]
    scopes: list[str] = Field(description="What this access token is good for.")
    created_at: datetime

    @classmethod
    def of(cls, user: User, scopes: frozenset[str]) -> Self:
        """Show *user* to themselves."""
        return cls(
            id=user.id,
            email=user.email,
            role=user.role,
            scopes=sorted(scopes),
            created_at=user.created_at,
        )


class PublicKey(BaseModel):
    """A P-256 key in public, RFC 7517 and 7518."""

    kty: Literal["EC"]
    crv: Literal["P-256"]
    x: str
    y: str
    kid: str
    use: Literal["sig"]
    alg: Literal["ES256"]


class KeySet(BaseModel):
    """The keys that prove our access tokens, RFC 7517 section 5."""

    keys: list[PublicKey]


def _grant_error(description: str, *errors: str) -> dict[str, Any]:
    return {
        "description": description,
        "model": GrantError,
        "content": {
            "application/json": {
                "examples": {
                    error: {"value": {"error": error, "error_description": "…"}} for error in errors
                }
            }
        },
    }


@router.post(
    "/auth/token",
    operation_id="signIn",
    summary="Sign in with e-mail and password",
    response_model=TokenGrant,
    responses={
        400: _grant_error(
            "Refused",
            "invalid_grant",
            "invalid_request",
            "invalid_scope",
            "unsupported_grant_type",
        ),
        413: _grant_error("The body is over 64 KiB", "invalid_request"),
        415: _grant_error("The body is not a form", "invalid_request"),
        429: _grant_error("Too many attempts; see `Retry-After`", "rate_limited"),
        503: _grant_error("Ask again; see `Retry-After`", "temporarily_unavailable"),
    },
)
async def sign_in(
    request: Request,
    runtime: RuntimeDep,
    origin: OriginDep,
    *,
    grant_type: Annotated[
        str | None, Form(description="`password`.", examples=["password"])
    ] = None,
    username: Annotated[
        str | None, Form(description="The e-mail address.", examples=["ada@example.com"])
    ] = None,
    password: Annotated[str | None, Form(description="The password.")] = None,
    scope: Annotated[
        str | None, Form(description="Less than the role's scopes, if less will do.")
    ] = None,
) -> JSONResponse:
    """Exchange e-mail and password for an access token, good for ten minutes.

    The OAuth password grant, for the application's own frontend and nobody else's: RFC 9700
    advises against handing passwords to third parties. Unknown parameters are ignored.
    """
    names = [name for name, _ in (await request.form()).multi_items()]
    try:
        _check_grant_type(grant_type)
        if not username or not password or len(names) != len(set(names)):
            raise GrantRefused("invalid_request", "Send username and password, each once.")  # noqa: TRY301 - answered below
        granted = await runtime.sign_in.with_password(
            origin, email=username, password=password, scope=scope
        )
    except GrantRefused as refusal:
        error = GrantError(error=refusal.error, error_description=refusal.description)
        return JSONResponse(error.model_dump(), status_code=400, headers=NO_STORE)
    grant = TokenGrant(
        access_token=granted.access_token, expires_in=granted.expires_in, scope=granted.scope
    )
    return JSONResponse(grant.model_dump(), headers=NO_STORE)


@router.get(
    "/auth/me",
    operation_id="whoAmI",
    summary="Show the account behind the access token",
    responses=problem_responses(Unauthenticated, InvalidToken, InsufficientScope, UserDisabled),
)
async def who_am_i(caller: AnyCaller, runtime: RuntimeDep) -> Me:
    """Show who the access token belongs to and what it is good for."""
    user = await runtime.users.get(caller.user_id)
    if user is None:
        raise InvalidToken
    return Me.of(user, caller.scopes)


@router.get(
    "/.well-known/jwks.json",
    operation_id="listPublicKeys",
    summary="List the keys that prove our access tokens",
    response_model=KeySet,
)
async def list_public_keys(runtime: RuntimeDep) -> JSONResponse:
    """List the public keys by which anyone can check the signature of our access tokens."""
    return JSONResponse(
        runtime.access_tokens.jwks(), headers={"Cache-Control": "public, max-age=300"}
    )


def _check_grant_type(grant_type: str | None) -> None:
    if not grant_type:
        raise GrantRefused("invalid_request", "The parameter grant_type is missing.")
    if grant_type != "password":
        raise GrantRefused("unsupported_grant_type", "The grant types here are: password.")
