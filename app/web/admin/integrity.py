"""The page of the proof: verifying, what was signed about the log, how long it is kept."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Form, Query, Request
from starlette.responses import Response

from app.audit.checkpoints import Authority
from app.audit.matches import Filters
from app.base.clock import from_unix_microseconds, to_unix_microseconds
from app.base.errors import Conflict
from app.identity.browser_sign_ins import Visitor
from app.runtime import Runtime
from app.web.admin.frame import HEADERS, sent_to, shown
from app.web.admin.visitors import Act, Manager, Reader
from app.web.audit import Instant
from app.web.callers import RuntimeDep
from app.web.integrity import CheckpointView, VerificationView, as_file, newest_checkpoint
from app.web.schema import Asked

router = APIRouter(prefix="/admin/integrity", include_in_schema=False)

PER_PAGE = 20

FOLLOWED = {"Content-Security-Policy": f"{HEADERS['Content-Security-Policy']}; connect-src 'self'"}
"""The script asks for this page again, to show how far a walk has come."""


class IntegrityQuery(Asked):
    """Which checkpoints are listed."""

    before: Instant | None = None


@router.get("")
async def show_integrity(
    request: Request,
    runtime: RuntimeDep,
    visitor: Reader,
    query: Annotated[IntegrityQuery, Query()],
) -> Response:
    """Show what is known of the integrity of the log."""
    return await _page(request, runtime, visitor, query)


@router.post("/verify", name="Verify the log")
async def verify(
    request: Request, runtime: RuntimeDep, visitor: Manager, _form: Annotated[Act, Form()]
) -> Response:
    """Begin a walk; the page shows how far it has come."""
    try:
        await runtime.verifications.start(visitor.caller.trace)
    except Conflict as problem:
        return await _page(request, runtime, visitor, IntegrityQuery(), problem=problem)
    return sent_to(request, "/admin/integrity")


@router.get("/checkpoint.json")
async def download_checkpoint(runtime: RuntimeDep, _: Reader) -> Response:
    """Give the newest checkpoint as a file: a line of the file of checkpoints."""
    newest = await newest_checkpoint(runtime)
    headers = {"Content-Disposition": as_file(newest)}
    return Response(f"{newest.line}\n", headers=HEADERS | headers, media_type="application/json")


@router.get("/public-key.pem")
async def download_public_key(runtime: RuntimeDep, _: Reader) -> Response:
    """Give the key of the checkpoints as a file."""
    headers = {"Content-Disposition": 'attachment; filename="public-key.pem"'}
    pem = runtime.checkpoints.public_key.pem
    return Response(pem, headers=HEADERS | headers, media_type="application/x-pem-file")


async def _page(
    request: Request,
    runtime: Runtime,
    visitor: Visitor,
    query: IntegrityQuery,
    *,
    problem: Conflict | None = None,
) -> Response:
    run = runtime.verifications.current
    walk = VerificationView.of(run) if run else None  # as it is now: it goes on while we look
    before = to_unix_microseconds(query.before) if query.before else None
    found = await runtime.checkpoints.page(limit=PER_PAGE + 1, before=before)
    newest = await runtime.checkpoints.newest()
    authority = Authority(runtime.checkpoints.public_key)
    last = await runtime.verifications.last()
    if run and last and last.event_id in run.event_ids:
        last = None  # it is what is shown anyway
    seqs = {one.seq for one in found} | {fault.seq for fault in (walk.faults if walk else [])}
    if newest:
        seqs.add(newest.seq)
    return shown(
        request,
        "integrity.html",
        visitor,
        status=problem.status if problem else HTTPStatus.OK,
        headers=FOLLOWED,
        fault=problem.detail if problem else "",
        broken=runtime.continuity.fault,
        walk=walk,
        elsewhere=await runtime.verifications.elsewhere(),
        last=last,
        newest=newest,
        signed_at=from_unix_microseconds(newest.at) if newest else None,
        checkpoints=[CheckpointView.of(one, authority) for one in found[:PER_PAGE]],
        older=len(found) > PER_PAGE,
        before=query.before,
        rows=await runtime.search.event_ids(seqs),
        terms=runtime.retention.terms,
        let_go={
            what: await runtime.search.newest(Filters(action=action))
            for what, action in _LET_GO.items()
        },
    )


_LET_GO = {
    "expired": "personal_data.expire",
    "erased": "user.erase",
    "pruned": "audit_log.prune",
    "accepted": "audit_log.accept_rollback",
}
"""What the page tells the last time of, by the action of its row."""
