"""The page of service keys: for admins."""

from typing import Annotated

from fastapi import APIRouter, Form, Path, Query, Request
from pydantic import Field
from starlette.responses import Response

from app.base.errors import Conflict, InvalidRequest, Problem
from app.identity.browser_sign_ins import Visitor
from app.identity.key_ring import LIFETIME_DAYS, LONGEST_LIFETIME_DAYS, OVERLAP_HOURS, NewKey
from app.identity.service_keys import KEY_SCOPE_MEANINGS
from app.runtime import Runtime
from app.web.admin.frame import sent_to, shown
from app.web.admin.visitors import Act, ConfirmedManager, Manager
from app.web.callers import RuntimeDep
from app.web.keys import KeyView
from app.web.schema import Asked

router = APIRouter(prefix="/admin/keys", include_in_schema=False)


class KeysQuery(Asked):
    """What has just been done."""

    revoked: str = ""


class NewKeyForm(Act):
    """The form of a new key."""

    name: str = ""
    scopes: list[str] = Field(default_factory=list)
    profiles: list[str] = Field(default_factory=list)
    """None checked: all that users may ask for."""

    lifetime_days: int = LIFETIME_DAYS


@router.get("")
async def list_keys(
    request: Request, runtime: RuntimeDep, visitor: Manager, query: Annotated[KeysQuery, Query()]
) -> Response:
    """List every key there ever was, newest first, and show the form of a new one."""
    done = "The key is revoked. It gets no token from now on." if query.revoked else ""
    return await _keys(request, runtime, visitor, done=done)


@router.post("", name="Make a service key")
async def create_key(
    request: Request,
    runtime: RuntimeDep,
    visitor: ConfirmedManager,
    form: Annotated[NewKeyForm, Form()],
) -> Response:
    """Make a key, and show it this once."""
    try:
        made = await runtime.key_ring.create(
            form.name,
            scopes=form.scopes,
            profiles=form.profiles or None,
            lifetime_days=form.lifetime_days,
            by=visitor.caller,
        )
    except InvalidRequest as problem:
        return await _keys(request, runtime, visitor, problem=problem, form=form)
    return await _keys(request, runtime, visitor, made=made)


@router.post("/{id}/rotate", name="Replace a service key")
async def rotate_key(
    request: Request,
    runtime: RuntimeDep,
    visitor: ConfirmedManager,
    key_id: Annotated[str, Path(alias="id")],
    _form: Annotated[Act, Form()],
) -> Response:
    """Make the successor of a key, and show it this once."""
    try:
        made = await runtime.key_ring.rotate(key_id, by=visitor.caller)
    except Conflict as problem:
        return await _keys(request, runtime, visitor, problem=problem)
    return await _keys(request, runtime, visitor, made=made)


@router.post("/{id}/revoke", name="Revoke a service key")
async def revoke_key(
    request: Request,
    runtime: RuntimeDep,
    visitor: ConfirmedManager,
    key_id: Annotated[str, Path(alias="id")],
    _form: Annotated[Act, Form()],
) -> Response:
    """End a key at once."""
    await runtime.key_ring.revoke(key_id, by=visitor.caller)
    return sent_to(request, "/admin/keys", revoked="1")


async def _keys(
    request: Request,
    runtime: Runtime,
    visitor: Visitor,
    *,
    done: str = "",
    made: NewKey | None = None,
    problem: Problem | None = None,
    form: NewKeyForm | None = None,
) -> Response:
    """Show the keys as they are now, after an act or a refused one."""
    now = runtime.clock()
    keys = [KeyView.of(key, now=now) for key in await runtime.key_ring.all()]
    faults = {error.field: error.reason for error in problem.errors} if problem else {}
    return shown(
        request,
        "keys.html",
        visitor,
        status=problem.status if problem else 200,
        keys=keys[::-1],
        made=made,
        done=done,
        fault=problem.detail if problem and not faults else "",
        faults=faults,
        form=form or NewKeyForm(scopes=["mint:on-behalf"]),
        scopes=KEY_SCOPE_MEANINGS,
        profiles=[profile.name for profile in runtime.profiles.for_role("user")],
        longest=LONGEST_LIFETIME_DAYS,
        overlap_hours=OVERLAP_HOURS,
    )
