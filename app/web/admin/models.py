"""The page of models and profiles: what tokens are bound to, and how long that lasts."""

import json
from collections import defaultdict
from datetime import date

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.web.admin.frame import shown
from app.web.admin.visitors import Reader
from app.web.callers import RuntimeDep

router = APIRouter(include_in_schema=False)


@router.get("/admin/models")
async def show_models(request: Request, runtime: RuntimeDep, visitor: Reader) -> Response:
    """Show the catalogue as of today, and what each profile binds."""
    today = runtime.clock().date()
    bindings = runtime.profiles.bindings(today)
    used_by = defaultdict[str | None, list[str]](list)
    for binding in bindings:
        for model in dict.fromkeys((binding.model, binding.transcription_model)):
            used_by[model].append(binding.profile.name)
    return shown(
        request,
        "models.html",
        visitor,
        bindings=bindings,
        families=[
            (
                family,
                [
                    (model, model.status_on(today), _days_left(model.shutdown, today))
                    for model in runtime.catalogue.family(family)
                ],
            )
            for family in runtime.catalogue.families
        ],
        used_by=used_by,
        written=_written,
        today=today,
    )


def _days_left(shutdown: date | None, today: date) -> int | None:
    return (shutdown - today).days if shutdown else None


def _written(session: object) -> str:
    """Return *session* as JSON for reading."""
    return json.dumps(session, indent=2, ensure_ascii=False)
