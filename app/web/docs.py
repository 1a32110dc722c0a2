"""The API's description for integrators, and `GET /docs`, which shows it.

The page is Swagger UI without a CDN, under a Content-Security-Policy without exceptions.
"""

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter, FastAPI
from fastapi.responses import FileResponse
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from app.base.errors import (
    BodyTooLarge,
    InsufficientScope,
    InternalError,
    InvalidRequest,
    InvalidToken,
    IssuerUnavailable,
    Problem,
    RateLimited,
    RequestTimeout,
    Unauthenticated,
    UnsupportedMediaType,
    UserDisabled,
)
from app.identity.service_keys import KEY_SCOPES
from app.web.callers import NO_PARAMETERS, PASSWORD_SCHEME, SERVICE_KEY_SCHEME, service_key
from app.web.problems import add_problem, header_ref
from app.web.schema import always

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


def complete_description(app: FastAPI, *, public_url: str) -> None:
    """Let the OpenAPI document of *app* say what holds for its operations in general.

    Routes describe what is their own. What the door, the callers' check and the framework answer
    in front of them follows from whether an operation has a body and asks for a caller.

    Args:
        app: The application with its problem handlers installed.
        public_url: Without a slash at the end.
    """
    describe = app.openapi

    @cache
    def openapi() -> dict[str, Any]:
        document = describe()
        for path, operations in document["paths"].items():
            for operation in operations.values():
                _complete(operation, path)
        components = document["components"]
        for name in ("HTTPValidationError", "ValidationError"):
            components["schemas"].pop(name, None)
        for schema in components["schemas"].values():
            _untitle(schema.get("properties", {}).values())
        components["securitySchemes"][SERVICE_KEY_SCHEME] = service_key
        # Relative to the server it would lose the last part of a path that we are served below.
        flows = components["securitySchemes"][PASSWORD_SCHEME]["flows"]
        flows["password"]["tokenUrl"] = f"{urlsplit(public_url).path}/auth/token"
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend it


def _complete(operation: dict[str, Any], path: str) -> None:
    # FastAPI adds a 422 in its own words to whatever has parameters; our handlers replace it.
    responses: dict[int | str, dict[str, Any]] = {
        int(status): response
        for status, response in operation["responses"].items()
        if "HTTPValidationError" not in str(response)
    }
    problems: list[Problem | type[Problem]] = [InternalError]
    if "requestBody" in operation:
        problems += [RequestTimeout, BodyTooLarge, UnsupportedMediaType]
    if "security" in operation:
        [scopes] = operation["security"][0].values()  # the other way to sign in has the same
        problems += [Unauthenticated, InvalidToken, UserDisabled, RateLimited, IssuerUnavailable]
        problems += [InsufficientScope(scope) for scope in scopes] or [InsufficientScope]
        problems += [InvalidRequest(errors=[NO_PARAMETERS])]
        for_keys = [KEY_SCOPES[scope] for scope in scopes if scope in KEY_SCOPES]
        if for_keys:
            operation["security"].append({SERVICE_KEY_SCHEME: for_keys})
        good = responses[min(responses, key=int)]
        good.setdefault("headers", {})["Cache-Control"] = always("no-store")
    for problem in problems:
        add_problem(responses, problem, path=path)
    for response in responses.values():
        response.setdefault("headers", {})["X-Request-ID"] = header_ref("X-Request-ID")
    operation["responses"] = {
        str(status): responses[status] for status in sorted(responses, key=int)
    }
    bodies = operation.get("requestBody", {}).get("content", {}).values()
    _untitle(described["schema"] for described in (*operation.get("parameters", ()), *bodies))


def _untitle(schemas: Iterable[dict[str, Any]]) -> None:
    """Take out the titles that pydantic makes of names: `Expiresat` says less than `expiresAt`."""
    for schema in schemas:
        schema.pop("title", None)
