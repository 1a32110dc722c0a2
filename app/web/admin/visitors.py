"""Who may see a page, and whether a form was sent by them: the doorkeeper of `/admin`.

A page needs a connection that nobody reads along, a cookie that is good, and a role. A form has to
come from a page of ours besides, which three things say independently: the cookie is sent with
requests of our own site alone (``SameSite=Strict``), the browser says which site the request is
from (``Sec-Fetch-Site``, else ``Origin``), and the form carries its visitor's token.
"""

import hmac
import ipaddress
from collections.abc import Callable, Coroutine, Mapping
from http import HTTPStatus
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import Field, SecretStr

from app.base.errors import InsufficientScope, InvalidRequest, RateLimited
from app.identity.browser_sign_ins import Visitor
from app.settings import Settings
from app.web.admin.frame import shown
from app.web.callers import OriginDep, RuntimeDep
from app.web.client_address import forwarded_scheme
from app.web.schema import Asked

COOKIE = "__Host-realtime-tokens"
"""The prefix lets browsers take it over TLS or loopback alone, and from nobody but this host."""

FORM_TOKEN, PASSWORD = "formToken", "password"


class Act(Asked):
    """Base of what forms send."""

    form_token: str = Field(default="", repr=False)
    password: SecretStr | None = None
    """The visitor's own, where the act needs it once more."""


class PageRefused(Exception):
    """A page that is shown in place of the one that was asked for.

    Args:
        template: Which one.
        status: Of the answer.
        visitor: In whose frame, if anybody's.
        headers: Besides those of every page.
        facts: What it shows.
    """

    def __init__(
        self,
        template: str,
        visitor: Visitor | None = None,
        *,
        status: HTTPStatus = HTTPStatus.FORBIDDEN,
        headers: Mapping[str, str] | None = None,
        **facts: Any,
    ) -> None:
        self.template = template
        self.visitor = visitor
        self.status = status
        self.headers = headers
        self.facts = facts
        super().__init__(template)


async def on_page_refused(request: Request, refusal: Exception) -> HTMLResponse:
    """Show the page that stands in the place of another."""
    assert isinstance(refusal, PageRefused)  # noqa: S101 - it is installed for these alone
    return shown(
        request,
        refusal.template,
        refusal.visitor,
        status=refusal.status,
        headers=refusal.headers,
        **refusal.facts,
    )


async def see_connection(request: Request, runtime: RuntimeDep) -> None:
    """See that nobody reads along, and that a form comes from a page of ours.

    Raises:
        PageRefused: Somebody may, or it comes from elsewhere.
    """
    if not _is_private(request, runtime.settings):
        raise PageRefused("tls.html", public_url=runtime.settings.public_url)
    if request.method == "POST" and not _is_from_us(request, runtime.settings):
        raise PageRefused("foreign.html")


Protected = Annotated[None, Depends(see_connection)]


def visitor_with(scope: str) -> Callable[..., Coroutine[Any, Any, Visitor]]:
    """Return the dependency that admits visitors whose role has *scope*."""

    async def visitor(
        request: Request, runtime: RuntimeDep, origin: OriginDep, _: Protected
    ) -> Visitor:
        cookie = request.cookies.get(COOKIE)
        try:
            visitor = await runtime.browser_sign_ins.visitor(cookie, origin, scope=scope)
        except InsufficientScope:
            raise PageRefused("no_role.html") from None
        request.state.log["actor"] = visitor.user.id
        if request.method == "POST":
            token = (await request.form()).get(FORM_TOKEN)
            known = visitor.form_token.encode()
            if not isinstance(token, str) or not hmac.compare_digest(token.encode(), known):
                raise PageRefused("foreign.html", visitor)
        return visitor

    return visitor


Reader = Annotated[Visitor, Depends(visitor_with("audit:read"))]
Manager = Annotated[Visitor, Depends(visitor_with("admin"))]


async def _with_password(request: Request, runtime: RuntimeDep, visitor: Manager) -> Visitor:
    """Admit an admin who has given their password lately, or gives it with the form.

    Raises:
        PageRefused: They have not; the page asks for it, and sends the form again.
        Overloaded, AuditUnavailable: See `BrowserSignIns.confirm`.
    """
    if not visitor.is_fresh(runtime.clock()):
        form = await request.form()
        password = form.get(PASSWORD)
        fault, headers, status = "", {}, HTTPStatus.FORBIDDEN
        if isinstance(password, str) and password:
            try:
                await runtime.browser_sign_ins.confirm(visitor, password)
            except InvalidRequest:
                fault = "The password is wrong."
            except RateLimited as problem:
                fault, status = problem.detail, problem.status
                headers = {"Retry-After": str(problem.retry_after_seconds)}
            else:
                return visitor
        sent = form.multi_items()
        raise PageRefused(
            "confirm.html",
            visitor,
            status=status,
            headers=headers,
            act=request.scope["route"].name,
            fields=[pair for pair in sent if pair[0] not in {FORM_TOKEN, PASSWORD}],
            fault=fault,
        )
    return visitor


ConfirmedManager = Annotated[Visitor, Depends(_with_password)]
"""For dangerous acts: whoever finds an open browser shall not be able to do them."""


def give_cookie(response: Response, value: str) -> Response:
    """Let the browser hold a sign-in, until it is closed or the sign-in ends."""
    response.set_cookie(COOKIE, value, secure=True, httponly=True, samesite="strict", path="/")
    return response


def take_cookie(response: Response) -> Response:
    """Let the browser forget its sign-in."""
    response.delete_cookie(COOKIE, secure=True, httponly=True, samesite="strict", path="/")
    return response


def _is_private(request: Request, settings: Settings) -> bool:
    """Tell whether the browser will take a Secure cookie, and a password may be sent.

    What the Host header says is good enough here: who lies there deceives themselves alone.
    """
    host = _host(f"//{request.headers.get('host', '')}")
    if _is_loopback(host):
        return True
    told = forwarded_scheme(request.scope, settings.trusted_proxies)
    if told is not None:
        return told == "https"
    public = urlsplit(settings.public_url)
    return request.url.scheme == "https" or (public.scheme == "https" and host == public.hostname)


def _host(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_from_us(request: Request, settings: Settings) -> bool:
    """Tell whether a form was sent by a page of ours, as the browser says; pages cannot alter it.

    Source: Fetch Metadata Request Headers; RFC 6454 section 7.
    """
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    # Browsers from before 2023. A client that says neither is no browser.
    public = urlsplit(settings.public_url)
    ours = {f"http://{host}:{settings.port}" for host in ("127.0.0.1", "localhost")}
    return request.headers.get("origin") in ours | {f"{public.scheme}://{public.netloc}"}
