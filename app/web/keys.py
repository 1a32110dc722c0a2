"""The service keys that backends show: for admins."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Body, Path
from pydantic import Field

from app.base.errors import AuditUnavailable, Conflict, FieldError, InvalidRequest, NotFound
from app.identity.key_ring import (
    LIFETIME_DAYS,
    LONGEST_LIFETIME_DAYS,
    LONGEST_NAME,
    LONGEST_OVERLAP_HOURS,
    MOST_PROFILES,
    OVERLAP_HOURS,
    NewKey,
    ends_soon,
)
from app.identity.service_keys import KEY_SCOPE_MEANINGS, KeyScope, ServiceKey
from app.web.callers import Admin, RuntimeDep
from app.web.problems import problem_responses
from app.web.schema import Answer, Asked, success

router = APIRouter(prefix="/admin/api/keys", tags=["Service keys"])


class KeyRequest(Asked):
    """A key to be made."""

    name: str = Field(
        min_length=1,
        max_length=LONGEST_NAME,
        description="For people: which backend has it. All characters printable.",
    )
    scopes: list[KeyScope] = Field(
        min_length=1,
        max_length=len(KEY_SCOPE_MEANINGS),
        description=", or ".join(f"`{scope}`: {what}" for scope, what in KEY_SCOPE_MEANINGS.items())
        + ".",
    )
    profiles: list[str] | None = Field(
        default=None,
        min_length=1,
        max_length=MOST_PROFILES,
        description="The only session profiles it may be used for, of those that users may ask for."
        " Null, or left out: all of these.",
    )
    lifetime_days: int = Field(
        default=LIFETIME_DAYS,
        strict=True,
        ge=1,
        le=LONGEST_LIFETIME_DAYS,
        description="How long it is good.",
    )


class Rotation(Asked):
    """How a key is replaced. Everything is optional; so is the body."""

    overlap_hours: int = Field(
        default=OVERLAP_HOURS,
        strict=True,
        ge=0,
        le=LONGEST_OVERLAP_HOURS,
        description="How long the old key stays good; never longer than it would have.",
    )
    lifetime_days: int = Field(
        default=LIFETIME_DAYS,
        strict=True,
        ge=1,
        le=LONGEST_LIFETIME_DAYS,
        description="How long the new key is good.",
    )


class KeyView(Answer):
    """What is known of a key; not the key."""

    id: str = Field(description="`key_…`; the `credential` of rows in the audit log.")
    name: str
    scopes: list[KeyScope]
    profiles: list[str] | None = Field(
        default=None,
        description="The only session profiles it may be used for; null for all that users may.",
    )
    status: Literal["active", "ending", "expired", "revoked"] = Field(
        description="`ending`: good for two weeks at most. Replace it, if it has no successor."
    )
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None = None
    successor: str | None = Field(default=None, description="The `key_…` that it was replaced by.")
    last_used_at: datetime | None = Field(
        default=None, description="To the minute; null when it never was."
    )

    @classmethod
    def of(cls, key: ServiceKey, *, now: datetime) -> Self:
        """Show *key* as it stands at *now*."""
        return cls(**_members(key, now))


class NewKeyView(KeyView):
    """A key that was just made."""

    key: str = Field(
        description="`rtk_…`, to be shown as `Authorization: Bearer`. It is not stored here and"
        " cannot be asked for again."
    )

    @classmethod
    def of_new(cls, made: NewKey, *, now: datetime) -> Self:
        """Show a key that was just made, with its text."""
        return cls(**_members(made.key, now), key=made.text.get_secret_value())


class KeysResponse(Answer):
    """All keys there ever were."""

    keys: list[KeyView]


_EXAMPLE_KEY = {
    "id": "key_4KQ2M8Z6T0V9N7R5P3S1W8XHJ0",
    "name": "shop backend",
    "scopes": ["mint:on-behalf"],
    "profiles": ["default"],
    "status": "active",
    "createdAt": "2026-11-20T12:00:00.123456Z",
    "expiresAt": "2027-02-18T12:00:00.123456Z",
}
_EXAMPLE_NEW_KEY = {
    **_EXAMPLE_KEY,
    "key": "rtk_live_4KQ2M8Z6T0V9N7R5P3S1W8XHJ0_…",
}

_NO_SUCH_KEY = NotFound("There is no service key with this id.")


@router.get(
    "",
    operation_id="listServiceKeys",
    summary="List the service keys",
    responses=success(
        "Every key, oldest first.",
        example={"keys": [{**_EXAMPLE_KEY, "lastUsedAt": "2026-11-21T09:30:12.482113Z"}]},
    ),
)
async def list_keys(_: Admin, runtime: RuntimeDep) -> KeysResponse:
    """List every service key there ever was: what it may, until when, and when it was last used."""
    now = runtime.clock()
    return KeysResponse(keys=[KeyView.of(key, now=now) for key in await runtime.key_ring.all()])


@router.post(
    "",
    operation_id="createServiceKey",
    summary="Make a service key",
    responses={
        **success(
            "The key. It is not stored here and cannot be asked for again.",
            example=_EXAMPLE_NEW_KEY,
        ),
        **problem_responses(
            InvalidRequest(errors=[FieldError("lifetimeDays", "must be 1 to 366")]),
            AuditUnavailable,
        ),
    },
)
async def create_key(
    caller: Admin,
    runtime: RuntimeDep,
    wanted: Annotated[
        KeyRequest,
        Body(
            openapi_examples={
                "plain": {
                    "summary": "For a backend that asks for tokens",
                    "value": {"name": "shop backend", "scopes": ["mint:on-behalf"]},
                },
                "narrow": {
                    "summary": "For one profile and a month",
                    "value": {
                        "name": "shop backend",
                        "scopes": ["mint:on-behalf"],
                        "profiles": ["default"],
                        "lifetimeDays": 30,
                    },
                },
            }
        ),
    ],
) -> NewKeyView:
    """Make a key for a backend, and show it this once."""
    made = await runtime.key_ring.create(
        wanted.name,
        scopes=wanted.scopes,
        profiles=wanted.profiles,
        lifetime_days=wanted.lifetime_days,
        by=caller,
    )
    return NewKeyView.of_new(made, now=runtime.clock())


@router.post(
    "/{id}/revoke",
    operation_id="revokeServiceKey",
    summary="Revoke a service key",
    responses={
        **success(
            "The key, revoked.",
            example={
                **_EXAMPLE_KEY,
                "status": "revoked",
                "revokedAt": "2026-11-21T10:02:45.000317Z",
            },
        ),
        **problem_responses(_NO_SUCH_KEY, AuditUnavailable),
    },
)
async def revoke_key(
    caller: Admin,
    runtime: RuntimeDep,
    key_id: Annotated[str, Path(alias="id", description="The `key_…` of the key.")],
) -> KeyView:
    """End a key at once: no mint that begins later succeeds. One that is revoked stays so."""
    key = await runtime.key_ring.revoke(key_id, by=caller)
    return KeyView.of(key, now=runtime.clock())


@router.post(
    "/{id}/rotate",
    operation_id="rotateServiceKey",
    summary="Replace a service key",
    responses={
        **success(
            "The new key. It is not stored here and cannot be asked for again.",
            example=_EXAMPLE_NEW_KEY,
        ),
        **problem_responses(
            InvalidRequest(errors=[FieldError("overlapHours", "must be 0 to 168")]),
            _NO_SUCH_KEY,
            Conflict("The key is not good any more. Make a new one."),
            AuditUnavailable,
        ),
    },
)
async def rotate_key(
    caller: Admin,
    runtime: RuntimeDep,
    key_id: Annotated[str, Path(alias="id", description="The `key_…` of the key.")],
    rotation: Annotated[
        Rotation | None,
        Body(
            openapi_examples={
                "plain": {"summary": "A day to change over", "value": {}},
                "longer": {
                    "summary": "A week to change over",
                    "value": {"overlapHours": 168, "lifetimeDays": 180},
                },
            }
        ),
    ] = None,
) -> NewKeyView:
    """Make the successor of a key, with its name, scopes and profiles, and show it this once.

    The old key stays good for a while, a day unless you say otherwise, so that the backend can
    change over.
    """
    rotation = rotation or Rotation()
    made = await runtime.key_ring.rotate(
        key_id,
        overlap_hours=rotation.overlap_hours,
        lifetime_days=rotation.lifetime_days,
        by=caller,
    )
    return NewKeyView.of_new(made, now=runtime.clock())


def _members(key: ServiceKey, now: datetime) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "scopes": sorted(key.scopes),
        "profiles": None if key.profiles is None else sorted(key.profiles),
        "status": _status(key, now),
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "successor": key.successor_id,
        "last_used_at": key.last_used_at,
    }


def _status(key: ServiceKey, now: datetime) -> Literal["active", "ending", "expired", "revoked"]:
    match key.fault(now):
        case "service_key_revoked":
            return "revoked"
        case "service_key_expired":
            return "expired"
        case _:
            return "ending" if ends_soon(key, now) else "active"
