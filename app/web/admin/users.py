"""The pages of users: for admins."""

from typing import Annotated

from fastapi import APIRouter, Form, Path, Query, Request
from pydantic import Field
from starlette.responses import Response

from app.base.errors import Conflict, InvalidCursor, InvalidRequest, Problem
from app.identity.browser_sign_ins import Visitor
from app.identity.directory import LONGEST_SEARCH
from app.identity.erased import is_erased
from app.identity.password_changes import NewLink
from app.identity.users import Role
from app.runtime import Runtime
from app.web.admin.frame import SIGN_IN, sent_to, shown
from app.web.admin.visitors import Act, ConfirmedManager, Manager, take_cookie
from app.web.callers import RuntimeDep
from app.web.schema import Asked

router = APIRouter(prefix="/admin/users", include_in_schema=False)

PER_PAGE = 50

_DONE = {
    "role": "The role is changed. Whoever was signed in with the old one is signed out.",
    "disable": "The account is disabled. It gets no token from now on.",
    "enable": "The account may act again.",
    "sign-out": "All sign-ins have ended.",
    "erase": "The person is erased. Their rows in the log stay, and do not say who it was.",
}
"""What a page says after an act, by the last part of the act's address."""


class UsersQuery(Asked):
    """Which users are listed."""

    search: str = Field(default="", max_length=LONGEST_SEARCH)
    cursor: str | None = None


class PersonQuery(Asked):
    """What has just been done to the user who is shown."""

    done: str = ""


class NewUser(Act):
    """The form of a new account."""

    email: str
    role: Role


class Erasing(Act):
    """The form that erases a person."""

    named: str = ""
    """Whom, typed in: so that nobody is erased by a slip."""


class NewRole(Act):
    """The form of another role."""

    role: Role


@router.get("")
async def list_users(
    request: Request, runtime: RuntimeDep, visitor: Manager, query: Annotated[UsersQuery, Query()]
) -> Response:
    """List users, newest first."""
    search = "".join(filter(str.isprintable, query.search)).strip()  # PostgreSQL takes no NUL
    cursor = query.cursor
    try:
        page = await runtime.directory.page(limit=PER_PAGE, search=search, cursor=cursor)
    except InvalidCursor:
        return sent_to(request, "/admin/users", search=search)
    return shown(
        request, "users.html", visitor, page=page, search=search, cursor=cursor, is_erased=is_erased
    )


@router.get("/new")
async def ask_for_user(request: Request, visitor: Manager) -> Response:
    """Show the form of a new account."""
    return shown(request, "user_new.html", visitor, faults={}, email="", role="user")


@router.post("", name="Add a user")
async def add_user(
    request: Request,
    runtime: RuntimeDep,
    visitor: ConfirmedManager,
    form: Annotated[NewUser, Form()],
) -> Response:
    """Add an account, and show the link to its first password, this once."""
    try:
        user = await runtime.users.add(form.email, role=form.role, password=None, by=visitor.caller)
    except (InvalidRequest, Conflict) as problem:
        faults = {error.field: error.reason for error in problem.errors}
        return shown(
            request,
            "user_new.html",
            visitor,
            status=problem.status,
            faults=faults or {"email": "has an account already"},
            email=form.email,
            role=form.role,
        )
    link = await runtime.password_changes.make_link(user.id, by=visitor.caller)
    return await _person(request, runtime, visitor, user.id, link=link, done="The user is added.")


@router.get("/{id}")
async def show_user(
    request: Request,
    runtime: RuntimeDep,
    visitor: Manager,
    user_id: Annotated[str, Path(alias="id")],
    query: Annotated[PersonQuery, Query()],
) -> Response:
    """Show one user, and what can be done about them."""
    return await _person(request, runtime, visitor, user_id, done=_DONE.get(query.done, ""))


@router.post("/{id}/role", name="Change the role")
async def set_role(
    request: Request,
    runtime: RuntimeDep,
    visitor: ConfirmedManager,
    user_id: Annotated[str, Path(alias="id")],
    form: Annotated[NewRole, Form()],
) -> Response:
    """Give an account another role."""
    try:
        await runtime.directory.set_role(user_id, form.role, by=visitor.caller)
    except Conflict as problem:
        return await _person(request, runtime, visitor, user_id, problem=problem)
    return _after(request, visitor, user_id, "role")


