"""Tokens, profiles and models: what a frontend asks for."""

from datetime import date
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Body, Response
from pydantic import Field

from app.base.errors import (
    AuditUnavailable,
    InvalidRequest,
    MintingOff,
    ModelRetired,
    Overloaded,
    OverrideNotAllowed,
    ProfileNotFound,
    QuotaExceeded,
    RateLimited,
    UpstreamInvalidResponse,
    UpstreamMisconfigured,
    UpstreamQuotaExhausted,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from app.identity.callers import Caller
from app.identity.end_users import LONGEST_USER
from app.minting.catalogue import Model, SessionType, Transport, TurnDetection
from app.minting.mint import Minted
from app.minting.profiles import LONGEST_VARIABLE, SHORTEST_TTL_SECONDS, Profile, Wish
from app.minting.session_shape import VOICES
from app.runtime import Runtime
from app.web.callers import MintingCaller, ProfileCaller, RuntimeDep
from app.web.problems import problem_responses
from app.web.schema import Absent, Answer, Asked, success

router = APIRouter(prefix="/realtime", tags=["Realtime"])

NOT_STORED = {"Cache-Control": "no-store"}
"""Goes with every token, as RFC 6749 section 5.1 asks."""


class TokenRequest(Asked):
    """What a caller may wish for. Everything is optional; so is the body."""

    profile: str = Field(
        default="default",
        min_length=1,
        max_length=64,
        description="Name of a session profile, one of those that `GET /realtime/profiles` lists.",
    )
    language: str | None = Field(
        default=None,
        max_length=35,
        description="The language that is spoken, for the transcription: an ISO-639-1 code such as"
        " `en`. Where the profile allows it.",
    )
    voice: str | None = Field(
        default=None,
        max_length=128,
        description=f"The voice that answers: {', '.join(f'`{voice}`' for voice in VOICES)}, or a"
        " custom `voice_…`. Where the profile allows it.",
    )
    variables: dict[str, str] = Field(
        default_factory=dict,
        max_length=64,
        description="A value for each variable that the profile declares, and for no other: 1 to"
        f" {LONGEST_VARIABLE} characters each, without control characters but newlines.",
    )
    ttl_seconds: int | None = Field(
        default=None,
        strict=True,
        description=f"How long the token opens sessions, in seconds: {SHORTEST_TTL_SECONDS} up to"
        " the profile's own, which also is what you get without.",
    )
    user: str | None = Field(
        default=None,
        min_length=1,
        max_length=LONGEST_USER,
        description="The end user on whose behalf a backend asks, by a name that stays theirs."
        " Needed with a service key; leave it out with an access token. It is neither stored nor"
        " passed on, a pseudonym is.",
    )


class NoticeView(Answer):
    """Something the integrator should know about the models in use."""

    code: Literal["model_deprecated", "model_replaced", "transcription_unavailable"]
    detail: str = Field(description="What is the matter, in a sentence.")
    model: Absent[str] = Field(default=None, description="The model that is concerned.")
    sunset: Absent[date] = Field(default=None, description="The day it is shut down.")
    requested: Absent[str] = Field(default=None, description="The model the profile names.")
    used: Absent[str] = Field(default=None, description="The model used in its place.")


class Connect(Answer):
    """Where the frontend opens its session, by transport; one that does not fit is absent."""

    webrtc: Absent[str] = Field(
        default=None,
        description="Send the SDP offer here with POST, as `application/sdp`, the token as bearer.",
    )
    websocket: Absent[str] = Field(
        default=None,
        description="Open a WebSocket here. A browser sends the token as the subprotocol"
        " `openai-insecure-api-key.<token>`, after the subprotocol `realtime`.",
    )


class TokenResponse(Answer):
    """A client secret, the session it is bound to, and where to go with it."""

    success: Literal[True]
    id: str = Field(description="`tok_…`, the name of this attempt in the audit log.")
    token: str = Field(
        description="OpenAI's client secret, `ek_…`. Keep it in memory and use it at once; it"
        " opens sessions, and nothing else."
    )
    expires_at: int = Field(
        description="Unix seconds after which it opens no session. One that is open goes on, up to"
        " OpenAI's limit of 60 minutes."
    )
    expires_in: int = Field(description="The same in seconds from now, for wrong clocks.")
    model: str = Field(description="The model that answers, or transcribes; the holder's for good.")
    session_config: dict[str, Any] = Field(
        description="The session that was asked for, in OpenAI's own shape; also good as the"
        " `session` of a `session.update`."
    )
    connect: Connect
    binding: Literal["advisory"] = Field(
        description="The holder of the token can change all of it but the model."
    )
    environment: Literal["live", "sandbox"] = Field(
        description="Whether the token is OpenAI's, or the built-in stand-in's."
    )
    notices: list[NoticeView] = Field(description="Mostly empty.")

    @classmethod
    def of(cls, minted: Minted) -> Self:
        """Put what was minted into words."""
        return cls(
            success=True,
            id=minted.id,
            token=minted.secret.value.get_secret_value(),
            expires_at=minted.secret.expires_at,
            expires_in=minted.expires_in,
            model=minted.plan.model,
            session_config=minted.plan.session,
            connect=Connect(**minted.connect),
            binding="advisory",
            environment=minted.environment,
            notices=[NoticeView(**notice.to_json()) for notice in minted.notices],
        )


class ProfileView(Answer):
    """A session profile, as far as it concerns who asks."""

    name: str = Field(description="What to send as `profile`.")
    description: str
    type: SessionType = Field(
        description="Whether a model answers, or speech is only written down."
    )
    allow: list[str] = Field(description="What the caller may choose: `language`, `voice`.")
    variables: list[str] = Field(description="What the caller has to send under `variables`.")
    ttl_seconds: int = Field(description="Longest lifetime of a token, in seconds.")

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

    transports: list[Transport]
    turn_detections: list[TurnDetection] = Field(description="`none`: the client takes turns.")


class ModelView(Answer):
    """One model of the catalogue, with its lifecycle."""

    id: str = Field(description="OpenAI's name for it.")
    family: str = Field(
        description="What profiles may name instead: the best live model of the family is used."
    )
    kind: Literal["speech", "transcription", "translation"]
    status: Literal["active", "deprecated", "retired"] = Field(
        description="`deprecated`: its end is announced. `retired`: it is off."
    )
    released: date | None
    sunset: date | None = Field(description="The day it is shut down.")
    successor: str | None = Field(description="The model that OpenAI names in its place.")
    reasoning: bool = Field(description="Whether it takes `reasoning` and `parallel_tool_calls`.")
    context_tokens: int | None = Field(description="Tokens that a conversation can hold.")
    max_output_tokens: int | None = Field(
        description="Tokens of one response; a session may ask for at most 4,096."
    )
    serves: dict[SessionType, Terms] = Field(
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


_EXAMPLE_TOKEN = {
    "success": True,
    "id": "tok_7TS4GKMW4TWNJ1Y2E8K57Z3PA8",
    "token": "ek_0123456789abcdef0123456789abcdef",
    "expiresAt": 1795176060,
    "expiresIn": 60,
    "model": "gpt-realtime-2.1-mini",
    "sessionConfig": {
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
    },
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
            "detail": "OpenAI shuts gpt-4o-mini-transcribe down on 2027-02-26; nothing that fits"
            " will take its place.",
        }
    ],
}

