"""The two dependencies of our routes: the runtime, and who calls."""

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Depends, Request, Security
from fastapi.openapi.models import OAuthFlowPassword, OAuthFlows
from fastapi.security import HTTPBearer, OAuth2

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


# Both are coroutines although they wait for nothing: plain functions FastAPI runs in a thread.


async def get_runtime(request: Request) -> Runtime:
    """Return what the process shares."""
    runtime: Runtime = request.state.runtime
    return runtime


RuntimeDep = Annotated[Runtime, Depends(get_runtime)]


async def origin_of(request: Request) -> Origin:
    """Return where *request* comes from."""
    user_agent = request.headers.get("user-agent")
    return Origin(
        request_id=request.state.request_id,
        ip=request.state.client_address,
        user_agent=user_agent[:LONGEST_USER_AGENT] if user_agent else None,
    )


OriginDep = Annotated[Origin, Depends(origin_of)]


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
        runtime: RuntimeDep,
        origin: OriginDep,
        _: Annotated[object, Security(bearer_token, scopes=scopes)],
        authorization: Annotated[str | None, Security(password_grant, scopes=scopes)],
    ) -> Caller:
        caller = await runtime.callers.authenticate(authorization, origin, scope=scope)
        request.state.log["actor"] = caller.user_id
        if confirmed:
            await runtime.callers.confirm(caller)
        return caller

    return caller


AnyCaller = Annotated[Caller, Depends(caller_with(None))]
MintingCaller = Annotated[Caller, Depends(caller_with("mint", confirmed=False))]
ProfileCaller = Annotated[Caller, Depends(caller_with("mint"))]
AdminCaller = Annotated[Caller, Depends(caller_with("admin"))]
Auditor = Annotated[Caller, Depends(caller_with("audit:read"))]
