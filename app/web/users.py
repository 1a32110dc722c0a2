"""Users of every kind: for admins."""

from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any, Self

from fastapi import APIRouter, Body, Path, Query
from pydantic import Field, SecretStr, StringConstraints

from app.base.errors import (
    AuditUnavailable,
    Conflict,
    FieldError,
    InvalidCursor,
    InvalidRequest,
    NotFound,
    Overloaded,
)
from app.base.ids import is_id
from app.identity.directory import LARGEST_PAGE, LONGEST_SEARCH, Person
from app.identity.erased import ERASED
from app.identity.users import LONGEST_EMAIL, Role
from app.web.callers import Admin, RuntimeDep
from app.web.passwords import ResetLink
from app.web.problems import problem_responses
from app.web.schema import NO_CONTROL_CHARACTERS, Answer, Asked, Omissible, success

router = APIRouter(prefix="/admin/api/users", tags=["Users"])

Searched = Annotated[
    str, StringConstraints(max_length=LONGEST_SEARCH, pattern=NO_CONTROL_CHARACTERS)
]


class PersonView(Answer):
    """One user, of this service or of another issuer."""

    id: str = Field(description="`usr_…`; the `actor` of rows in the audit log.")
    name: str = Field(description="The e-mail address; what an issuer calls a user of theirs.")
    issuer: str | None = Field(
        default=None, description="Who vouches for them; null for an account of this service."
    )
    role: Role | None = Field(
        default=None, description="Null for users of another issuer: their tokens say it."
    )
    created_at: datetime
    disabled_at: datetime | None = Field(default=None, description="Since when they may not act.")
    last_sign_in_at: datetime | None = Field(
        default=None, description="When they last gave their password; null if they never did."
    )

    @classmethod
    def of(cls, person: Person) -> Self:
        """Show *person*."""
        return cls(
            id=person.id,
            name=person.name,
            issuer=person.issuer,
            role=person.role,
            created_at=person.created_at,
            disabled_at=person.disabled_at,
            last_sign_in_at=person.last_sign_in_at,
        )


class UserQuery(Asked):
    """Which users are wanted. All of it is optional."""

    search: Omissible[Searched] = Field(
        default=None, description="A part of the name, in any case, or the whole `usr_…`."
    )
    limit: int = Field(default=50, ge=1, le=LARGEST_PAGE, description="Users per page at the most.")
    cursor: Omissible[Searched] = Field(
        default=None, description="`nextCursor` of the page before, with the same search."
    )


class UsersResponse(Answer):
    """A page of users, newest first."""

    users: list[PersonView]
    next_cursor: str | None = Field(
        description="Send it as `cursor` for the next page; null when this is the last."
    )


class UserRequest(Asked):
    """An account to be made."""

    email: str = Field(max_length=LONGEST_EMAIL, description="The address to sign in with.")
    role: Role
    password: SecretStr | None = Field(
        default=None,
        description="Null, or left out: nobody knows one, and the answer has a link to set it.",
    )


class RoleRequest(Asked):
    """Another role."""

    role: Role


class ErasedView(Answer):
    """What was erased."""

    id: str = Field(description="It stays, in the rows of the log and here, and names nobody.")
    rows: int = Field(description="Rows of the log that no longer say who it was.")


class NewUserView(PersonView):
    """An account that was just made."""

    reset_link: ResetLink | None = Field(
        default=None, description="The way to a first password, unless one was sent."
    )


_EXAMPLE = {
    "id": "usr_4KQ2M8Z6T0V9N7R5P3S1W8XHJ0",
    "name": "ada@example.com",
    "role": "auditor",
    "createdAt": "2026-11-20T12:00:00.123456Z",
}
_SIGNED_IN = {**_EXAMPLE, "lastSignInAt": "2026-11-21T09:30:12.482113Z"}
_NOBODY = NotFound("Nobody has this id.")
_NO_ACCOUNT = NotFound("No account has this id.")
_LAST_ADMIN = Conflict("This is the last admin. Make another one first.")


@router.get(
    "",
    operation_id="listUsers",
    summary="List the users",
    responses={
        **success(
            "A page of users, newest first.",
            example={"users": [_SIGNED_IN], "nextCursor": _EXAMPLE["id"]},
        ),
        **problem_responses(
            InvalidCursor,
            InvalidRequest(errors=[FieldError("limit", "must be less than or equal to 200")]),
        ),
    },
)
async def list_users(
    _: Admin, runtime: RuntimeDep, query: Annotated[UserQuery, Query()]
) -> UsersResponse:
    """List accounts of this service and users of other issuers, newest first."""
    page = await runtime.directory.page(limit=query.limit, search=query.search, cursor=query.cursor)
    return UsersResponse(
        users=[PersonView.of(person) for person in page.people], next_cursor=page.next_cursor
    )


