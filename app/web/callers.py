"""The two dependencies of our routes: the runtime, and who calls."""

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Depends, Request, Response, Security
from fastapi.openapi.models import OAuthFlowPassword, OAuthFlows
from fastapi.security import HTTPBearer, OAuth2
from starlette.types import Scope

from app.base.errors import FieldError, InvalidRequest
from app.identity.callers import Caller, Origin
from app.runtime import Runtime

LONGEST_USER_AGENT = 512

SCOPE_MEANINGS = {
    "mint": "ask for tokens, and see what they can be bound to",
    "audit:read": "read the audit log",
    "admin": "change users and settings",
}

PASSWORD_SCHEME = "accessToken"

# Two ways to come by the same header, for the OpenAPI document: bring a token, or sign in. In this
# order the dialog of Swagger UI opens at its top, with the cursor where one signs in.
bearer_token = HTTPBearer(
    scheme_name="bearerToken",
    bearerFormat="JWT",
    description="An access token you have, without the word `Bearer`.",
    auto_error=False,
)
password_grant = OAuth2(
    flows=OAuthFlows(password=OAuthFlowPassword(tokenUrl="auth/token", scopes=SCOPE_MEANINGS)),
    scheme_name=PASSWORD_SCHEME,
    description="Sign in with e-mail and password, as `POST /auth/token` does. Leave the client's"
    " id and secret empty. Without a scope you get all that your role has.",
    auto_error=False,
)

SERVICE_KEY_SCHEME = "serviceKey"

service_key: dict[str, str] = {
    "type": "http",
    "scheme": "bearer",
    "bearerFormat": "rtk_…",
    "description": "The service key of a backend, without the word `Bearer`.",
}
"""The third way to that header, in the document alone: a dependency would cost each request."""

PUBLIC = frozenset(
    {
        "/",
        "/.well-known/jwks.json",
        "/auth/reset",
        "/auth/revoke",
        "/auth/token",
        "/docs",
        "/errors",
        "/errors/{code}",
        "/livez",
        "/openapi.json",
        "/readyz",
        "/reset",
        "/version",
    }
)
"""Every route that answers strangers; all others take a caller. Beside them stands `/metrics`: it
asks for a token of its own, and without one it is there in the sandbox alone."""

NO_PARAMETERS = FieldError("query", "must be empty: this operation has no parameters there")
"""What is at fault where there are some all the same."""


# Both are coroutines although they wait for nothing: plain functions FastAPI runs in a thread.


async def get_runtime(request: Request) -> Runtime:
    """Return what the process shares."""
    runtime: Runtime = request.state.runtime
    return runtime


RuntimeDep = Annotated[Runtime, Depends(get_runtime)]


def origin_of(scope: Scope) -> Origin:
    """Return where the request of *scope* comes from."""
    user_agent = _header(scope, b"user-agent")
    state = scope["state"]
    return Origin(
        request_id=state["request_id"],
        ip=state["client_address"],
        user_agent=user_agent[:LONGEST_USER_AGENT] if user_agent else None,
    )


async def get_origin(request: Request) -> Origin:
    """Return where *request* comes from."""
    return origin_of(request.scope)


OriginDep = Annotated[Origin, Depends(get_origin)]


async def admit(scope: Scope, runtime: Runtime, *, needs: str | None) -> Caller:
    """Return the caller whose credential the request of *scope* carries, if it has what it *needs*.

    Whether they still may act stands in the database, see `Callers.authenticate`.

    Raises:
        Unauthenticated, InvalidToken, InsufficientScope: See there.
    """
    authorization = _header(scope, b"authorization")
    caller = await runtime.callers.authenticate(authorization, origin_of(scope), scope=needs)
    scope["state"]["log"]["actor"] = caller.user_id
    return caller


def take_no_parameters(scope: Scope) -> None:
    """Refuse what stands in the address: whoever put it there would not get what they wish for.

    Raises:
        InvalidRequest: There is something.
    """
    if scope["query_string"]:
        raise InvalidRequest(errors=[NO_PARAMETERS])


def _header(scope: Scope, name: bytes) -> str | None:
    """Return the first header of that *name*, in lower case as ASGI has it."""
    for header, value in scope["headers"]:
        if header == name:
            return str(value, "latin-1")
    return None


def caller_with(
    scope: str | None, *, confirmed: bool = True
) -> Callable[..., Coroutine[Any, Any, Caller]]:
    """Return the dependency that admits callers whose credential carries *scope*.

    Args:
        scope: None for any caller.
        confirmed: Look into the database whether the caller may still act. Minting does so itself,
            together with its first row.
    """
    scopes = [] if scope is None else [scope]

    async def caller(
        request: Request,
        response: Response,
        runtime: RuntimeDep,
        # For the description; `admit` reads the header itself.
        _bearer: Annotated[object, Security(bearer_token, scopes=scopes)],
        _password: Annotated[object, Security(password_grant, scopes=scopes)],
    ) -> Caller:
        caller = await admit(request.scope, runtime, needs=scope)
        if not request.scope["route"].dependant.query_params:  # those that have some refuse others
            take_no_parameters(request.scope)
        if confirmed:
            await runtime.callers.confirm(caller)
        response.headers["Cache-Control"] = "no-store"  # it is for them, and not for a disk
        return caller

    return caller


AnyCaller = Annotated[Caller, Depends(caller_with(None))]
MintingCaller = Annotated[Caller, Depends(caller_with("mint", confirmed=False))]
ProfileCaller = Annotated[Caller, Depends(caller_with("mint"))]
Auditor = Annotated[Caller, Depends(caller_with("audit:read"))]
Admin = Annotated[Caller, Depends(caller_with("admin"))]
