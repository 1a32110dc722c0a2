"""What each page under `/admin` is shown in: headers, navigation, templates, how values look."""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode, urlsplit

from fastapi import Request
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment
from markupsafe import Markup

from app.base.ids import is_id
from app.identity.browser_sign_ins import Visitor
from app.web.pages import page_templates

HOME = "/admin"
"""Where who has just signed in begins."""

SIGN_IN = "/admin/sign-in"

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    # With no-referrer, which the door would set, browsers call the origin of our own forms null.
    "Referrer-Policy": "same-origin",
}

_SHOWN_OF_AN_ID = 6  # digits from its end; it begins with its time, like its neighbours


@dataclass(frozen=True, slots=True)
class Place:
    """An entry of the navigation."""

    path: str
    label: str
    icon: str
    """A name in `icons.html`."""

    scope: str
    """Who lacks it does not see the entry."""


NAVIGATION = (
    Place(HOME, "Overview", "chart", "audit:read"),
    Place("/admin/log", "Log", "list", "audit:read"),
    Place("/admin/look-up", "Token look-up", "search", "audit:read"),
    Place("/admin/integrity", "Integrity", "shield", "audit:read"),
    Place("/admin/models", "Models and profiles", "layers", "audit:read"),
    Place("/admin/users", "Users", "people", "admin"),
    Place("/admin/keys", "Service keys", "key", "admin"),
)


def shown(
    request: Request,
    template: str,
    visitor: Visitor | None = None,
    *,
    status: int = HTTPStatus.OK,
    headers: Mapping[str, str] | None = None,
    **facts: Any,
) -> HTMLResponse:
    """Return a page, in the frame of whoever looks at it.

    Args:
        request: Whose path says where in the navigation we are.
        template: Its name below ``templates/admin``.
        visitor: None before they have signed in.
        status: Of the answer.
        headers: Besides those of every page.
        facts: What the template shows.
    """
    settings = request.state.runtime.settings
    text = page(
        settings.public_url,
        template,
        visitor=visitor,
        path=request.url.path,
        environment=settings.environment,
        **facts,
    )
    return HTMLResponse(text, status, HEADERS | dict(headers or {}))


def page(public_url: str, template: str, /, **facts: Any) -> str:
    """Return the text of a page.

    Args:
        public_url: Without a slash at its end.
        template: Its name below ``templates/admin``.
        facts: What the template shows.
    """
    return _templates(public_url).get_template(f"admin/{template}").render(**facts)


def sent_to(request: Request, path: str, **query: str) -> RedirectResponse:
    """Return what makes the browser ask for *path* next, so that a reload repeats no act."""
    return see_other(request.state.runtime.settings.public_url, path, **query)


def see_other(public_url: str, path: str, **query: str) -> RedirectResponse:
    """Return a redirect to *path*, below the path of *public_url*."""
    location = urlsplit(public_url).path + path
    if query:
        location += f"{'&' if '?' in path else '?'}{urlencode(query)}"
    return RedirectResponse(location, HTTPStatus.SEE_OTHER, HEADERS)


@cache
def _templates(public_url: str) -> Environment:
    templates = page_templates(public_url)
    templates.globals["home"] = HOME
    templates.globals["navigation"] = NAVIGATION
    templates.filters["instant"] = _instant
    templates.filters["visible"] = visible
    templates.filters["short"] = _short
    templates.filters["breakable"] = _breakable
    return templates


def _instant(at: datetime) -> Markup:
    """Return *at* to the second, in UTC, for people and for programs."""
    return Markup('<time datetime="{}" title="{} UTC">{}</time>').format(
        at.isoformat().replace("+00:00", "Z"),
        f"{at:%A, %d %B %Y, %H:%M:%S.%f}",
        f"{at:%Y-%m-%d %H:%M:%S}",
    )


def _short(text: str) -> Markup:
    """Return both ends of an id, and all of it for who points at it; what is none stays whole."""
    prefix, mark, _ = text.partition("_")
    if not is_id(text, prefix):
        return Markup("<code>{}</code>").format(visible(text))
    short = f"{prefix}{mark}…{text[-_SHOWN_OF_AN_ID:]}"
    return Markup('<code title="{}">{}</code>').format(text, short)


def _breakable(text: str) -> Markup:
    """Return a code such as ``wrong_password`` that may go on in the next line between words."""
    return Markup("_<wbr>").join(visible(text).split("_"))


def visible(text: object) -> str:
    """Return *text* with every character that cannot be seen written out: it changes no other.

    Marks that turn the direction of writing, and those without width, let a value pass for another.
    """
    return "".join(
        f"[U+{ord(character):04X}]" if unicodedata.category(character)[0] == "C" else character
        for character in str(text)
    )