@router.post(
    "",
    operation_id="addUser",
    summary="Add a user",
    responses={
        **success(
            "The account, and a link to set its password unless one was sent.",
            example={
                **_EXAMPLE,
                "resetLink": {
                    "link": "https://tokens.example.com/reset#rts_9Jx…",
                    "expiresAt": "2026-11-20T13:00:00Z",
                },
            },
        ),
        **problem_responses(
            InvalidRequest(
                errors=[FieldError("email", "must be an address such as ada@example.com")]
            ),
            Conflict("An account with this address exists already."),
            AuditUnavailable,
            Overloaded,
        ),
    },
)
async def add_user(
    caller: Admin,
    runtime: RuntimeDep,
    wanted: Annotated[
        UserRequest,
        Body(
            openapi_examples={
                "link": {
                    "summary": "The user sets the password",
                    "value": {"email": "ada@example.com", "role": "auditor"},
                },
            }
        ),
    ],
) -> NewUserView:
    """Add an account. Without a password the answer has a link by which its user sets one."""
    password = None if wanted.password is None else wanted.password.get_secret_value()
    user = await runtime.users.add(wanted.email, role=wanted.role, password=password, by=caller)
    link = None
    if password is None:
        link = ResetLink.of(await runtime.password_changes.make_link(user.id, by=caller))
    members: dict[str, Any] = dict(PersonView.of(await runtime.directory.get(user.id)))
    return NewUserView(**members, reset_link=link)


@router.get(
    "/{id}",
    operation_id="getUser",
    summary="Show a user",
    responses={**success("The user.", example=_SIGNED_IN), **problem_responses(_NOBODY)},
)
async def get_user(
    _: Admin, runtime: RuntimeDep, user_id: Annotated[str, Path(alias="id", description="`usr_…`")]
) -> PersonView:
    """Show one user."""
    return PersonView.of(await runtime.directory.get(user_id))


@router.post(
    "/{id}/role",
    operation_id="setUserRole",
    summary="Give a user another role",
    responses={
        **success("The user with the new role.", example=_SIGNED_IN),
        **problem_responses(
            InvalidRequest(errors=[FieldError("role", "must be 'user', 'auditor' or 'admin'")]),
            _NO_ACCOUNT,
            _LAST_ADMIN,
            AuditUnavailable,
        ),
    },
)
async def set_role(
    caller: Admin,
    runtime: RuntimeDep,
    user_id: Annotated[str, Path(alias="id", description="`usr_…`")],
    wanted: Annotated[
        RoleRequest, Body(openapi_examples={"auditor": {"value": {"role": "auditor"}}})
    ],
) -> PersonView:
    """Give an account another role, and end its sign-ins: the next ones have the new scopes."""
    return PersonView.of(await runtime.directory.set_role(user_id, wanted.role, by=caller))


@router.post(
    "/{id}/disable",
    operation_id="disableUser",
    summary="Disable a user",
    responses={
        **success(
            "The user, disabled.",
            example={**_SIGNED_IN, "disabledAt": "2026-11-21T10:02:45.000317Z"},
        ),
        **problem_responses(_NOBODY, _LAST_ADMIN, AuditUnavailable),
    },
)
async def disable_user(
    caller: Admin,
    runtime: RuntimeDep,
    user_id: Annotated[str, Path(alias="id", description="`usr_…`")],
) -> PersonView:
    """Stop a user at once: no mint that begins later succeeds, and their sign-ins end."""
    return PersonView.of(await runtime.directory.disable(user_id, by=caller))


@router.post(
    "/{id}/enable",
    operation_id="enableUser",
    summary="Enable a user",
    responses={
        **success("The user, who may act again.", example=_SIGNED_IN),
        **problem_responses(_NOBODY, Conflict(ERASED), AuditUnavailable),
    },
)
async def enable_user(
    caller: Admin,
    runtime: RuntimeDep,
    user_id: Annotated[str, Path(alias="id", description="`usr_…`")],
) -> PersonView:
    """Let a user act again. An account of this service has to sign in anew."""
    return PersonView.of(await runtime.directory.enable(user_id, by=caller))


@router.post(
    "/{id}/sign-out",
    operation_id="signUserOut",
    summary="End all sign-ins of a user",
    status_code=HTTPStatus.NO_CONTENT,
    responses={
        204: {"description": "They have ended."},
        **problem_responses(_NO_ACCOUNT, AuditUnavailable),
    },
)
async def sign_user_out(
    caller: Admin,
    runtime: RuntimeDep,
    user_id: Annotated[str, Path(alias="id", description="`usr_…`")],
) -> None:
    """End every sign-in of an account, on all devices; the password stays as it is."""
    await runtime.sign_out.of_user(user_id, by=caller)


@router.post(
    "/{id}/erase",
    operation_id="eraseUser",
    summary="Erase a person",
    responses={
        **success("They are erased.", example={"id": _EXAMPLE["id"], "rows": 214}),
        **problem_responses(_NOBODY, _LAST_ADMIN, AuditUnavailable, Overloaded),
    },
)
async def erase_user(
    caller: Admin,
    runtime: RuntimeDep,
    user_id: Annotated[
        str, Path(alias="id", description="`usr_…`; or the `eus_…` of a backend's end user.")
    ],
) -> ErasedView:
    """Erase what identifies a person, for good; who it was cannot be found out here afterwards.

    Their e-mail address is replaced and the account disabled, and so is what another issuer calls
    them. Addresses and user agents of their rows in the log go; the rows and the chain stay whole.
    Nobody erases themselves, nor the last admin.
    """
    if not (is_id(user_id, "usr") or is_id(user_id, "eus")):
        raise NotFound(_NOBODY.detail)
    erased = await runtime.erasure.erase(user_id, by=caller)
    return ErasedView(id=erased.user_id, rows=erased.rows)
