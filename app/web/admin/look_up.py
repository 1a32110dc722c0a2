"""The page that tells whose token it is that somebody has found."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Form, Request
from pydantic import SecretStr
from starlette.responses import Response

from app.audit.search import Entry
from app.identity.browser_sign_ins import Visitor
from app.minting.lookup import NOT_OURS
from app.runtime import Runtime
from app.web.admin.frame import shown
from app.web.admin.visitors import Act, Reader
from app.web.audit import EventView
from app.web.callers import RuntimeDep
from app.web.lookup import LONGEST_TOKEN

router = APIRouter(prefix="/admin/look-up", include_in_schema=False)


class FoundToken(Act):
    """What the form sends. Nothing refuses it but the page, which shows it nowhere."""

    token: SecretStr = SecretStr("")


@router.get("")
async def ask_for_token(request: Request, runtime: RuntimeDep, visitor: Reader) -> Response:
    """Show the form."""
    return await _page(request, runtime, visitor)


@router.post("")
async def look_up_token(
    request: Request, runtime: RuntimeDep, visitor: Reader, form: Annotated[FoundToken, Form()]
) -> Response:
    """Show the mint that a token came from. That somebody asked is a row of the log."""
    if not 0 < len(form.token.get_secret_value().strip()) <= LONGEST_TOKEN:
        fault = f"Paste one token, of at most {LONGEST_TOKEN:,} characters."
        return await _page(request, runtime, visitor, HTTPStatus.UNPROCESSABLE_ENTITY, fault=fault)
    rows = await runtime.token_lookup.find(form.token, by=visitor.caller.trace)
    if not rows:
        return await _page(request, runtime, visitor, HTTPStatus.NOT_FOUND, missing=NOT_OURS)
    return await _page(request, runtime, visitor, rows=rows)


async def _page(
    request: Request,
    runtime: Runtime,
    visitor: Visitor,
    status: HTTPStatus = HTTPStatus.OK,
    *,
    rows: Sequence[Entry] = (),
    fault: str = "",
    missing: str = "",
) -> Response:
    attempt = [EventView.of(row) for row in rows]
    return shown(
        request,
        "look_up.html",
        visitor,
        status=status,
        attempt=attempt,
        people=await runtime.directory.known({row.actor for row in attempt if row.actor}),
        fault=fault,
        missing=missing,
    )
