"""The pages that problem types point to: what each code means and what to do about it."""

from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from inspect import getdoc
from json import dumps, loads
from typing import Any

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from app.base.errors import NotFound, Problem, UpstreamProblem, every_problem
from app.web.pages import page_templates
from app.web.problems import EXAMPLE_REQUEST_ID, example_of, problem_response

_HEADERS = {
    "Cache-Control": "public, max-age=300",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}
_TOLD = ("Content-Type", "Cache-Control", "Retry-After", "WWW-Authenticate")


@dataclass(frozen=True, slots=True)
class _Entry:
    """One kind of problem, as its page tells it."""

    code: str
    status: int
    phrase: str
    title: str
    meaning: str
    advice: str
    group: str
    headers: dict[str, str]
    document: dict[str, Any]


# Where the cause lies, as the index groups them.
_GROUPS = {"request": "The request", "openai": "OpenAI", "service": "This service"}


def error_pages(*, public_url: str) -> APIRouter:
    """Return the routes ``/errors`` and ``/errors/{code}``, their pages made once, here.

    Args:
        public_url: What problem types begin with; no slash at its end.
    """
    entries = sorted(_entries(public_url), key=lambda entry: (entry.status, entry.code))
    templates = page_templates(public_url)
    templates.globals["json"] = _shown
    index = templates.get_template("errors.html").render(groups=_GROUPS, entries=entries)
    page = templates.get_template("error.html")
    pages = {
        entry.code: page.render(
            entry=entry,
            others=[other for other in entries if other.status == entry.status and other != entry],
        )
        for entry in entries
    }

    router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)

    @router.get("/errors")
    async def list_errors() -> HTMLResponse:
        return HTMLResponse(index, headers=_HEADERS)

    @router.get("/errors/{code}")
    async def explain_error(code: str) -> HTMLResponse:
        if code not in pages:
            raise NotFound("There is no such code. GET /errors lists all of them.")
        return HTMLResponse(pages[code], headers=_HEADERS)

    return router


def _entries(public_url: str) -> Iterator[_Entry]:
    for kind in every_problem():
        # The very answer that clients get, so that the page cannot drift from it.
        scope = {"path": "/", "state": {"request_id": EXAMPLE_REQUEST_ID}}
        response = problem_response(example_of(kind), scope, public_url=public_url)
        yield _Entry(
            code=kind.code,
            status=kind.status,
            phrase=kind.status.phrase,
            title=kind.title,
            meaning=getdoc(kind) or "",
            advice=kind.advice,
            group=_group_of(kind),
            headers={name: response.headers[name] for name in _TOLD if name in response.headers},
            document=loads(bytes(response.body)),
        )


def _shown(value: Any) -> str:
    """Return *value* as JSON for reading, to stand two blanks deep; the template escapes it."""
    return dumps(value, indent=2, ensure_ascii=False).replace("\n", "\n  ")


def _group_of(kind: type[Problem]) -> str:
    if issubclass(kind, UpstreamProblem):
        return "openai"
    return "request" if kind.status < HTTPStatus.INTERNAL_SERVER_ERROR else "service"
