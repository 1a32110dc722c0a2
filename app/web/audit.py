"""The log of issued tokens, for auditors and admins."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Self

from fastapi import APIRouter, Path, Query
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BeforeValidator,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
)

from app.audit.matches import Filters
from app.audit.search import LARGEST_PAGE, MOST_COUNTED, Entry
from app.audit.spans import Span, beginning
from app.base.errors import FieldError, InvalidCursor, InvalidRequest, NotFound
from app.base.ids import is_id
from app.web.callers import Auditor, RuntimeDep
from app.web.problems import EXAMPLE_REQUEST_ID, problem_responses
from app.web.schema import NO_CONTROL_CHARACTERS, Answer, Asked, Omissible, success

router = APIRouter(prefix="/audit", tags=["Audit"])


class EventView(Answer):
    """One row of the log. What does not apply to it is null."""

    seq: int = Field(description="Position in the log, from 1, without gaps.")
    recorded_at: datetime = Field(description="When it was written, RFC 3339, to the microsecond.")
    event_id: str = Field(description="`evt_…`, the row's own name.")
    action: str = Field(
        description="What was done: `client_secret.mint`, `user.sign_in`, `access_token.verify`, …"
    )
    outcome: str = Field(
        description="`requested`, then `issued`, `failed` or `unknown`, for a mint; `denied`,"
        " `failed` or `succeeded`, for the rest."
    )
    attempt_id: str | None = Field(
        default=None, description="`tok_…`, the `id` that the mint's caller was given."
    )
    reason: str | None = Field(default=None, description="Why not: mostly the code of the problem.")
    actor: str | None = Field(
        default=None,
        description="Who did it: a user's `usr_…`, `operator` for a command, `service` for what it"
        " does by itself, `eus_…` for the end user on whose behalf a backend asked, or the `key_…`"
        " of the backend itself.",
    )
    target: str | None = Field(
        default=None, description="Whom it was done to, if somebody else; the model that changed."
    )
    credential: str | None = Field(
        default=None,
        description="Id of what was shown: the `jti` of an access token, `sha256:…` without, or the"
        " `key_…` of a service key.",
    )
    sign_in: str | None = Field(default=None, description="The `sgn_…` that gave the credential.")
    request_id: str | None = Field(default=None, description="The `X-Request-ID` of the request.")
    role: str | None = Field(default=None, description="The role that was used or given.")
    scopes: str | None = Field(
        default=None, description="What a service key is good for, separated by blanks."
    )
    profiles: str | None = Field(
        default=None, description="The only profiles of a service key, separated by blanks."
    )
    successor: str | None = Field(
        default=None, description="The `key_…` by which a service key was replaced."
    )
    profile: str | None = Field(default=None, description="Name of the session profile.")
    model_asked: str | None = Field(
        default=None, description="What the profile names: a family or a model's id."
    )
    model_used: str | None = Field(default=None, description="The model the token is bound to.")
    shutdown_before: str | None = Field(
        default=None, description="Of a model whose end has changed, the day until then; a date."
    )
    shutdown_after: str | None = Field(
        default=None, description="The first day without that model from then on."
    )
    transcription_model: str | None = Field(default=None, description="The model that transcribes.")
    language: str | None = Field(default=None, description="Of the transcription, ISO-639-1.")
    ttl_seconds: int | None = Field(default=None, description="Lifetime that was asked for.")
    expires_at: int | None = Field(
        default=None,
        description="Unix seconds after which the token opens no session, or the service key is"
        " not good any more.",
    )
    config_digest: str | None = Field(
        default=None, description="SHA-256 of the session the token is bound to, hex."
    )
    upstream_status: int | None = Field(default=None, description="HTTP status of OpenAI's answer.")
    upstream_code: str | None = Field(default=None, description="`error.code` of OpenAI's answer.")
    upstream_request_id: str | None = Field(
        default=None, description="`x-request-id` of OpenAI's answer; its support asks for it."
    )
    upstream_session_id: str | None = Field(default=None, description="`session.id` of it.")
    upstream_ms: int | None = Field(
        default=None, description="How long OpenAI took to answer, in milliseconds."
    )
    token_fingerprint: str | None = Field(
        default=None, description="Keyed digest of the token, by which a leaked one is traced; hex."
    )
    count: int | None = Field(
        default=None, description="How many refusals this row stands for, when it counts them."
    )
    boundary_seq: int | None = Field(
        default=None,
        description="The last row that was pruned, whose personal data were erased for their age,"
        " or that the log had when it was accepted.",
    )
    boundary_hash: str | None = Field(default=None, description="The `rowHash` of that row.")
    filters: str | None = Field(
        default=None,
        description="What was exported; `withheld` stands for what is not kept for good.",
    )
    environment: str = Field(description="`live` or `sandbox`.")
    ip: str | None = Field(default=None, description="The client's address, while it is kept.")
    user_agent: str | None = Field(
        default=None, description="The client's `User-Agent`, while it is kept."
    )
    email: str | None = Field(default=None, description="The user's address, while it is kept.")
    row_hash: str = Field(description="SHA-256 over this row and all before it, hex.")

    @classmethod
    def of(cls, entry: Entry) -> Self:
        """Show a row; the commitment is replaced by what it commits to."""
        members: dict[str, Any] = {**entry.members, **(entry.personal or {})}
        members.pop("personal", None)
        return cls(seq=entry.seq, recorded_at=entry.recorded_at, row_hash=entry.row_hash, **members)


Plain = Annotated[str, StringConstraints(max_length=256, pattern=NO_CONTROL_CHARACTERS)]

_DATE_AND_TIME = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)?", re.ASCII
)


def _written_out(text: str) -> str:
    """Return *text* if it is a date and a time; pydantic would also take Unix seconds or ms.

    Raises:
        ValueError: It is not.
    """
    if not _DATE_AND_TIME.fullmatch(text):
        raise ValueError("must be a time such as 2026-11-20T09:30:00Z")
    return text


def _in_utc(at: datetime) -> datetime:
    """Return *at* in UTC.

    Raises:
        ValueError: It lies before the year 1 there, or after 9999.
    """
    try:
        return at.astimezone(UTC)
    except OverflowError:
        raise ValueError("must be a time of the years 1 to 9999 in UTC") from None


Instant = Annotated[AwareDatetime, BeforeValidator(_written_out), AfterValidator(_in_utc)]
"""A moment as RFC 3339 writes it, with its offset from UTC."""


class SpanQuery(Asked):
    """Which span of time is wanted: by name, or from and to."""

    since: Omissible[Instant] = Field(
        default=None,
        alias="from",
        description="Rows of this instant or later: RFC 3339 with offset, `2026-11-20T09:30:00Z`.",
    )
    until: Omissible[Instant] = Field(
        default=None, alias="to", description="Rows earlier than this: RFC 3339 with offset."
    )
    span: Omissible[Span] = Field(
        default=None,
        description="In place of both: the last hour, today in UTC, the last 24 hours, 7 days, 30.",
    )

    @field_validator("span")
    @classmethod
    def _alone(cls, span: Span | None, others: ValidationInfo) -> Span | None:
        if others.data.get("since") or others.data.get("until"):
            raise ValueError("cannot stand beside from or to; leave one of them out")
        return span

    def began(self, now: datetime) -> datetime | None:
        """Return when the span begins; None for the beginning of the log."""
        return beginning(self.span, now) if self.span else self.since


class FilterQuery(SpanQuery):
    """Which rows are wanted. All of it is optional and combines."""

    id: Omissible[Plain] = Field(
        default=None,
        description="Any id that stands in a row: `evt_…` of the row itself, `tok_…`, `usr_…`,"
        " `eus_…`, `key_…`, `sgn_…`, a request's `X-Request-ID`, or OpenAI's of our request to it.",
    )
    actor: Omissible[Plain] = Field(
        default=None,
        description="Who did it: `usr_…`, `operator`, or the `eus_…` of a backend's end user.",
    )
    target: Omissible[Plain] = Field(
        default=None, description="Whom or what it was done to: `usr_…`, `key_…`, `tok_…`."
    )
    credential: Omissible[Plain] = Field(
        default=None, description="What was shown, such as the `key_…` of a service key."
    )
    address: Omissible[Plain] = Field(
        default=None,
        description="The client's address, while it is kept. Of an attempt its first row has it,"
        " `requested` or `denied`.",
    )
    action: Omissible[Plain] = Field(
        default=None, description="What was done, such as `client_secret.mint`, `user.sign_in`."
    )
    outcome: Omissible[Plain] = Field(
        default=None,
        description="`requested`, `issued`, `failed`, `unknown`, `denied` or `succeeded`.",
    )
    reason: Omissible[Plain] = Field(
        default=None, description="Why not, such as `rate_limited` or `upstream_timeout`."
    )
    profile: Omissible[Plain] = Field(default=None, description="Name of a session profile.")
    model: Omissible[Plain] = Field(
        default=None, description="A model's id or family, as asked for or as used."
    )

    def filters(self, now: datetime) -> Filters:
        """Return what selects rows, spans of time as they are at *now*."""
        same = ("id", "actor", "target", "credential", "address")
        kind = ("action", "outcome", "reason", "profile", "model")
        members = {name: getattr(self, name) for name in (*same, *kind)}
        return Filters(**members, since=self.began(now), until=self.until)


class EventQuery(FilterQuery):
    """Which rows are wanted, and which page of them."""

    limit: int = Field(default=50, ge=1, le=LARGEST_PAGE, description="Rows per page at the most.")
    cursor: Omissible[str] = Field(
        default=None,
        max_length=64,
        description="`nextCursor` or `previousCursor` of another page, with the same filters.",
    )


class EventsResponse(Answer):
    """A page of the log, newest first."""

    events: list[EventView]
    next_cursor: str | None = Field(
        description="Send it as `cursor` for the page of older rows; null when this is the last."
    )
    previous_cursor: str | None = Field(
        description="Likewise for the page of newer rows; null when this is the first."
    )
    matches: int = Field(
        description=f"How many rows match, on all pages together; {MOST_COUNTED} at the most."
    )
    more_matches: bool = Field(description="Whether there are more than that.")


class EventResponse(Answer):
    """A row, and every row of the same attempt."""

    event: EventView
    attempt: list[EventView] = Field(description="In the order they were written.")


INTENT = {
    "seq": 4710,
    "recordedAt": "2026-11-20T12:00:00.123456Z",
    "eventId": "evt_0ENVJ1MA8PS6D3Z4R7AQC2XQNG",
    "action": "client_secret.mint",
    "outcome": "requested",
    "attemptId": "tok_7TS4GKMW4TWNJ1Y2E8K57Z3PA8",
    "actor": "usr_4KQ2M8Z6T0V9N7R5P3S1W8XHJ0",
    "credential": "4yQm0b7ZsXl2kKq8cVh1Tg",
    "requestId": EXAMPLE_REQUEST_ID,
    "profile": "default",
    "modelAsked": "mini",
    "modelUsed": "gpt-realtime-2.1-mini",
    "transcriptionModel": "gpt-4o-mini-transcribe",
    "language": "en",
    "ttlSeconds": 60,
    "environment": "live",
    "ip": "192.0.2.17",
    "userAgent": "Mozilla/5.0",
    "rowHash": "3b64db95cb55c763391c707108489ae18b4112d783300de38e033b4c98c3deaf",
}
OUTCOME = {
    **INTENT,
    "seq": 4711,
    "recordedAt": "2026-11-20T12:00:00.389012Z",
    "eventId": "evt_3XJQZK9Q6MDYS2G23FC76JV4CM",
    "outcome": "issued",
    "expiresAt": 1795176060,
    "upstreamStatus": 200,
    "upstreamRequestId": "req_5f0c2d7be94c4b1aa0c6b0f8a0d6c2a1",
    "upstreamMs": 241,
    "tokenFingerprint": "c0ffee3f1d0b7c8e5a9d2f6b4e8a1c7d3f5b9e2a6c4d8f0b1e3a5c7d9f2b4e6a",
    "rowHash": "87428fc522803d31065e7bce3cf03fe475096631e5e07bbd7a0fde60c4cf25c7",
}


@router.get(
    "/events",
    operation_id="listAuditEvents",
    summary="Search the log",
    responses={
        **success(
            "A page of rows, newest first.",
            example={
                "events": [OUTCOME, INTENT],
                "nextCursor": "AAAAAAAAJMxrM2d4UTJ2bDd3c0hZcE4x",
                "previousCursor": "AAAAAAAAJM9wN0tkWjNtVGhRMnYxYUxC",
                "matches": 4711,
                "moreMatches": False,
            },
        ),
        **problem_responses(
            InvalidCursor,
            InvalidRequest(
                errors=[
                    FieldError("limit", "must be less than or equal to 200"),
                    FieldError("actr", "is not a known field"),
                ]
            ),
        ),
    },
)
async def list_events(
    _: Auditor, runtime: RuntimeDep, query: Annotated[EventQuery, Query()]
) -> EventsResponse:
    """List rows of the log, newest first. Filters combine; without any, every row is listed.

    Pages neither skip nor repeat a row while new ones arrive.
    """
    filters = query.filters(runtime.clock())
    page = await runtime.search.page(filters, limit=query.limit, cursor=query.cursor)
    return EventsResponse(
        events=[EventView.of(entry) for entry in page.entries],
        next_cursor=page.older,
        previous_cursor=page.newer,
        matches=page.matches,
        more_matches=page.more,
    )


@router.get(
    "/events/{id}",
    operation_id="getAuditEvent",
    summary="Show a row and its attempt",
    responses={
        **success(
            "The row, and every row of the same attempt.",
            example={"event": OUTCOME, "attempt": [INTENT, OUTCOME]},
        ),
        **problem_responses(NotFound("The log has no row with this id.")),
    },
)
async def get_event(
    _: Auditor,
    runtime: RuntimeDep,
    wanted: Annotated[
        str,
        Path(
            alias="id",
            description="The `evt_…` of a row, or the `tok_…` of a mint.",
            openapi_examples={
                "attempt": {
                    "summary": "What became of a mint",
                    "value": "tok_7TS4GKMW4TWNJ1Y2E8K57Z3PA8",
                },
                "event": {"summary": "One row", "value": "evt_0ENVJ1MA8PS6D3Z4R7AQC2XQNG"},
            },
        ),
    ],
) -> EventResponse:
    """Show one row by its `evt_…`, or an attempt by the `tok_…` that its caller was given.

    For an attempt the row is its outcome, or its intent while there is no outcome yet.
    """
    event: Entry | None = None
    attempt: list[Entry] = []
    if is_id(wanted, "tok"):
        attempt = await runtime.search.attempt(wanted)
        event = attempt[-1] if attempt else None
    elif is_id(wanted, "evt"):
        event = await runtime.search.event(wanted)
        attempt_id = event.members.get("attempt_id") if event else None
        attempt = await runtime.search.attempt(attempt_id) if attempt_id else []
    if event is None:
        raise NotFound("The log has no row with this id.")
    return EventResponse(
        event=EventView.of(event), attempt=[EventView.of(entry) for entry in attempt]
    )
