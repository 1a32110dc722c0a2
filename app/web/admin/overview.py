"""The first page: what happened in a span of time, and what needs attention."""

from http import HTTPStatus
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.responses import Response

from app.audit.overview import Overview
from app.base.errors import AuditUnavailable
from app.web.admin.chart import OUTCOMES, chart_of, stacked, total
from app.web.admin.filters import asked_in, faults_in, in_utc, times_in
from app.web.admin.frame import HOME, shown
from app.web.admin.visitors import Reader
from app.web.audit import SpanQuery
from app.web.callers import RuntimeDep

router = APIRouter(include_in_schema=False)

USUAL = {"span": "24h"}
"""What is shown when nothing is asked for."""


@router.get(HOME)
async def show_overview(request: Request, runtime: RuntimeDep, visitor: Reader) -> Response:
    """Show the figures of a span of time below what needs attention."""
    asked = asked_in(request) or USUAL
    query, overview, faults, problem = SpanQuery(), None, {}, None
    try:
        query = SpanQuery.model_validate(in_utc(asked))
        overview = await runtime.overviews.of(query.began(runtime.clock()), query.until)
    except ValidationError as error:
        faults = {fault.field: fault.reason for fault in faults_in(error)}
    except AuditUnavailable as error:
        problem = error
    status = HTTPStatus.UNPROCESSABLE_ENTITY if faults else HTTPStatus.OK
    return shown(
        request,
        "overview.html",
        visitor,
        status=problem.status if problem else status,
        notices=await runtime.notices.all(),
        filters=asked,
        times=times_in(asked, query),
        faults=faults,
        problem=problem,
        overview=overview,
        chart=chart_of(overview) if overview else None,
        rankings=_rankings(overview) if overview else (),
        people=await runtime.directory.known({user.name for user in overview.users})
        if overview
        else {},
        outcomes=OUTCOMES,
        stacked=stacked,
        total=total,
        log_address=lambda **also: f"/admin/log?{urlencode(asked | also)}",
    )


def _rankings(overview: Overview) -> tuple[tuple[str, str, object], ...]:
    """Return who and what leads: a heading, the filter of the log by that, and the names."""
    return (
        ("Users", "actor", overview.users),
        ("Refusals and failures", "reason", overview.reasons),
        ("Profiles", "profile", overview.profiles),
        ("Models", "model", overview.models),
    )
