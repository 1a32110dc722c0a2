"""Signing in with an account of our own, and out; the keys that prove our tokens."""

from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Literal, Self

from fastapi import APIRouter, Form, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from app.base.errors import (
    AuditUnavailable,
    Conflict,
    InvalidToken,
    Overloaded,
    RateLimited,
    UnsupportedMediaType,
)
from app.identity.callers import Caller, Origin
from app.identity.external_users import ExternalUser
from app.identity.sign_in import Granted, GrantRefused
from app.identity.users import User
from app.runtime import Runtime
from app.web.callers import AnyCaller, OriginDep, RuntimeDep
from app.web.problems import OAuthError, problem_responses
from app.web.schema import Answer, Omissible, success

router = APIRouter(tags=["Sign-in"])

NO_STORE = {"Cache-Control": "no-store"}  # RFC 6749 section 5.1


FORMS_ONLY = UnsupportedMediaType(
    "This route reads application/x-www-form-urlencoded in UTF-8."
    " Send the body so, and name it in Content-Type."
)


class Grant(BaseModel):
    """A request to the token endpoint, RFC 6749 sections 4.3.2 and 6. Each parameter comes once."""

    # Nothing is required here: what is missing is refused as section 5.2 says, not with a 422.
    model_config = ConfigDict(json_schema_extra={"required": ["grant_type"]})

    grant_type: Omissible[str] = Field(
        default=None,
        description="What is exchanged: `password` or `refresh_token`.",
        json_schema_extra={"enum": ["password", "refresh_token"]},
    )
    username: Omissible[str] = Field(
        default=None,
        description="With `password`: the e-mail address.",
        examples=["ada@example.com"],
    )
    password: Omissible[SecretStr] = Field(
        default=None, description="With `password`: as it is, in UTF-8."
    )
    refresh_token: Omissible[SecretStr] = Field(
        default=None, description="With `refresh_token`: the newest one, which is used up by this."
    )
    scope: Omissible[str] = Field(
        default=None,
        description="Scopes, separated by blanks, to get fewer than the role has, or than the"
        " sign-in was granted. Left out or empty: all of them.",
        examples=[""],
    )


class Revocation(BaseModel):
    """A request to the revocation endpoint, RFC 7009 section 2.1."""

    # Nothing is required here, as with a grant.
    model_config = ConfigDict(json_schema_extra={"required": ["token"]})

    token: Omissible[SecretStr] = Field(
        default=None, description="A refresh token or an access token."
    )
    token_type_hint: Omissible[str] = Field(
        default=None, description="Not needed: a token shows what it is."
    )


class TokenGrant(BaseModel):
    """A successful answer of the token endpoint, RFC 6749 section 5.1."""

    access_token: str = Field(description="JWT of RFC 9068, signed with ES256.")
    token_type: Literal["Bearer"]
    expires_in: int = Field(description="How long it is good, in seconds.")
    scope: str = Field(description="What it is good for: scopes, separated by blanks.")
    refresh_token: str = Field(
        description="For the next access token: `rtr_…`, good once. Keep it as safe as a password."
    )
    refresh_expires_in: int = Field(description="How long that is good unused, in seconds.")

    @classmethod
    def of(cls, granted: Granted) -> Self:
        """Put *granted* into the words of the RFC."""
        return cls(
            access_token=granted.access_token,
            token_type="Bearer",
            expires_in=granted.expires_in,
            scope=granted.scope,
            refresh_token=granted.refresh_token,
            refresh_expires_in=granted.refresh_expires_in,
        )


class Me(Answer):
    """The account behind the access token."""

    id: str = Field(description="`usr_…`; the `actor` of rows in the audit log.")
    email: str | None = Field(description="Null for users of an external identity provider.")
    role: Literal["user", "auditor", "admin"]
    scopes: list[str] = Field(description="What this access token is good for.")
    created_at: datetime = Field(description="When the account was made, RFC 3339.")

    @classmethod
    def of(cls, user: User | ExternalUser, caller: Caller) -> Self:
        """Show *user* to themselves."""
        return cls(
            id=user.id,
            email=user.email if isinstance(user, User) else None,
            role=user.role if isinstance(user, User) else caller.role,
            scopes=sorted(caller.scopes),
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
    "unsupported_grant_type": "The grant types here are: password, refresh_token.",
}


