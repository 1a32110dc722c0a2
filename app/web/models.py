"""The models, when they end and who uses them: for admins."""

from datetime import date, datetime
from typing import Any, Literal, Self

from fastapi import APIRouter
from pydantic import Field

from app.base.errors import (
    AuditUnavailable,
    UpstreamInvalidResponse,
    UpstreamMisconfigured,
    UpstreamQuotaExhausted,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from app.minting.catalogue import Kind, SessionType, Status, Transport
from app.minting.listed_models import Change, ChangeKind
from app.minting.model_notices import Code, ModelNotice, Severity
from app.minting.model_watch import ModelOverview, ModelStanding
from app.minting.profiles import Binding
from app.web.callers import Admin, RuntimeDep
from app.web.problems import problem_responses
from app.web.schema import Answer, success

router = APIRouter(prefix="/admin/api/models", tags=["Models"])


class StandingView(Answer):
    """One model of the catalogue, as it stands today."""

    id: str = Field(description="OpenAI's name for it.")
    family: str
    kind: Kind
    status: Status = Field(description="`deprecated`: its end is announced. `retired`: it is off.")
    released: date | None = None
    sunset: date | None = Field(default=None, description="The day it is shut down.")
    days_left: int | None = Field(default=None, description="Until that day, from 1.")
    successor: str | None = Field(
        default=None, description="The model that OpenAI names in its place."
    )
    source: Literal["built_in", "openai"] | None = Field(
        default=None,
        description="Who names the day: the catalogue of this release, or OpenAI's list.",
    )
    said_at: datetime | None = Field(
        default=None, description="Since when OpenAI's list names this day."
    )
    listed: bool | None = Field(
        default=None,
        description="Whether the API key sees it in OpenAI's latest list; null before the first"
        " look. A model that is not listed is used all the same, until its day.",
    )
    profiles: list[str] = Field(description="The session profiles that use it today.")

    @classmethod
    def of(cls, standing: ModelStanding) -> Self:
        """Show a model with its lifecycle."""
        model = standing.model
        return cls(
            id=model.id,
            family=model.family,
            kind=model.kind,
            status=standing.status,
            released=model.released,
            sunset=model.shutdown,
            days_left=standing.days_left,
            successor=model.successor,
            source=standing.source,
            said_at=standing.said_at,
            listed=standing.listed,
            profiles=list(standing.profiles),
        )


class UnknownModelView(Answer):
    """A model that OpenAI lists and the catalogue does not know; it is not offered."""

    id: str
    sunset: date | None = Field(default=None, description="The day it is shut down.")


class ModelUseView(Answer):
    """A model that a profile names."""

    kind: Literal["speech", "transcription"]
    asked: str = Field(description="What the profile names: a family or a model's id.")
    used: str | None = Field(
        default=None, description="The model used today; null when none is left that fits."
    )


class BindingView(Answer):
    """What a session profile binds its tokens to today."""

    name: str
    description: str
    type: SessionType
    roles: list[str] = Field(description="Who may ask for it.")
    allow: list[str] = Field(description="What the caller may choose: `language`, `voice`.")
    variables: list[str] = Field(description="What the caller has to fill in.")
    ttl_seconds: int = Field(description="Longest lifetime of a token, in seconds.")
    models: list[ModelUseView]
    transports: list[Transport] = Field(description="How clients may connect.")
    session: dict[str, Any] | None = Field(
        default=None,
        description="The session as OpenAI gets it, its variables not filled in; null when the"
        " profile mints nothing.",
    )
    refusal: str | None = Field(default=None, description="Why the profile mints nothing.")

    @classmethod
    def of(cls, binding: Binding) -> Self:
        """Show a profile to admins, with all that it binds."""
        profile = binding.profile
        return cls(
            name=profile.name,
            description=profile.description,
            type=profile.type,
            roles=list(profile.roles),
            allow=list(profile.allow),
            variables=list(profile.variables),
            ttl_seconds=profile.ttl_seconds,
            models=[ModelUseView(kind=m.kind, asked=m.asked, used=m.used) for m in binding.models],
            transports=list(binding.transports),
            session=binding.session,
            refusal=binding.refusal,
        )


class LookView(Answer):
    """When OpenAI was last asked for its models."""

    tried_at: datetime | None = Field(default=None, description="Null before the first look.")
    succeeded_at: datetime | None = Field(default=None, description="When it last gave its list.")
    problem: str | None = Field(
        default=None, description="Code of the problem, when the last try failed."
    )


class ModelNoticeView(Answer):
    """Something an admin has to know about models."""

    code: Code
    severity: Severity = Field(
        description="`urgent`: a week is left, or tokens are refused. `warning`: look into it."
    )
    detail: str = Field(description="What is the matter, in a sentence.")
    model: str | None = None
    profiles: list[str] = Field(description="The session profiles that are concerned.")
    sunset: date | None = Field(default=None, description="The day the model is shut down.")
    days_left: int | None = None
    at: datetime | None = Field(
        default=None, description="When it was found, where that is the news."
    )

    @classmethod
    def of(cls, notice: ModelNotice) -> Self:
        """Show a notice."""
        return cls(
            code=notice.code,
            severity=notice.severity,
            detail=notice.detail,
            model=notice.model,
            profiles=list(notice.profiles),
            sunset=notice.sunset,
            days_left=notice.days_left,
            at=notice.at,
        )


class ModelOverviewResponse(Answer):
    """All that there is to see about models."""

    models: list[StandingView]
    unknown: list[UnknownModelView] = Field(
        description="What else OpenAI lists that looks like a realtime or transcription model."
    )
    profiles: list[BindingView]
    look: LookView
    notices: list[ModelNoticeView] = Field(
        description="What is urgent first; what changed in the last week at the end."
    )

    @classmethod
    def of(cls, overview: ModelOverview, notices: list[ModelNotice]) -> Self:
        """Show everything."""
        look = overview.look
        return cls(
            models=[StandingView.of(standing) for standing in overview.models],
            unknown=[UnknownModelView(id=m.id, sunset=m.shutdown) for m in overview.unknown],
            profiles=[BindingView.of(binding) for binding in overview.bindings],
            look=LookView(
                tried_at=look.tried_at, succeeded_at=look.succeeded_at, problem=look.problem
            ),
            notices=[ModelNoticeView.of(notice) for notice in notices],
        )


class ModelChangeView(Answer):
    """What a look has found different about a model."""

    change: ChangeKind
    model: str
    before: date | None = Field(
        default=None, description="The day of its shutdown, as it was until now."
    )
    after: date | None = Field(default=None, description="The day of its shutdown, as it is now.")

    @classmethod
    def of(cls, change: Change) -> Self:
        """Show a change."""
        return cls(change=change.kind, model=change.model, before=change.before, after=change.after)


class RefreshResponse(Answer):
    """What a look has changed."""

    changes: list[ModelChangeView]


_EXAMPLE_OVERVIEW = {
    "models": [
        {
            "id": "gpt-4o-mini-transcribe",
            "family": "transcribe",
            "kind": "transcription",
            "status": "deprecated",
            "sunset": "2027-02-26",
            "daysLeft": 97,
            "successor": "gpt-transcribe",
            "source": "openai",
            "saidAt": "2026-11-21T09:30:12.482113Z",
            "listed": True,
            "profiles": ["default"],
        }
    ],
    "unknown": [{"id": "gpt-realtime-3-mini", "sunset": "2028-06-01"}],
    "profiles": [
        {
            "name": "default",
            "description": "A spoken conversation",
            "type": "realtime",
            "roles": ["user", "admin"],
            "allow": ["language", "voice"],
            "variables": [],
            "ttlSeconds": 60,
            "models": [
                {"kind": "speech", "asked": "mini", "used": "gpt-realtime-2.1-mini"},
                {
                    "kind": "transcription",
                    "asked": "transcribe",
                    "used": "gpt-4o-mini-transcribe",
                },
            ],
            "transports": ["webrtc", "websocket"],
            "session": {"type": "realtime", "model": "gpt-realtime-2.1-mini"},
        }
    ],
    "look": {
        "triedAt": "2026-11-21T09:30:12.482113Z",
        "succeededAt": "2026-11-21T09:30:12.482113Z",
    },
    "notices": [
        {
            "code": "model_ends",
            "severity": "info",
            "detail": "OpenAI shuts gpt-4o-mini-transcribe down on 2027-02-26; nothing that fits"
            " will take its place. Days left: 97. Used by: default.",
            "model": "gpt-4o-mini-transcribe",
            "profiles": ["default"],
            "sunset": "2027-02-26",
            "daysLeft": 97,
        }
    ],
}


@router.get(
    "",
    operation_id="showModels",
    summary="Show the models, when they end and who uses them",
    responses=success("The catalogue, the profiles, and what to know.", example=_EXAMPLE_OVERVIEW),
)
async def show_models(_: Admin, runtime: RuntimeDep) -> ModelOverviewResponse:
    """Show every model with its lifecycle, what each profile binds, and what needs attention.

    The days are those of OpenAI's own list where it names one, else those of the catalogue.
    """
    models = runtime.models
    return ModelOverviewResponse.of(models.overview(), await models.notices())


@router.post(
    "/refresh",
    operation_id="refreshModels",
    summary="Ask OpenAI for its models now",
    responses={
        **success(
            "What that has changed; mostly nothing.",
            example={
                "changes": [
                    {
                        "change": "date_moved",
                        "model": "gpt-4o-mini-transcribe",
                        "before": "2027-02-26",
                        "after": "2027-05-26",
                    }
                ]
            },
        ),
        **problem_responses(
            UpstreamRejected,
            UpstreamMisconfigured,
            UpstreamInvalidResponse,
            UpstreamUnavailable,
            UpstreamRateLimited,
            UpstreamQuotaExhausted,
            AuditUnavailable,
            UpstreamTimeout,
        ),
    },
)
async def refresh_models(caller: Admin, runtime: RuntimeDep) -> RefreshResponse:
    """Look at OpenAI's list of models now; the service does so by itself once a day.

    What changes holds from then on, in all processes within seconds.
    """
    changes = await runtime.models.refresh(by=caller)
    return RefreshResponse(changes=[ModelChangeView.of(change) for change in changes])
