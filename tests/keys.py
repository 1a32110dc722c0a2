"""Service keys in tests."""

from typing import Any

from app.identity.callers import Caller, Origin
from app.identity.key_ring import NewKey
from app.runtime import Runtime

BACKEND = Origin(request_id="req_backend", ip="192.0.2.80", user_agent="backend")


async def new_key(runtime: Runtime, *scopes: str, **wanted: Any) -> NewKey:
    """Make a key, for asking on behalf of users unless told otherwise."""
    scopes = scopes or ("mint:on-behalf",)
    return await runtime.key_ring.create("a backend", scopes=scopes, by=None, **wanted)


def bearer_of(new: NewKey) -> dict[str, str]:
    """Return the header that the holder of the key sends."""
    return {"Authorization": f"Bearer {new.text.get_secret_value()}"}


async def shown(runtime: Runtime, new: NewKey, *, scope: str | None = "mint") -> Caller:
    """Return the caller who shows the key where *scope* is needed."""
    authorization = bearer_of(new)["Authorization"]
    return await runtime.callers.authenticate(authorization, BACKEND, scope=scope)


async def asking_for(runtime: Runtime, new: NewKey, user: str = "their-user-17") -> Caller:
    """Return the caller who asks for a token on behalf of *user*."""
    return runtime.callers.on_behalf_of(await shown(runtime, new), user)
