"""What an admin has to know about the service as it stands."""

from datetime import datetime
from typing import Self

from fastapi import APIRouter
from pydantic import Field

from app.minting.model_notices import Severity
from app.minting.notices import Code, Notice, Subject
from app.web.callers import Auditor, RuntimeDep
from app.web.schema import Absent, Answer, success

router = APIRouter(prefix="/audit", tags=["Audit"])


class NoticeView(Answer):
    """Something to know."""

    code: Code
    subject: Subject = Field(
        description="What it is about. `GET /admin/api/models` tells more of models,"
        " `GET /audit/verification` of the integrity of the log."
    )
    severity: Severity = Field(
        description="`urgent`: tokens are refused, or soon will be, or the log is not as it was"
        " written. `warning`: look into it."
    )
    detail: str = Field(description="What is the matter, in a sentence or two.")
    at: Absent[datetime] = Field(
        default=None, description="When it happened, where that is the news."
    )

    @classmethod
    def of(cls, notice: Notice) -> Self:
        """Show a notice."""
        return cls(
            code=notice.code,
            subject=notice.subject,
            severity=notice.severity,
            detail=notice.detail,
            at=notice.at,
        )


class NoticesResponse(Answer):
    """All that there is to know."""

    notices: list[NoticeView] = Field(description="What is urgent first.")


@router.get(
    "/notices",
    operation_id="listNotices",
    summary="What needs attention?",
    responses=success(
        "All that there is to know.",
        example={
            "notices": [
                {
                    "code": "never_verified",
                    "subject": "integrity",
                    "severity": "warning",
                    "detail": "The log has never been verified as a whole.",
                },
                {
                    "code": "checkpoint",
                    "subject": "integrity",
                    "severity": "info",
                    "detail": "The last checkpoint is of row 4,711.",
                    "at": "2026-11-20T12:01:00.000000Z",
                },
            ]
        },
    ),
)
async def list_notices(_: Auditor, runtime: RuntimeDep) -> NoticesResponse:
    """Tell what needs attention: models that end, money used up at OpenAI, the proof of the log.

    The last checkpoint and the last verification are always among it.
    """
    return NoticesResponse(notices=[NoticeView.of(one) for one in await runtime.notices.all()])
