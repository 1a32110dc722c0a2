"""Refusals under `/admin`, as pages: whoever has not signed in is shown where to."""

from http import HTTPStatus
from urllib.parse import quote

from starlette.responses import HTMLResponse, Response
from starlette.types import Scope

from app.base.errors import InvalidToken, Problem, Unauthenticated
from app.web.admin.frame import HEADERS, SIGN_IN, page, see_other

_API = "/admin/api"


def is_page(path: str) -> bool:
    """Tell whether people read what is at *path*: it is below ``/admin``, and no JSON."""
    return path.startswith("/admin") and not path.startswith(_API)


def problem_page(problem: Problem, scope: Scope, *, public_url: str) -> Response:
    """Return the page that refuses the request of *scope* because of *problem*."""
    if isinstance(problem, Unauthenticated | InvalidToken):
        query = {"ended": "1"} if isinstance(problem, InvalidToken) else {}
        if scope["method"] == "GET":  # what a form has sent cannot be asked for once more
            asked = scope["query_string"].decode("latin-1")
            query["next"] = quote(scope["path"]) + (f"?{asked}" if asked else "")
        return see_other(public_url, SIGN_IN, **query)
    headers = dict(HEADERS)
    if problem.retry_after_seconds is not None:
        headers["Retry-After"] = str(problem.retry_after_seconds)
    text = page(
        public_url,
        "problem.html",
        visitor=None,
        environment=None,
        path=scope["path"],
        problem=problem,
        detail=problem.detail.removeprefix(f"{problem.title}. "),  # the title stands above it
        phrase=HTTPStatus(problem.status).phrase,
        request_id=scope["state"]["request_id"],
    )
    return HTMLResponse(text, problem.status, headers)
