"""The log of issued tokens, for auditors and admins."""

from datetime import datetime
from typing import Annotated, Any, Self

from fastapi import APIRouter, Path, Query
from pydantic import AwareDatetime, Field

from app.audit.search import LARGEST_PAGE, Entry, Filters
from app.base.errors import (
    InsufficientScope,
    InvalidCursor,
    InvalidRequest,
    InvalidToken,
    NotFound,
    Unauthenticated,
    UserDisabled,
)
from app.base.ids import is_id
from app.web.callers import Auditor, RuntimeDep
from app.web.problems import problem_responses
from app.web.schema import Answer, Asked

router = APIRouter(prefix="/audit", tags=["Audit"])


class EventView(Answer):
    """One row of the log."""

    seq: int = Field(description="Position in the log, from 1, without gaps.")
    recorded_at: datetime
    event_id: str
    action: str
    outcome: str
    attempt_id: str | None = None
    reason: str | None = None
    actor: str | None = None
    target: str | None = None
    credential: str | None = None
    request_id: str | None = None
    role: str | None = None
    profile: str | None = None
    model_asked: str | None = None
    model_used: str | None = None
    transcription_model: str | None = None
    language: str | None = None
    ttl_seconds: int | None = None
    expires_at: int | None = None
    config_digest: str | None = None
    upstream_status: int | None = None
    upstream_code: str | None = None
    upstream_request_id: str | None = None
    upstream_session_id: str | None = None
    upstream_ms: int | None = None
    token_fingerprint: str | None = None
    count: int | None = Field(
        default=None, description="How many refusals this row stands for, when it counts them."
    )
    environment: str
    ip: str | None = Field(default=None, description="While it is kept.")
    user_agent: str | None = Field(default=None, description="While it is kept.")
    email: str | None = Field(default=None, description="While it is kept.")
    row_hash: str = Field(description="SHA-256 over this row and all before it, hex.")

    @classmethod
    def of(cls, entry: Entry) -> Self:
        """Show a row; the commitment is replaced by what it commits to."""
        members: dict[str, Any] = {**entry.members, **(entry.personal or {})}
        members.pop("personal", None)
        return cls(seq=entry.seq, recorded_at=entry.recorded_at, row_hash=entry.row_hash, **members)


class EventQuery(Asked):
    """Which rows are wanted. All of it is optional and combines."""

    actor: str | None = Field(default=None, description="A user's id.")
    action: str | None = Field(default=None, examples=["client_secret.mint"])
    outcome: str | None = Field(
        default=None,
        description="`requested`, `issued`, `failed`, `unknown`, `denied`, `succeeded`.",
    )
    profile: str | None = None
    model: str | None = Field(default=None, description="Asked for or used.")
    since: AwareDatetime | None = Field(
        default=None, alias="from", description="RFC 3339 with offset; this instant or later."
    )
    until: AwareDatetime | None = Field(
        default=None, alias="to", description="RFC 3339 with offset; earlier than this."
    )
    limit: int = Field(default=50, ge=1, le=LARGEST_PAGE)
    cursor: str | None = Field(default=None, max_length=64, description="`nextCursor` of a page.")

    @property
    def filters(self) -> Filters:
        """What of it selects rows."""
        return Filters(
            actor=self.actor,
            action=self.action,
            outcome=self.outcome,
            profile=self.profile,
            model=self.model,
            since=self.since,
            until=self.until,
        )


class EventsResponse(Answer):
    """A page of the log, newest first."""

    events: list[EventView]
    next_cursor: str | None = Field(description="Send it as `cursor` for the next page.")


class EventResponse(Answer):
    """A row, and every row of the same attempt."""

    event: EventView
    attempt: list[EventView] = Field(description="In the order they were written.")


EXAMPLE_EVENT = {
    "seq": 4711,
    "recordedAt": "2026-11-20T12:00:00.123456Z",
    "eventId": "evt_01JD3Q8Z6T0V9K2M4N5P7R8S1W",
    "action": "client_secret.mint",
    "outcome": "issued",
    "attemptId": "tok_01JD3Q8Z6T0V9K2M4N5P7R8S1W",
    "actor": "usr_01JD3Q8Z6T0V9K2M4N5P7R8S1W",
    "profile": "default",
    "modelAsked": "mini",
    "modelUsed": "gpt-realtime-2.1-mini",
    "ttlSeconds": 60,
    "environment": "live",
    "ip": "192.0.2.17",
    "rowHash": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
}


@router.get(
    "/events",
    operation_id="listAuditEvents",
    summary="Search the log",
    responses={
        200: {
            "description": "A page of rows",
            "content": {
                "application/json": {"example": {"events": [EXAMPLE_EVENT], "nextCursor": None}}
            },
        },
        **problem_responses(
            InvalidCursor,
            Unauthenticated,
            InvalidToken,
            InsufficientScope,
            UserDisabled,
            InvalidRequest,
        ),
    },
)
async def list_events(
    _: Auditor, runtime: RuntimeDep, query: Annotated[EventQuery, Query()]
) -> EventsResponse:
    """List rows of the log, newest first.

    Pages neither skip nor repeat a row while new ones arrive.
    """
    page = await runtime.search.page(query.filters, limit=query.limit, cursor=query.cursor)
    return EventsResponse(
        events=[EventView.of(entry) for entry in page.entries], next_cursor=page.next_cursor
    )


@router.get(
    "/events/{id}",
    operation_id="getAuditEvent",
    summary="Show a row and its attempt",
    responses={
        200: {
            "description": "The row, and the rows of the same attempt",
            "content": {
                "application/json": {
                    "example": {"event": EXAMPLE_EVENT, "attempt": [EXAMPLE_EVENT]}
                }
            },
        },
        **problem_responses(
            Unauthenticated, InvalidToken, InsufficientScope, UserDisabled, NotFound
        ),
    },
)
async def get_event(
    _: Auditor,
    runtime: RuntimeDep,
    wanted: Annotated[
        str, Path(alias="id", description="An event's id, or the `id` of a token's answer.")
    ],
) -> EventResponse:
    """Show one row by its `evt_…`, or an attempt by the `tok_…` that its caller was given.

    For an attempt the row is its outcome, or its intent while there is no outcome yet.
    """
    if is_id(wanted, "tok"):
        attempt = await runtime.search.attempt(wanted)
        event = attempt[-1] if attempt else None
    else:
        event = await runtime.search.event(wanted)
        attempt_id = event.members.get("attempt_id") if event else None
        attempt = await runtime.search.attempt(attempt_id) if attempt_id else []
    if event is None:
        raise NotFound("The log has no row with this id.")
    return EventResponse(
        event=EventView.of(event), attempt=[EventView.of(entry) for entry in attempt]
    )
