"""What each session profile binds: for admins. What a caller may ask for is in `realtime`."""

from typing import Any, Self

from fastapi import APIRouter
from pydantic import Field

from app.minting.catalogue import SessionType, Transport
from app.minting.profiles import Binding
from app.web.callers import Admin, RuntimeDep
from app.web.realtime import NoticeView
from app.web.schema import Answer, success

router = APIRouter(prefix="/admin/api/profiles", tags=["Profiles"])


class BindingView(Answer):
    """A session profile, and what its tokens are bound to today."""

    name: str
    description: str
    type: SessionType
    roles: list[str] = Field(description="Who may ask for it.")
    allow: list[str] = Field(description="What the caller may choose: `language`, `voice`.")
    variables: list[str] = Field(description="What the caller has to fill in.")
    ttl_seconds: int = Field(description="Longest lifetime of a token, in seconds.")
    model: str = Field(description="The model that answers; of a transcription the one that does.")
    transcription_model: str | None = None
    transports: list[Transport]
    session: dict[str, Any] = Field(description="As OpenAI gets it, but for the `{variables}`.")
    refusal: str | None = Field(default=None, description="Why it mints nothing; null if it does.")
    notices: list[NoticeView]

    @classmethod
    def of(cls, binding: Binding) -> Self:
        """Show *binding*."""
        profile = binding.profile
        return cls(
            name=profile.name,
            description=profile.description,
            type=profile.type,
            roles=list(profile.roles),
            allow=sorted(profile.allow),
            variables=sorted(profile.variables),
            ttl_seconds=profile.ttl_seconds,
            model=binding.model,
            transcription_model=binding.transcription_model,
            transports=list(binding.transports),
            session=binding.session,
            refusal=binding.refusal or None,
            notices=[NoticeView(**notice.to_json()) for notice in binding.notices],
        )


class BindingsResponse(Answer):
    """Every profile there is."""

    profiles: list[BindingView]


@router.get(
    "",
    operation_id="listBindings",
    summary="List what the profiles bind",
    responses=success(
        "Every profile, as of today.",
        example={
            "profiles": [
                {
                    "name": "default",
                    "description": "A spoken conversation",
                    "type": "realtime",
                    "roles": ["user", "admin"],
                    "allow": ["language", "voice"],
                    "variables": [],
                    "ttlSeconds": 60,
                    "model": "gpt-realtime-2.1-mini",
                    "transcriptionModel": "gpt-4o-mini-transcribe",
                    "transports": ["webrtc", "websocket"],
                    "session": {"type": "realtime", "model": "gpt-realtime-2.1-mini"},
                    "notices": [],
                }
            ]
        },
    ),
)
async def list_bindings(_: Admin, runtime: RuntimeDep) -> BindingsResponse:
    """List every session profile, for whichever role, and what its tokens are bound to today."""
    bindings = runtime.profiles.bindings(runtime.clock().date())
    return BindingsResponse(profiles=[BindingView.of(binding) for binding in bindings])
