"""Whose token it is that somebody has found."""

from typing import Annotated

from fastapi import APIRouter, Body
from pydantic import Field, SecretStr

from app.base.errors import AuditUnavailable, FieldError, InvalidRequest, NotFound
from app.minting.lookup import NOT_OURS
from app.web.audit import INTENT, OUTCOME, EventResponse, EventView
from app.web.callers import Auditor, RuntimeDep
from app.web.problems import problem_responses
from app.web.schema import Asked, success

router = APIRouter(prefix="/audit", tags=["Audit"])

LONGEST_TOKEN = 1024
"""Characters; OpenAI's have some fifty."""


class LookupRequest(Asked):
    """A token that somebody has found."""

    token: SecretStr = Field(
        min_length=1, max_length=LONGEST_TOKEN, description="`ek_…`. It is neither kept nor shown."
    )


@router.post(
    "/lookup",
    operation_id="lookUpToken",
    summary="Find out whose token it is",
    responses={
        **success(
            "The row of its mint, and every row of the same attempt.",
            example={"event": OUTCOME, "attempt": [INTENT, OUTCOME]},
        ),
        **problem_responses(
            NotFound(NOT_OURS),
            InvalidRequest(errors=[FieldError("token", "is required")]),
            AuditUnavailable,
        ),
    },
)
async def look_up_token(
    caller: Auditor,
    runtime: RuntimeDep,
    found: Annotated[
        LookupRequest,
        Body(openapi_examples={"leaked": {"summary": "A token", "value": {"token": "ek_…"}}}),
    ],
) -> EventResponse:
    """Find the mint that a leaked token came from. That you ask is a row of the log itself."""
    rows = await runtime.token_lookup.find(found.token, by=caller.trace)
    if not rows:
        raise NotFound(NOT_OURS)
    views = [EventView.of(row) for row in rows]
    return EventResponse(event=views[-1], attempt=views)
