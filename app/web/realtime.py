"""Tokens, profiles and models: what a frontend asks for."""

from datetime import date
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Body, Response
from pydantic import Field

from app.base.errors import (
    AuditUnavailable,
    FieldError,
    InsufficientScope,
    InvalidRequest,
    InvalidToken,
    MintingOff,
    ModelRetired,
    OverrideNotAllowed,
    ProfileNotFound,
    QuotaExceeded,
    RateLimited,
    Unauthenticated,
    UpstreamInvalidResponse,
    UpstreamMisconfigured,
    UpstreamQuotaExhausted,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
    UserDisabled,
)
from app.minting.catalogue import Model
from app.minting.mint import Minted
from app.minting.profiles import Profile, Wish
from app.web.callers import MintingCaller, ProfileCaller, RuntimeDep
from app.web.problems import problem_responses
from app.web.schema import Absent, Answer, Asked

router = APIRouter(prefix="/realtime", tags=["Realtime"])


class TokenRequest(Asked):
    """What a caller may wish for. Everything is optional; so is the body."""

    profile: str = Field(
        default="default", min_length=1, max_length=64, description="Name of a session profile."
    )
    language: str | None = Field(
        default=None,
        max_length=35,
        description="Language of the speaker, ISO-639-1, where the profile allows it.",
    )
    voice: str | None = Field(
        default=None, max_length=128, description="Voice, where the profile allows it."
    )
    variables: dict[str, str] = Field(
        default_factory=dict,
        max_length=64,
        description="Values for the variables that the profile declares.",
    )
    ttl_seconds: int | None = Field(
        default=None,
        strict=True,
        description="Lifetime of the token in seconds: 10 up to the profile's.",
    )
    user: str | None = Field(
        default=None,
        max_length=128,
        description="The end user on whose behalf a backend asks; only with a service key.",
    )


class NoticeView(Answer):
    """Something the integrator should know about the models in use."""

    code: Literal["model_deprecated", "model_replaced", "transcription_unavailable"]
    detail: str
    model: Absent[str] = None
    sunset: Absent[date] = None
    requested: Absent[str] = None
    used: Absent[str] = None


class Connect(Answer):
    """Where the frontend opens its session, by transport; one that does not fit is absent."""

    webrtc: Absent[str] = None
    websocket: Absent[str] = None


class TokenResponse(Answer):
    """A client secret, the session it is bound to, and where to go with it."""

    success: Literal[True] = True
    id: str = Field(description="Name of this attempt in the audit log.")
    token: str = Field(description="OpenAI's client secret. Keep it in memory, use it at once.")
    expires_at: int = Field(description="Unix seconds after which it opens no session.")
    expires_in: int = Field(description="The same in seconds from now, for wrong clocks.")
    model: str
    session_config: dict[str, Any] = Field(
        description="The session that was asked for, in OpenAI's own shape; also good as the"
        " `session` of a `session.update`."
    )
    connect: Connect
    binding: Literal["advisory"] = Field(
        default="advisory",
        description="The holder of the token can change all of it but the model.",
    )
    environment: Literal["live", "sandbox"]
    notices: list[NoticeView]

    @classmethod
    def of(cls, minted: Minted) -> Self:
        """Put what was minted into words."""
        return cls(
            id=minted.id,
            token=minted.secret.value.get_secret_value(),
            expires_at=minted.secret.expires_at,
            expires_in=minted.expires_in,
            model=minted.plan.model,
            session_config=minted.plan.session,
            connect=Connect(**minted.connect),
            environment=minted.environment,
            notices=[NoticeView(**notice.to_json()) for notice in minted.notices],
        )


class ProfileView(Answer):
    """A session profile, as far as it concerns who asks."""

    name: str
    description: str
    type: Literal["realtime", "transcription"]
    allow: list[str] = Field(description="What the caller may choose.")
    variables: list[str] = Field(description="What the caller has to send under `variables`.")
    ttl_seconds: int = Field(description="Longest lifetime of a token.")

    @classmethod
    def of(cls, profile: Profile) -> Self:
        """Show *profile* to its users."""
        return cls(
            name=profile.name,
            description=profile.description,
            type=profile.type,
            allow=sorted(profile.allow),
            variables=sorted(profile.variables),
            ttl_seconds=profile.ttl_seconds,
        )


class ProfilesResponse(Answer):
    """The profiles this caller may ask for."""

    profiles: list[ProfileView]


class Terms(Answer):
    """How a model may be used in one type of session."""

    transports: list[str]
    turn_detections: list[str]


class ModelView(Answer):
    """One model of the catalogue, with its lifecycle."""

    id: str
    family: str
    kind: Literal["speech", "transcription", "translation"]
    status: Literal["active", "deprecated", "retired"]
    released: date | None
    sunset: date | None = Field(description="The day it is shut down.")
    successor: str | None
    reasoning: bool
    context_tokens: int | None
    max_output_tokens: int | None
    serves: dict[str, Terms] = Field(
        description="For each type of session: how clients may connect, and take turns."
    )

    @classmethod
    def of(cls, model: Model, *, today: date) -> Self:
        """Show *model* as it stands *today*."""
        return cls(
            id=model.id,
            family=model.family,
            kind=model.kind,
            status=model.status_on(today),
            released=model.released,
            sunset=model.shutdown,
            successor=model.successor,
            reasoning=model.reasoning,
            context_tokens=model.context_tokens,
            max_output_tokens=model.max_output_tokens,
            serves={
                session_type: Terms(
                    transports=list(terms.transports), turn_detections=list(terms.turn_detections)
                )
                for session_type, terms in model.serves.items()
            },
        )