@router.post(
    "/auth/token",
    operation_id="signIn",
    summary="Sign in, or stay signed in",
    response_model=TokenGrant,
    responses={
        **success(
            "An access token, and a refresh token to get the next one with.",
            example={
                "access_token": "eyJhbGciOiJFUzI1NiIsInR5cCI6ImF0K2p3dCIs….eyJpc3MiOiJodHRw….Yx3f…",
                "token_type": "Bearer",
                "expires_in": 600,
                "scope": "mint",
                "refresh_token": "rtr_9Jx…",
                "refresh_expires_in": 1209600,
            },
            cache_control="no-store",
        ),
        400: {
            "description": "Refused; `invalid_grant` is the answer to every wrong combination of"
            " e-mail address and password, and to every refresh token that is not good",
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
            FORMS_ONLY,
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
    grant: Annotated[Grant, Form()],
) -> JSONResponse:
    """Exchange e-mail and password, or a refresh token, for an access token.

    When the access token has expired, ask again with `grant_type=refresh_token`. A refresh token
    is good once: the answer has the next one. One that comes back later than ten seconds after it
    was used counts as stolen and ends the sign-in, so let one place of your frontend do this.

    The OAuth 2.0 password grant is for the application's own frontend and nobody else's: RFC 9700
    advises against handing passwords to third parties. Unknown parameters are ignored, and
    refusals are those of RFC 6749 section 5.2.
    """
    try:
        granted = await _granted(grant, runtime, origin, each_once=await _each_once(request))
    except GrantRefused as refusal:
        return _refused(refusal)
    return JSONResponse(TokenGrant.of(granted).model_dump(), headers=NO_STORE)


@router.post(
    "/auth/revoke",
    operation_id="signOut",
    summary="Sign out",
    response_class=Response,
    responses={
        200: {"description": "The sign-in has ended, or the token is none of ours."},
        400: {
            "description": "There is no token, or more than one",
            "model": OAuthError,
            "content": {
                "application/json": {
                    "examples": {
                        "invalid_request": {
                            "value": {
                                "error": "invalid_request",
                                "error_description": "Send the token, once.",
                            }
                        }
                    }
                }
            },
        },
        **problem_responses(FORMS_ONLY, AuditUnavailable, path="/auth/revoke"),
    },
)
async def sign_out(
    request: Request,
    runtime: RuntimeDep,
    origin: OriginDep,
    revocation: Annotated[Revocation, Form()],
) -> Response:
    """End the sign-in that a refresh token or an access token comes from.

    All of its tokens are refused from then on. As RFC 7009 says, a token that is not known is no
    error, and unknown parameters are ignored.
    """
    if not revocation.token or not await _each_once(request):
        return _refused(GrantRefused("invalid_request", "Send the token, once."))
    await runtime.sign_out.by_token(revocation.token.get_secret_value(), origin)
    return Response()


@router.post(
    "/auth/sign-out-everywhere",
    operation_id="signOutEverywhere",
    summary="End all of the caller's sign-ins",
    status_code=HTTPStatus.NO_CONTENT,
    responses={
        204: {"description": "They have ended, the one that asked included."},
        **problem_responses(
            Conflict("You are signed in at your identity provider. Sign out there."),
            AuditUnavailable,
        ),
    },
)
async def sign_out_everywhere(caller: AnyCaller, runtime: RuntimeDep) -> None:
    """End every sign-in of the caller, on all devices: their tokens are refused from then on."""
    await runtime.sign_out.everywhere(caller)


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
    holder = runtime.users if caller.sign_in_id else runtime.external_users
    user = await holder.get(caller.user_id)
    if user is None:
        raise InvalidToken
    return Me.of(user, caller)


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


async def _granted(grant: Grant, runtime: Runtime, origin: Origin, *, each_once: bool) -> Granted:
    """Do what *grant* asks for.

    Raises:
        GrantRefused: It is not well formed, or refused.
    """
    match grant.grant_type:
        case None:
            raise GrantRefused("invalid_request", "The parameter grant_type is missing.")
        case "password":
            if not grant.username or not grant.password or not each_once:
                raise GrantRefused("invalid_request", "Send username and password, each once.")
            return await runtime.sign_in.with_password(
                origin,
                email=grant.username,
                password=grant.password.get_secret_value(),
                scope=grant.scope,
            )
        case "refresh_token":
            if not grant.refresh_token or not each_once:
                raise GrantRefused("invalid_request", "Send the refresh_token, once.")
            return await runtime.sign_in.with_refresh_token(
                origin, token=grant.refresh_token.get_secret_value(), scope=grant.scope
            )
        case _:
            raise GrantRefused(
                "unsupported_grant_type", "The grant types here are: password, refresh_token."
            )


async def _each_once(request: Request) -> bool:
    """Tell whether no parameter of the form is repeated, as RFC 6749 section 3.2 asks."""
    names = [name for name, _ in (await request.form()).multi_items()]
    return len(names) == len(set(names))


def _refused(refusal: GrantRefused) -> JSONResponse:
    error = OAuthError(error=refusal.error, error_description=refusal.description)
    return JSONResponse(error.model_dump(), status_code=400, headers=NO_STORE)
