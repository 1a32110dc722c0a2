"""The pages of the log: what was done, by whom, and how each row is proved."""

from collections.abc import Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Path, Request
from pydantic import ValidationError
from starlette.responses import Response

from app.audit.search import Entry, Page
from app.base.errors import InvalidCursor, InvalidRequest, NotFound
from app.base.ids import is_id
from app.identity.directory import Person
from app.runtime import Runtime
from app.web.admin.filters import SPANS, asked_in, faults_in, in_utc, times_in
from app.web.admin.frame import sent_to, shown
from app.web.admin.visitors import Act, Reader
from app.web.audit import EventQuery, EventView
from app.web.callers import RuntimeDep
from app.web.export import ExportQuery, Format, exported

router = APIRouter(prefix="/admin/log", include_in_schema=False)

OUTCOMES = ("requested", "issued", "failed", "unknown", "denied", "succeeded")

ACTIONS = (
    "client_secret.mint",
    "access_token.verify",
    "user.sign_in",
    "user.sign_out",
    "user.create",
    "user.set_role",
    "user.disable",
    "user.enable",
    "user.set_password",
    "user.make_reset_link",
    "user.confirm_password",
    "sign_in.refresh",
    "sign_in.revoke",
    "sign_in.use",
    "sign_in.expire",
    "service_key.create",
    "service_key.rotate",
    "service_key.revoke",
    "service_key.verify",
    "service_key.use",
)
"""What the form suggests; any other may be typed in."""

NO_PAGE = Page([], newer=None, older=None, matches=0, more=False)


class ExportForm(Act):
    """What the buttons send; which rows are meant stands in the address."""

    format: Format


@router.get("")
async def list_events(request: Request, runtime: RuntimeDep, visitor: Reader) -> Response:
    """List rows, newest first, those alone that the address asks for."""
    asked = asked_in(request)
    query, page, faults = EventQuery(), NO_PAGE, {}
    try:
        query = EventQuery.model_validate(in_utc(asked))
        page = await runtime.search.page(
            query.filters(runtime.clock()), limit=query.limit, cursor=query.cursor
        )
    except ValidationError as error:
        faults = {fault.field: fault.reason for fault in faults_in(error)}
    except InvalidCursor:
        return sent_to(request, "/admin/log", **{k: v for k, v in asked.items() if k != "cursor"})
    filters = {name: value for name, value in asked.items() if name not in {"cursor", "limit"}}
    return shown(
        request,
        "log.html",
        visitor,
        status=HTTPStatus.UNPROCESSABLE_ENTITY if faults else HTTPStatus.OK,
        rows=[EventView.of(entry) for entry in page.entries],
        people=await _people(runtime, page.entries),
        filters=filters,
        times=times_in(asked, query),
        page=page,
        address=urlencode(filters),
        faults=faults,
        actions=ACTIONS,
        outcomes=OUTCOMES,
        spans=SPANS,
        profiles=runtime.profiles.names,
        models=[model.id for model in runtime.models.catalogue.models],
    )


# A form and no link: what a page of another site, or a browser that fetches ahead, has us do must
# not become a row which says that this visitor took the log away.
@router.post("/export")
async def export_events(
    request: Request, runtime: RuntimeDep, visitor: Reader, form: Annotated[ExportForm, Form()]
) -> Response:
    """Hand out all rows that the address asks for, as the file that the button names."""
    asked = in_utc(asked_in(request))
    try:
        query = ExportQuery.model_validate(asked | {"format": form.format})
    except ValidationError as error:
        raise InvalidRequest(errors=faults_in(error)) from None
    return await exported(runtime, query, by=visitor.caller)


@router.get("/{id}")
async def show_event(
    request: Request,
    runtime: RuntimeDep,
    visitor: Reader,
    event_id: Annotated[str, Path(alias="id")],
) -> Response:
    """Show everything that is known of one row, and the rows of the same attempt."""
    entry = await runtime.search.event(event_id) if is_id(event_id, "evt") else None
    if entry is None:
        raise NotFound("The log has no row with this id.")
    row = EventView.of(entry)
    attempt = await runtime.search.attempt(row.attempt_id) if row.attempt_id else [entry]
    # Of a mint the intent alone has them.
    origin = next((EventView.of(other) for other in attempt if other.personal), row)
    return shown(
        request,
        "event.html",
        visitor,
        row=row,
        origin=origin,
        attempt=[EventView.of(other) for other in attempt] if row.attempt_id else [],
        people=await _people(runtime, [entry]),
        commitment=entry.members.get("personal"),
        expires_at=datetime.fromtimestamp(row.expires_at, UTC) if row.expires_at else None,
        erased=any(o.personal is None and "personal" in o.members for o in attempt),
    )


async def _people(runtime: Runtime, entries: Sequence[Entry]) -> dict[str, Person]:
    """Return the users in *entries* as they are called today, by id."""
    members = [entry.members for entry in entries]
    ids = {m[name] for m in members for name in ("actor", "target") if name in m}
    return await runtime.directory.known(ids)
