"""The two dependencies of our routes: the runtime, and who calls."""

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.openapi.models import OAuthFlowPassword, OAuthFlows
from fastapi.security import OAuth2

from app.identity.callers import Caller, Origin
from app.runtime import Runtime

LONGEST_USER_AGENT = 512

SCOPE_MEANINGS = {
    "mint": "ask for client secrets",
    "audit:read": "read the audit log",
    "admin": "change users and settings",
}

oauth2 = OAuth2(
    flows=OAuthFlows(password=OAuthFlowPassword(tokenUrl="auth/token", scopes=SCOPE_MEANINGS)),
    scheme_name="accessToken",
    description="An access token from `POST /auth/token`, sent as `Authorization: Bearer …`.",
    auto_error=False,
)

PUBLIC = frozenset(
    {
        "/",
        "/.well-known/jwks.json",
        "/auth/token",
        "/docs",
        "/errors",
        "/errors/{code}",
        "/livez",
        "/openapi.json",
        "/readyz",
        "/version",
    }
)
"""Every route that answers strangers; all others take a caller."""


def get_runtime(request: Request) -> Runtime:
    """Return what the process shares."""
    runtime: Runtime = request.state.runtime
    return runtime


RuntimeDep = Annotated[Runtime, Depends(get_runtime)]


def origin_of(request: Request) -> Origin:
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

    async def caller(
        request: Request,
        runtime: RuntimeDep,
        origin: OriginDep,
        authorization: Annotated[str | None, Depends(oauth2)],
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
Auditor = Annotated[Caller, Depends(caller_with("audit:read"))]
