"""Signing in to the pages, and out."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Form, Query, Request
from pydantic import SecretStr
from starlette.responses import Response

from app.base.errors import InsufficientScope, Overloaded, RateLimited
from app.identity.sign_in import GrantRefused
from app.web.admin.frame import HOME, SIGN_IN, sent_to, shown
from app.web.admin.problem_page import is_page
from app.web.admin.visitors import Act, Protected, Reader, give_cookie, take_cookie
from app.web.callers import OriginDep, RuntimeDep
from app.web.schema import Asked

router = APIRouter(include_in_schema=False)

_NO_ENTRANCE = (
    "This account may ask for tokens, and see nothing here. That takes the role auditor or admin,"
    " which an admin gives."
)


class Entrance(Asked):
    """What the page is told by its address."""

    next: str = HOME
    """Where to go once signed in."""

    ended: str = ""
    """Not empty when there was a sign-in."""

    out: str = ""
    """Not empty when they have just signed out."""


class SignInForm(Asked):
    """What the form sends."""

    email: str
    password: SecretStr
    next: str = HOME


@router.get(SIGN_IN)
async def ask_to_sign_in(
    request: Request, _: Protected, entrance: Annotated[Entrance, Query()]
) -> Response:
    """Show the form."""
    note = ""
    if entrance.out:
        note = "You have signed out."
    elif entrance.ended:
        note = "Your sign-in has ended. Sign in again to go on."
    return shown(request, "sign_in.html", next=_within(entrance.next), note=note, fault="")


@router.post(SIGN_IN)
async def sign_in(
    request: Request,
    runtime: RuntimeDep,
    origin: OriginDep,
    _: Protected,
    form: Annotated[SignInForm, Form()],
) -> Response:
    """Begin a sign-in, or say why not."""
    headers: dict[str, str] = {}
    try:
        cookie = await runtime.browser_sign_ins.begin(
            origin, email=form.email, password=form.password.get_secret_value()
        )
    except GrantRefused as refusal:
        fault, status = refusal.description, HTTPStatus.UNPROCESSABLE_ENTITY
    except InsufficientScope as problem:
        fault, status = _NO_ENTRANCE, problem.status
    except (RateLimited, Overloaded) as problem:
        fault, status = problem.detail, problem.status
        headers["Retry-After"] = str(problem.retry_after_seconds)
    else:
        return give_cookie(sent_to(request, _within(form.next)), cookie)
    return shown(
        request,
        "sign_in.html",
        status=status,
        headers=headers,
        next=_within(form.next),
        email=form.email,
        note="",
        fault=fault,
    )


@router.get("/admin/account")
async def show_account(request: Request, visitor: Reader) -> Response:
    """Show who is signed in, and until when."""
    return shown(request, "account.html", visitor)


@router.post("/admin/sign-out")
async def sign_out(
    request: Request, runtime: RuntimeDep, visitor: Reader, _form: Annotated[Act, Form()]
) -> Response:
    """End this sign-in."""
    await runtime.sign_out.end(
        visitor.caller.credential, user_id=visitor.user.id, origin=visitor.caller.origin
    )
    return take_cookie(sent_to(request, SIGN_IN, out="1"))


@router.post("/admin/sign-out-everywhere")
async def sign_out_everywhere(
    request: Request, runtime: RuntimeDep, visitor: Reader, _form: Annotated[Act, Form()]
) -> Response:
    """End all sign-ins of the visitor, on all devices."""
    await runtime.sign_out.everywhere(visitor.caller)
    return take_cookie(sent_to(request, SIGN_IN, out="1"))


def _within(path: str) -> str:
    """Return *path* if it is one of our pages, which anybody may have written into a link."""
    plain = path.isascii() and path.isprintable() and "\\" not in path
    return path if plain and is_page(path) and not path.startswith(SIGN_IN) else HOME
