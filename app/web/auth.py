"""Signing in with an account of our own, and the keys that prove our tokens."""

from datetime import datetime
from typing import Annotated, Literal, Self

from fastapi import APIRouter, Form, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from app.base.errors import (
    AuditUnavailable,
    InvalidToken,
    Overloaded,
    RateLimited,
    UnsupportedMediaType,
)
from app.identity.sign_in import GrantRefused
from app.identity.users import User
from app.web.callers import AnyCaller, OriginDep, RuntimeDep
from app.web.problems import OAuthError, problem_responses
from app.web.schema import Answer, Omissible, success

router = APIRouter(tags=["Sign-in"])

NO_STORE = {"Cache-Control": "no-store"}  # RFC 6749 section 5.1


class PasswordGrant(BaseModel):
    """A request to the token endpoint, RFC 6749 section 4.3.2. Each parameter comes once."""

    # Nothing is required here: what is missing is refused as section 5.2 says, not with a 422.
    model_config = ConfigDict(
        json_schema_extra={"required": ["grant_type", "username", "password"]}
    )

    grant_type: Omissible[str] = Field(
        default=None, description="Always `password`.", json_schema_extra={"const": "password"}
    )
    username: Omissible[str] = Field(
        default=None, description="The e-mail address.", examples=["ada@example.com"]
    )
    password: Omissible[SecretStr] = Field(default=None, description="As it is, in UTF-8.")
    scope: Omissible[str] = Field(
        default=None,
        description="Scopes, separated by blanks, to get fewer than the role has. Left out or"
        " empty: all of them.",
        examples=[""],
    )


class TokenGrant(BaseModel):
    """A successful answer of the token endpoint, RFC 6749 section 5.1."""

    access_token: str = Field(description="JWT of RFC 9068, signed with ES256.")
    token_type: Literal["Bearer"]
    expires_in: int = Field(description="How long it is good, in seconds.")
    scope: str = Field(description="What it is good for: scopes, separated by blanks.")


class Me(Answer):
    """The account behind the access token."""

    id: str = Field(description="`usr_…`; the `actor` of rows in the audit log.")
    email: str
    role: Literal["user", "auditor", "admin"]
    scopes: list[str] = Field(description="What this access token is good for.")
    created_at: datetime = Field(description="When the account was made, RFC 3339.")

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
    x: str = Field(description="Coordinate, base64url.")
    y: str = Field(description="Coordinate, base64url.")
    kid: str = Field(description="Thumbprint of RFC 7638; in the header of the tokens it proves.")
    use: Literal["sig"]
    alg: Literal["ES256"]


class KeySet(BaseModel):
    """The keys that prove our access tokens, RFC 7517 section 5."""

    keys: list[PublicKey]


_REFUSED_GRANTS = {
    "invalid_grant": "The e-mail address or the password is wrong.",
    "invalid_request": "Send username and password, each once.",
    "invalid_scope": "This account may ask for: mint.",
    "unsupported_grant_type": "The grant types here are: password.",
}


@router.post(
    "/auth/token",
    operation_id="signIn",
    summary="Sign in with e-mail and password",
    response_model=TokenGrant,
    responses={
        **success(
            "The access token.",
            example={
                "access_token": "eyJhbGciOiJFUzI1NiIsInR5cCI6ImF0K2p3dCIs….eyJpc3MiOiJodHRw….Yx3f…",
                "token_type": "Bearer",
                "expires_in": 600,
                "scope": "mint",
            },
            cache_control="no-store",
        ),
        400: {
            "description": "Refused; `invalid_grant` is the answer to every wrong combination of"
            " e-mail address and password",
            "model": OAuthError,
            "content": {
                "application/json": {
                    "examples": {
                        error: {"value": {"error": error, "error_description": description}}
                        for error, description in _REFUSED_GRANTS.items()
                    }
                }
            },
        },
        **problem_responses(
            UnsupportedMediaType(
                "This route reads application/x-www-form-urlencoded in UTF-8."
                " Send the body so, and name it in Content-Type."
            ),
            RateLimited,
            AuditUnavailable,
            Overloaded,
            path="/auth/token",
        ),
    },
)
async def sign_in(
    request: Request,
    runtime: RuntimeDep,
    origin: OriginDep,
    grant: Annotated[PasswordGrant, Form()],
) -> JSONResponse:
    """Exchange e-mail and password for an access token.

    The OAuth 2.0 password grant, for the application's own frontend and nobody else's: RFC 9700
    advises against handing passwords to third parties. Unknown parameters are ignored, and
    refusals are those of RFC 6749 section 5.2. Ask again when the token has expired.
    """
    names = [name for name, _ in (await request.form()).multi_items()]
    try:
        _check_grant_type(grant.grant_type)
        if not grant.username or not grant.password or len(names) != len(set(names)):
            raise GrantRefused("invalid_request", "Send username and password, each once.")  # noqa: TRY301 - answered below
        granted = await runtime.sign_in.with_password(
            origin,
            email=grant.username,
            password=grant.password.get_secret_value(),
            scope=grant.scope,
        )
    except GrantRefused as refusal:
        error = OAuthError(error=refusal.error, error_description=refusal.description)
        return JSONResponse(error.model_dump(), status_code=400, headers=NO_STORE)
    answer = TokenGrant(
        access_token=granted.access_token,
        token_type="Bearer",
        expires_in=granted.expires_in,
        scope=granted.scope,
    )
    return JSONResponse(answer.model_dump(), headers=NO_STORE)


@router.get(
    "/auth/me",
    operation_id="whoAmI",
    summary="Show the account behind the access token",
    responses=success(
        "Whose token it is.",
        example={
            "id": "usr_4KQ2M8Z6T0V9N7R5P3S1W8XHJ0",
            "email": "ada@example.com",
            "role": "user",
            "scopes": ["mint"],
            "createdAt": "2026-11-02T08:15:30.123456Z",
        },
    ),
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
    responses=success(
        "A JWK Set.",
        example={
            "keys": [
                {
                    "kty": "EC",
                    "crv": "P-256",
                    "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
                    "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM",
                    "kid": "cn-I_WNMClehiVp51i_0VpOENW1upEerA8sEam5hn-s",
                    "use": "sig",
                    "alg": "ES256",
                }
            ]
        },
        cache_control="public, max-age=300",
    ),
)
async def list_public_keys(runtime: RuntimeDep) -> JSONResponse:
    """List the public keys by which a backend of yours can check our access tokens itself."""
    return JSONResponse(
        runtime.access_tokens.jwks(), headers={"Cache-Control": "public, max-age=300"}
    )


def _check_grant_type(grant_type: str | None) -> None:
    if not grant_type:
        raise GrantRefused("invalid_request", "The parameter grant_type is missing.")
    if grant_type != "password":
        raise GrantRefused("unsupported_grant_type", "The grant types here are: password.")
