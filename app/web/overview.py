"""The log in figures."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Self

from fastapi import APIRouter, Query
from pydantic import Field

from app.audit.overview import TOP, Counts, Overview, Ranked
from app.base.errors import AuditUnavailable, FieldError, InvalidRequest
from app.web.audit import SpanQuery
from app.web.callers import Auditor, RuntimeDep
from app.web.problems import problem_responses
from app.web.schema import Answer, success

router = APIRouter(prefix="/audit", tags=["Audit"])


class CountsView(Answer):
    """How often it came to what."""

    issued: int = Field(description="Tokens that were issued.")
    denied: int = Field(
        description="Refusals of any kind. A row that counts several is as many as it counts."
    )
    failed: int = Field(description="Attempts for which OpenAI gave no token.")
    unknown: int = Field(description="Attempts that may have made a token, which nobody holds.")

    @classmethod
    def of(cls, counts: Counts) -> Self:
        """Show *counts*."""
        return cls(**asdict(counts))


class BucketView(CountsView):
    """An hour or a day."""

    begins_at: datetime = Field(description="It may begin before the span does.")


class RankedView(CountsView):
    """A user, a profile, a model or a reason."""

    name: str

    @classmethod
    def of_all(cls, ranked: Sequence[Ranked]) -> list[Self]:
        """Show each of *ranked*."""
        return [cls(name=one.name, **asdict(one.counts)) for one in ranked]


class LatencyView(Answer):
    """How long OpenAI took for the tokens it gave; a tenth off at the most."""

    p50_ms: int = Field(alias="p50Ms", description="Half of them took no longer.")
    p95_ms: int = Field(alias="p95Ms", description="95 of 100 took no longer.")


class OverviewResponse(Answer):
    """The log in figures, for a span of time."""

    since: datetime = Field(alias="from", description="Included.")
    until: datetime = Field(alias="to", description="Excluded.")
    bucket_seconds: int = Field(
        description="How long each of the buckets is: an hour, or a day (UTC) where the span is"
        " longer than three."
    )
    buckets: list[BucketView] = Field(description="In order, those in which nothing happened too.")
    totals: CountsView
    users: list[RankedView] = Field(description=f"The {TOP} of whom most is told.")
    profiles: list[RankedView] = Field(description="Likewise.")
    models: list[RankedView] = Field(description="Likewise, by the model in use.")
    reasons: list[RankedView] = Field(description="Likewise, of what was not issued.")
    upstream: LatencyView | None = Field(description="Null where no token was issued.")

    @classmethod
    def of(cls, overview: Overview) -> Self:
        """Show *overview*."""
        latency = overview.latency
        return cls(
            since=overview.since,
            until=overview.until,
            bucket_seconds=int(overview.bucket.total_seconds()),
            buckets=[
                BucketView(begins_at=bucket.begins_at, **asdict(bucket.counts))
                for bucket in overview.buckets
            ],
            totals=CountsView.of(overview.totals),
            users=RankedView.of_all(overview.users),
            profiles=RankedView.of_all(overview.profiles),
            models=RankedView.of_all(overview.models),
            reasons=RankedView.of_all(overview.reasons),
            upstream=LatencyView(**asdict(latency)) if latency else None,
        )


_COUNTS = {"issued": 412, "denied": 17, "failed": 2, "unknown": 1}


@router.get(
    "/overview",
    operation_id="getAuditOverview",
    summary="Show the log in figures",
    responses={
        **success(
            "The figures of the span.",
            example={
                "from": "2026-11-20T12:00:00Z",
                "to": "2026-11-20T13:00:00Z",
                "bucketSeconds": 3600,
                "buckets": [{"beginsAt": "2026-11-20T12:00:00Z", **_COUNTS}],
                "totals": _COUNTS,
                "users": [{"name": "usr_4KQ2M8Z6T0V9N7R5P3S1W8XHJ0", **_COUNTS}],
                "profiles": [{"name": "default", **_COUNTS}],
                "models": [{"name": "gpt-realtime-2.1-mini", **_COUNTS, "denied": 0}],
                "reasons": [
                    {"name": "rate_limited", "issued": 0, "denied": 17, "failed": 0, "unknown": 0}
                ],
                "upstream": {"p50Ms": 241, "p95Ms": 730},
            },
        ),
        **problem_responses(
            InvalidRequest(
                errors=[FieldError("span", "must be '1h', 'today', '24h', '7d' or '30d'")]
            ),
            AuditUnavailable(
                "The log is still being added up. Ask again in a moment.", retry_after_seconds=10
            ),
        ),
    },
)
async def get_overview(
    _: Auditor, runtime: RuntimeDep, query: Annotated[SpanQuery, Query()]
) -> OverviewResponse:
    """Tell how many tokens were issued and refused over time, to whom, and why.

    Without a span: of the whole log. The figures count every row that is there at this moment.
    """
    since = query.began(runtime.clock())
    return OverviewResponse.of(await runtime.overviews.of(since, query.until))