_EXAMPLE_WISHES = {
    "plain": {"summary": "The default profile as it is", "value": {}},
    "chosen": {
        "summary": "With what the profile lets you choose",
        "value": {"profile": "default", "language": "en", "voice": "marin", "ttlSeconds": 30},
    },
    "filled": {
        "summary": "A profile that has variables",
        "value": {"profile": "coach", "variables": {"seller": "Ada", "product": "tractors"}},
    },
    "delegated": {
        "summary": "With a service key, on behalf of an end user",
        "value": {"user": "their-user-17"},
    },
}


@router.post(
    "/token",
    operation_id="mintToken",
    summary="Mint a token",
    responses={
        **success(
            "The token. It is never stored here and cannot be asked for again.",
            example=_EXAMPLE_TOKEN,
            cache_control="no-store",
        ),
        **problem_responses(
            OverrideNotAllowed,
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
            Overloaded,
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
    wish: Annotated[TokenRequest | None, Body(openapi_examples=_EXAMPLE_WISHES)] = None,
) -> TokenResponse:
    """Mint one short-lived client secret for OpenAI's Realtime API.

    It is bound to the model and the transcription of the profile; `default` has the mini realtime
    model. Ask for it at the moment of connecting, once for each connection, and go where `connect`
    says. The binding is a default: the token's holder can change everything but the model.

    Leave the body out, or send null, to take the profile `default` as it is. A backend that asks
    with a service key names its end user in `user`; the limits are then those of that user.
    """
    response.headers.update(NOT_STORED)
    return await mint(caller, runtime, wish)


async def mint(caller: Caller, runtime: Runtime, wish: TokenRequest | None) -> TokenResponse:
    """Mint one client secret for *caller*, or for whom they name.

    Raises:
        InvalidRequest: See `Callers.on_behalf_of`.
        Problem: See `Minter.mint`.
    """
    request = wish or TokenRequest()
    caller = runtime.callers.on_behalf_of(caller, request.user)
    return TokenResponse.of(await runtime.minter.mint(caller, _wish(request)))


@router.get(
    "/profiles",
    operation_id="listProfiles",
    summary="List the profiles you may ask for",
    responses=success(
        "The profiles of your role, or of your service key.",
        example={
            "profiles": [
                {
                    "name": "default",
                    "description": "A spoken conversation",
                    "type": "realtime",
                    "allow": ["language", "voice"],
                    "variables": [],
                    "ttlSeconds": 60,
                },
                {
                    "name": "coach",
                    "description": "Listens to a sales call and coaches the seller in writing",
                    "type": "realtime",
                    "allow": ["language"],
                    "variables": ["product", "seller"],
                    "ttlSeconds": 60,
                },
            ]
        },
    ),
)
async def list_profiles(caller: ProfileCaller, runtime: RuntimeDep) -> ProfilesResponse:
    """List the session profiles that this caller may name in `POST /realtime/token`."""
    profiles = runtime.profiles.for_role(caller.role, only=caller.profiles)
    return ProfilesResponse(profiles=[ProfileView.of(profile) for profile in profiles])


@router.get(
    "/models",
    operation_id="listModels",
    summary="List the models and when they end",
    responses=success(
        "Every model of the catalogue, as it stands today.",
        example={
            "models": [
                {
                    "id": "gpt-realtime-mini-2025-12-15",
                    "family": "mini",
                    "kind": "speech",
                    "status": "deprecated",
                    "released": "2025-12-15",
                    "sunset": "2027-01-20",
                    "successor": "gpt-realtime-2.1-mini",
                    "reasoning": False,
                    "contextTokens": 32000,
                    "maxOutputTokens": 4096,
                    "serves": {
                        "realtime": {
                            "transports": ["webrtc", "websocket"],
                            "turnDetections": ["server_vad", "semantic_vad", "none"],
                        }
                    },
                }
            ]
        },
    ),
)
async def list_models(_: ProfileCaller, runtime: RuntimeDep) -> ModelsResponse:
    """List every realtime, transcription and translation model the catalogue knows."""
    today = runtime.clock().date()
    return ModelsResponse(
        models=[ModelView.of(model, today=today) for model in runtime.models.catalogue.models]
    )


def _wish(request: TokenRequest) -> Wish:
    return Wish(
        profile=request.profile,
        language=request.language,
        voice=request.voice,
        variables=request.variables,
        ttl_seconds=request.ttl_seconds,
    )
