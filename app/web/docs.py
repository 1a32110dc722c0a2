"""`GET /docs`: Swagger UI without a CDN, under a Content-Security-Policy without exceptions."""

from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import FileResponse
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

DOCS_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Swagger UI does without inline scripts, inline styles and eval; its icons are `data:` images."""

_PAGE = Path(__file__).parent / "static" / "docs.html"

router = APIRouter(include_in_schema=False)


class _SwaggerUI(StaticFiles):
    """The files of Swagger UI, from the package that brings them, to be kept for a day."""

    def __init__(self) -> None:
        super().__init__(packages=[("fastapi_swagger", "resources")])

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Answer as usual, with an ETag and 304, and let browsers keep the file."""
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "public, max-age=86400"
        return response


router.mount("/swagger-ui", _SwaggerUI())


@router.get("/docs")
async def docs() -> FileResponse:
    """Return the page that shows `/openapi.json`; its links work below any path."""
    return FileResponse(
        _PAGE, headers={"Content-Security-Policy": DOCS_CSP, "Cache-Control": "no-cache"}
    )
