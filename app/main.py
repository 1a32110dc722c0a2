"""Wiring: puts routes, door, sandbox and runtime together into one application."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import structlog
from fastapi import FastAPI
from fastapi.responses import RedirectResponse
from starlette.staticfiles import StaticFiles

from app import __version__
from app.base.logs import configure_logging
from app.housekeeping import housekeeping
from app.minting.catalogue import Catalogue
from app.runtime import (
    SANDBOX_PATH,
    Runtime,
    installation_secret,
    open_runtime,
    sandbox_api_key,
)
from app.sandbox.app import SandboxModel, create_sandbox
from app.settings import Settings, read_settings
from app.web import (
    audit,
    auth,
    docs,
    export,
    health,
    integrity,
    keys,
    lookup,
    models,
    notices,
    overview,
    passwords,
    realtime,
    users,
)
from app.web.admin.pages import install_admin_pages
from app.web.door import door
from app.web.error_pages import error_pages
from app.web.metrics import metrics_page
from app.web.problems import install_problem_handlers
from app.web.server import end_with_supervisor, spare_the_collector

_log = structlog.get_logger(__name__)

OnReady = Callable[[Runtime], Awaitable[None]]

DESCRIPTION = """
Gives your users short-lived tokens for OpenAI's Realtime API. Your OpenAI key stays on the server,
audio flows directly between the frontend and OpenAI, and every token leaves a row in a log.

1. Sign in at `POST /auth/token`; on this page, with **Authorize**.
2. `POST /realtime/token` gives a token and the session it is bound to.
3. Connect where `connect` says, at once. Ask for a new token for each connection.

A backend shows a **service key** in place of 1, and names its end user in 2.

**What a token binds is a default.** Its holder can change everything but the model; put nothing
confidential into a session.

**Refusals** are `application/problem+json` ([RFC 9457](https://www.rfc-editor.org/rfc/rfc9457))
with a stable `code`, which has a page under [errors](errors); `POST /auth/token` refuses as OAuth
clients expect. An unknown path answers `not_found`, an unknown method `method_not_allowed`. Fields
and parameters that we do not know are refused, and so is a body over 64 KiB.

**Every request has a name**: it comes back as `X-Request-ID`, and the server's logs have it. Send
one of your own, up to 64 letters, digits, `.`, `_` or `-`, and it is kept.
"""

TAGS = [
    {"name": "Realtime", "description": "Tokens, and what they can be bound to"},
    {"name": "Sign-in", "description": "Access tokens for accounts of this service"},
    {"name": "Users", "description": "Accounts, roles and who may act; for admins"},
    {"name": "Audit", "description": "Who got which token, when and from where; refusals too"},
    {"name": "Service keys", "description": "Credentials of backends; for admins"},
    {"name": "Models", "description": "When models end, and what profiles bind; for admins"},
    {"name": "Operation", "description": "For load balancers and operators"},
]


def create_worker() -> FastAPI:
    """Return the whole service as each of several processes makes it for itself."""
    settings = read_settings()
    configure_logging(settings.log_level)
    end_with_supervisor()

    async def on_ready(_: Runtime) -> None:
        spare_the_collector()

    return create_app(settings, on_ready=on_ready, checked=True)


def create_app(
    settings: Settings, *, on_ready: OnReady | None = None, checked: bool = False
) -> FastAPI:
    """Return the whole service.

    Args:
        settings: Checked.
        on_ready: Called once everything is ready, before the first request is answered.
        checked: Start even while the database is away, see `open_runtime`.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with open_runtime(settings, checked=checked) as runtime:
            if settings.environment == "sandbox":
                _mount_sandbox(app, runtime)
            for note in runtime.profiles.warnings(runtime.clock().date()):
                _log.warning("start_up_note", note=note)
            async with housekeeping(runtime):
                if on_ready is not None:
                    await on_ready(runtime)
                yield {"runtime": runtime}

    app = FastAPI(
        title="Realtime token service",
        version=__version__,
        summary="Short-lived OpenAI Realtime tokens for your own users, with a provable log",
        description=DESCRIPTION,
        license_info={"name": "MIT", "identifier": "MIT"},
        servers=[{"url": settings.public_url}],
        openapi_tags=TAGS,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        middleware=door(settings),
        # It would send exceptions out past our redaction, and costs each request a little.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        redirect_slashes=False,
    )
    for router in (
        realtime.router,
        auth.router,
        passwords.router,
        audit.router,
        overview.router,
        export.router,
        lookup.router,
        notices.router,
        integrity.router,
        keys.router,
        models.router,
        users.router,
        health.router,
        docs.router,
        error_pages(public_url=settings.public_url),
        passwords.reset_page(public_url=settings.public_url),
    ):
        app.include_router(router)
    if settings.metrics_token or settings.environment == "sandbox":
        app.include_router(metrics_page(settings.metrics_token))

    async def to_docs() -> RedirectResponse:
        return RedirectResponse(f"{urlsplit(settings.public_url).path}/docs")

    app.add_api_route("/", to_docs, include_in_schema=False)
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "web" / "static"))
    install_admin_pages(app)
    install_problem_handlers(app, public_url=settings.public_url)
    docs.complete_description(app, public_url=settings.public_url)
    return app


def _mount_sandbox(app: FastAPI, runtime: Runtime) -> None:
    today = runtime.clock().date()
    sandbox = create_sandbox(
        api_key=sandbox_api_key(installation_secret(runtime.settings)).get_secret_value(),
        clock=runtime.clock,
        models=sandbox_models(Catalogue.built_in(), today),
    )
    app.mount(SANDBOX_PATH, sandbox)


def sandbox_models(catalogue: Catalogue, today: date) -> list[SandboxModel]:
    """Return the models that OpenAI would list on this day."""
    return [
        SandboxModel(
            id=model.id,
            created=_midnight(model.released),
            shutdown_date=model.shutdown.isoformat() if model.shutdown else None,
            realtime=model.kind == "speech",
        )
        for model in catalogue.models
        if model.status_on(today) != "retired"
    ]


def _midnight(day: date | None) -> int:
    return int(datetime.combine(day, time(), UTC).timestamp()) if day else 0
