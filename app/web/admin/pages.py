"""All pages under `/admin`, rendered here and whole without scripts, as one."""

from fastapi import FastAPI

from app.web.admin import integrity, keys, log, look_up, models, overview, sign_in, users
from app.web.admin.visitors import PageRefused, on_page_refused


def install_admin_pages(app: FastAPI) -> None:
    """Let *app* answer below ``/admin``."""
    for part in (sign_in, overview, log, look_up, integrity, models, users, keys):
        app.include_router(part.router)
    app.add_exception_handler(PageRefused, on_page_refused)
