"""The page of models and profiles: what tokens are bound to, and how long that lasts."""

import json
from typing import Annotated

from fastapi import APIRouter, Form, Query, Request
from starlette.responses import Response

from app.base.errors import UpstreamProblem
from app.web.admin.frame import sent_to, shown
from app.web.admin.visitors import Act, Manager, Reader
from app.web.callers import RuntimeDep
from app.web.schema import Asked

router = APIRouter(prefix="/admin/models", include_in_schema=False)


class ModelsQuery(Asked):
    """How asking OpenAI has just gone."""

    changes: int | None = None
    problem: str | None = None


@router.get("")
async def show_models(
    request: Request,
    runtime: RuntimeDep,
    visitor: Reader,
    query: Annotated[ModelsQuery, Query()],
) -> Response:
    """Show the catalogue as of today, and what each profile binds."""
    overview = runtime.models.overview()
    return shown(
        request,
        "models.html",
        visitor,
        overview=overview,
        notices=await runtime.models.notices(),
        families=[
            (family, [standing for standing in overview.models if standing.model.family == family])
            for family in runtime.models.catalogue.families
        ],
        written=_written,
        changes=query.changes,
        problem=query.problem,
    )


@router.post("/refresh", name="Ask OpenAI for its models")
async def refresh_models(
    request: Request, runtime: RuntimeDep, visitor: Manager, _form: Annotated[Act, Form()]
) -> Response:
    """Look at OpenAI's list now."""
    try:
        changes = await runtime.models.refresh(by=visitor.caller)
    except UpstreamProblem as problem:
        return sent_to(request, "/admin/models", problem=problem.code)
    return sent_to(request, "/admin/models", changes=str(len(changes)))


def _written(session: object) -> str:
    """Return *session* as JSON for reading."""
    return json.dumps(session, indent=2, ensure_ascii=False)