class ModelsResponse(Answer):
    """The catalogue as of today."""

    models: list[ModelView]


EXAMPLE_SESSION = {
    "type": "realtime",
    "model": "gpt-realtime-2.1-mini",
    "output_modalities": ["audio"],
    "audio": {
        "input": {
            "transcription": {"model": "gpt-4o-mini-transcribe", "language": "en"},
            "turn_detection": {"type": "semantic_vad"},
        },
        "output": {"voice": "marin"},
    },
}

EXAMPLE_TOKEN = {
    "success": True,
    "id": "tok_01JD3Q8Z6T0V9K2M4N5P7R8S1W",
    "token": "ek_…",
    "expiresAt": 1795132800,
    "expiresIn": 60,
    "model": "gpt-realtime-2.1-mini",
    "sessionConfig": EXAMPLE_SESSION,
    "connect": {
        "webrtc": "https://api.openai.com/v1/realtime/calls",
        "websocket": "wss://api.openai.com/v1/realtime",
    },
    "binding": "advisory",
    "environment": "live",
    "notices": [
        {
            "code": "model_deprecated",
            "model": "gpt-4o-mini-transcribe",
            "sunset": "2027-02-26",
            "detail": "gpt-4o-mini-transcribe is shut down on 2027-02-26.",
        }
    ],
}


@router.post(
    "/token",
    operation_id="mintToken",
    summary="Mint a token",
    response_model_exclude_unset=False,
    responses={
        200: {
            "description": "The token. It is never stored here and cannot be asked for again.",
            "headers": {"Cache-Control": {"schema": {"type": "string", "const": "no-store"}}},
            "content": {"application/json": {"example": EXAMPLE_TOKEN}},
        },
        **problem_responses(
            Unauthenticated,
            InvalidToken,
            InsufficientScope,
            OverrideNotAllowed,
            UserDisabled,
            ProfileNotFound,
            InvalidRequest,
            RateLimited,
            QuotaExceeded,
            UpstreamRejected,
            UpstreamMisconfigured,
            UpstreamInvalidResponse,
            UpstreamUnavailable,
            UpstreamRateLimited,
            UpstreamQuotaExhausted,
            AuditUnavailable,
            ModelRetired,
            MintingOff,
            UpstreamTimeout,
        ),
    },
)
async def mint_token(
    caller: MintingCaller,
    runtime: RuntimeDep,
    response: Response,
    wish: Annotated[
        TokenRequest | None,
        Body(
            openapi_examples={
                "plain": {"summary": "The default profile as it is", "value": {}},
                "chosen": {
                    "summary": "With what the profile allows",
                    "value": {"profile": "default", "language": "en", "voice": "marin"},
                },
            }
        ),
    ] = None,
) -> TokenResponse:
    """Mint one short-lived client secret for OpenAI's Realtime API.

    It is bound to the mini realtime model and to the transcription of the profile. Ask for it at
    the moment of connecting, once for each connection; `connect` says where to go with it.
    The binding is a default: its holder can change everything but the model.
    """
    minted = await runtime.minter.mint(caller, _wish(wish or TokenRequest()))
    response.headers["Cache-Control"] = "no-store"  # RFC 6749 section 5.1
    return TokenResponse.of(minted)


@router.get(
    "/profiles",
    operation_id="listProfiles",
    summary="List the profiles you may ask for",
    responses=problem_responses(Unauthenticated, InvalidToken, InsufficientScope, UserDisabled),
)
async def list_profiles(caller: ProfileCaller, runtime: RuntimeDep) -> ProfilesResponse:
    """List the session profiles that this caller may name in `POST /realtime/token`."""
    profiles = runtime.profiles.for_role(caller.role)
    return ProfilesResponse(profiles=[ProfileView.of(profile) for profile in profiles])


@router.get(
    "/models",
    operation_id="listModels",
    summary="List the models and when they end",
    responses=problem_responses(Unauthenticated, InvalidToken, InsufficientScope, UserDisabled),
)
async def list_models(_: ProfileCaller, runtime: RuntimeDep) -> ModelsResponse:
    """List every realtime, transcription and translation model the catalogue knows."""
    today = runtime.clock().date()
    return ModelsResponse(
        models=[ModelView.of(model, today=today) for model in runtime.catalogue.models]
    )


def _wish(request: TokenRequest) -> Wish:
    if request.user is not None:
        raise InvalidRequest(errors=[FieldError("user", "is for service keys alone; leave it out")])
    return Wish(
        profile=request.profile,
        language=request.language,
        voice=request.voice,
        variables=request.variables,
        ttl_seconds=request.ttl_seconds,
    )