@router.post("/{id}/disable", name="Disable the account")
async def disable_user(
    request: Request,
    runtime: RuntimeDep,
    visitor: ConfirmedManager,
    user_id: Annotated[str, Path(alias="id")],
    _form: Annotated[Act, Form()],
) -> Response:
    """Stop a user."""
    try:
        await runtime.directory.disable(user_id, by=visitor.caller)
    except Conflict as problem:
        return await _person(request, runtime, visitor, user_id, problem=problem)
    return _after(request, visitor, user_id, "disable")


@router.post("/{id}/enable", name="Enable the account")
async def enable_user(
    request: Request,
    runtime: RuntimeDep,
    visitor: ConfirmedManager,
    user_id: Annotated[str, Path(alias="id")],
    _form: Annotated[Act, Form()],
) -> Response:
    """Let a user act again."""
    try:
        await runtime.directory.enable(user_id, by=visitor.caller)
    except Conflict as problem:
        return await _person(request, runtime, visitor, user_id, problem=problem)
    return _after(request, visitor, user_id, "enable")


@router.post("/{id}/sign-out", name="End all sign-ins")
async def sign_user_out(
    request: Request,
    runtime: RuntimeDep,
    visitor: ConfirmedManager,
    user_id: Annotated[str, Path(alias="id")],
    _form: Annotated[Act, Form()],
) -> Response:
    """End every sign-in of an account."""
    await runtime.sign_out.of_user(user_id, by=visitor.caller)
    return _after(request, visitor, user_id, "sign-out")


@router.post("/{id}/reset-link", name="Make a link to set the password")
async def make_reset_link(
    request: Request,
    runtime: RuntimeDep,
    visitor: ConfirmedManager,
    user_id: Annotated[str, Path(alias="id")],
    _form: Annotated[Act, Form()],
) -> Response:
    """Show a link to set the password, this once."""
    try:
        link = await runtime.password_changes.make_link(user_id, by=visitor.caller)
    except Conflict as problem:
        return await _person(request, runtime, visitor, user_id, problem=problem)
    return await _person(request, runtime, visitor, user_id, link=link)


@router.post("/{id}/erase", name="Erase the person")
async def erase_user(
    request: Request,
    runtime: RuntimeDep,
    visitor: ConfirmedManager,
    user_id: Annotated[str, Path(alias="id")],
    form: Annotated[Erasing, Form()],
) -> Response:
    """Erase what identifies a person, once their name is typed in."""
    person = await runtime.directory.get(user_id)
    if form.named.strip().lower() not in {person.name.lower(), person.id.lower()}:
        wrong = InvalidRequest("What was typed in is neither their name nor their id.")
        return await _person(request, runtime, visitor, user_id, problem=wrong)
    try:
        await runtime.erasure.erase(user_id, by=visitor.caller)
    except Conflict as problem:
        return await _person(request, runtime, visitor, user_id, problem=problem)
    return _after(request, visitor, user_id, "erase")


async def _person(
    request: Request,
    runtime: Runtime,
    visitor: Visitor,
    user_id: str,
    *,
    done: str = "",
    link: NewLink | None = None,
    problem: Problem | None = None,
) -> Response:
    """Show a user as they are now, after an act or a refused one."""
    person = await runtime.directory.get(user_id)
    return shown(
        request,
        "user.html",
        visitor,
        status=problem.status if problem else 200,
        person=person,
        erased=is_erased(person.id, person.name),
        done=done,
        link=link,
        fault=problem.detail if problem else "",
    )


def _after(request: Request, visitor: Visitor, user_id: str, act: str) -> Response:
    """Lead back to the user; who ended their own sign-in by the act leaves."""
    if user_id == visitor.user.id:
        return take_cookie(sent_to(request, SIGN_IN, ended="1"))
    return sent_to(request, f"/admin/users/{user_id}", done=act)
