"""Every refusal as the client sees it: RFC 9457 problem documents, and nowhere else.

The token and the revocation endpoint are an exception: there RFC 6749 section 5.2 says what a
refusal looks like, so that any OAuth client understands it. The pages under ``/admin`` are another:
people read them.
"""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from app.base.errors import (
    AuditUnavailable,
    BodyTooLarge,
    FieldError,
    InsufficientScope,
    InternalError,
    InvalidRequest,
    InvalidToken,
    IssuerUnavailable,
    MethodNotAllowed,
    NotFound,
    Overloaded,
    OverrideNotAllowed,
    Problem,
    ProfileNotFound,
    QuotaExceeded,
    RateLimited,
    Unauthenticated,
    UnsupportedMediaType,
    UpstreamRateLimited,
)
from app.base.ids import new_id
from app.web.admin.problem_page import is_page, problem_page
from app.web.field_errors import field_errors, field_names

MEDIA_TYPE = "application/problem+json"

OAUTH_PATHS = frozenset({"/auth/token", "/auth/revoke"})
"""Paths that refuse as RFC 6749 section 5.2 says."""

FORM_PATHS = OAUTH_PATHS | {"/reset"}
"""Paths that read forms, and no JSON."""

EXAMPLE_REQUEST_ID = "req_6MZ1XKQ0T8WJ4V9E2RBN7HCY5D"

HEADERS = {
    "X-Request-ID": {
        "description": "Name of the request in the server's logs.",
        "schema": {"type": "string"},
        "example": EXAMPLE_REQUEST_ID,
    },
    "Retry-After": {
        "description": "Seconds until asking again makes sense; only where waiting helps.",
        "schema": {"type": "integer", "minimum": 1},
        "example": 12,
    },
    "WWW-Authenticate": {
        "description": "The challenge of RFC 6750 section 3, where another token would help.",
        "schema": {"type": "string"},
        "example": 'Bearer realm="realtime-tokens", error="invalid_token"',
    },
}
"""Headers of answers, as the OpenAPI document describes them once for all operations."""

_REALM = 'Bearer realm="realtime-tokens"'
_EXAMPLE_PUBLIC_URL = "https://tokens.example.com"


class ProblemDocument(BaseModel):
    """Why a request was refused, and what to do (RFC 9457)."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        serialize_by_alias=True,
        use_attribute_docstrings=True,
    )

    type_: str = Field(alias="type")
    """Address of the page that explains the code."""

    title: str
    """The kind of problem in a few words; the same for each with this code."""

    status: int
    """The HTTP status once more."""

    detail: str
    """What happened, and what to do."""

    code: str
    """Stable name of the kind of problem. Programs decide by it."""

    request_id: str
    """Name of this request in the server's logs; also in the `X-Request-ID` header."""

    errors: tuple[FieldError, ...] = Field(default=(), exclude_if=lambda errors: not errors)
    """The fields at fault; only with 422."""

    @classmethod
    def of(cls, problem: Problem, *, public_url: str, request_id: str) -> "ProblemDocument":
        """Describe *problem*."""
        return cls(
            type_=f"{public_url}/errors/{problem.code}",
            title=problem.title,
            status=problem.status,
            detail=problem.detail,
            code=problem.code,
            request_id=request_id,
            errors=problem.errors,
        )


class OAuthError(BaseModel):
    """Why the token endpoint refused (RFC 6749 section 5.2)."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    error: Literal[
        "invalid_request",
        "invalid_grant",
        "invalid_scope",
        "unsupported_grant_type",
        "rate_limited",
        "temporarily_unavailable",
        "server_error",
    ]
    """Stable name of the kind of refusal. Programs decide by it."""

    error_description: str
    """What happened, and what to do."""


_FRAMEWORK_REFUSALS: Mapping[int, type[Problem]] = {
    kind.status: kind for kind in (NotFound, MethodNotAllowed, BodyTooLarge, UnsupportedMediaType)
}

# Kinds that need more than their title and advice.
_EXAMPLES: Mapping[type[Problem], Problem] = {
    AuditUnavailable: AuditUnavailable(retry_after_seconds=2),
    InsufficientScope: InsufficientScope("audit:read"),
    InvalidRequest: InvalidRequest(
        errors=[
            FieldError("ttlSeconds", "must be a whole number"),
            FieldError("voise", "is not a known field; known are profile, language, voice"),
        ]
    ),
    IssuerUnavailable: IssuerUnavailable(retry_after_seconds=30),
    Overloaded: Overloaded(retry_after_seconds=1),
    OverrideNotAllowed: OverrideNotAllowed(
        "The profile support does not let the caller choose voice."
    ),
    ProfileNotFound: ProfileNotFound(
        "There is no such profile for this caller. There are: default, support."
    ),
    QuotaExceeded: QuotaExceeded(
        "The daily quota is used up. Ask again in 7200 seconds.", retry_after_seconds=7200
    ),
    RateLimited: RateLimited("Too many requests. Ask again in 12 seconds.", retry_after_seconds=12),
    UpstreamRateLimited: UpstreamRateLimited(retry_after_seconds=10),
}


def install_problem_handlers(app: FastAPI, *, public_url: str) -> None:
    """Make *app* answer every refusal, ours and the framework's, as this module says.

    Args:
        app: The application; its OpenAPI document gains what ``problem_responses`` refers to.
        public_url: Without a slash at the end; problem types are addresses below it.
    """

    async def on_problem(request: Request, error: Exception) -> Response:
        return problem_response(_problem_of(error, request), request.scope, public_url=public_url)

    async def on_http_exception(request: Request, error: Exception) -> Response:
        response = await on_problem(request, error)
        if isinstance(error, HTTPException) and error.headers and "Allow" in error.headers:
            # RFC 9110 section 15.5.6: all methods, where the framework names the first route's.
            response.headers["Allow"] = ", ".join(sorted(_methods_at(request)))
        return response

    app.add_exception_handler(Problem, on_problem)
    app.add_exception_handler(RequestValidationError, on_problem)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(Exception, on_problem)
    _publish_components(app)


def problem_response(problem: Problem, scope: Scope, *, public_url: str) -> Response:
    """Return the answer that refuses the request of *scope* because of *problem*."""
    if is_page(scope["path"]):
        return problem_page(problem, scope, public_url=public_url)
    headers = {"Cache-Control": "no-store"}
    if problem.retry_after_seconds is not None:
        headers["Retry-After"] = str(problem.retry_after_seconds)
    if challenge := _challenge(problem):
        headers["WWW-Authenticate"] = challenge
    if scope["path"] in OAUTH_PATHS:
        # RFC 6749 section 5.2 knows no 422.
        status = HTTPStatus.BAD_REQUEST if isinstance(problem, InvalidRequest) else problem.status
        return JSONResponse(_oauth_error(problem).model_dump(), status, headers)
    # The door names each request; an application tested without it has nobody who did.
    request_id = scope.get("state", {}).get("request_id") or new_id("req")
    document = ProblemDocument.of(problem, public_url=public_url, request_id=request_id)
    return JSONResponse(document.model_dump(), problem.status, headers, MEDIA_TYPE)


def example_of(kind: type[Problem]) -> Problem:
    """Return a problem of this *kind* as it may occur."""
    return _EXAMPLES.get(kind) or kind()


def problem_responses(
    *problems: Problem | type[Problem], path: str = "/"
) -> dict[int | str, dict[str, Any]]:
    """Return what a route passes as ``responses``: its refusals, each with an example.

    Args:
        problems: Kinds, or one of a kind where its usual example does not fit the route.
        path: Of the route; decides whether it refuses with problems or as RFC 6749 says.
    """
    responses: dict[int | str, dict[str, Any]] = {}
    for problem in problems:
        add_problem(responses, problem, path=path)
    return {status: responses[status] for status in sorted(responses, key=int)}


def add_problem(
    responses: dict[int | str, dict[str, Any]], problem: Problem | type[Problem], *, path: str
) -> None:
    """Put *problem* among the described *responses* of a route, unless its code is there.

    What is described is the very answer that clients get, so that it cannot drift from it.
    """
    example = problem if isinstance(problem, Problem) else example_of(problem)
    scope = {"path": path, "state": {"request_id": EXAMPLE_REQUEST_ID}}
    answer = problem_response(example, scope, public_url=_EXAMPLE_PUBLIC_URL)
    model = OAuthError if path in OAUTH_PATHS else ProblemDocument
    response = responses.setdefault(
        answer.status_code,
        {"description": HTTPStatus(answer.status_code).phrase, "content": {}},
    )
    headers = {name: header_ref(name) for name in HEADERS if name in answer.headers}
    response.setdefault("headers", {}).update(headers)
    media = response["content"].setdefault(
        answer.headers["Content-Type"],
        {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}, "examples": {}},
    )
    shown = {"summary": example.title, "value": json.loads(bytes(answer.body))}
    media["examples"] = dict(sorted(({example.code: shown} | media["examples"]).items()))


def header_ref(name: str) -> dict[str, str]:
    """Return a reference to the description of one of ``HEADERS``."""
    return {"$ref": f"#/components/headers/{name}"}


def _publish_components(app: FastAPI) -> None:
    """Put what ``problem_responses`` refers to into the OpenAPI document.

    FastAPI would do so for a ``model``, but then names application/json as its media type.
    """
    _, schemas = models_json_schema(
        [(ProblemDocument, "serialization"), (OAuthError, "serialization")],
        ref_template="#/components/schemas/{model}",
    )
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        document = describe()
        components = document.setdefault("components", {})
        components.setdefault("schemas", {}).update(schemas["$defs"])
        components["headers"] = HEADERS
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend it


def _challenge(problem: Problem) -> str | None:
    """Return the ``WWW-Authenticate`` of a 401 or 403, RFC 6750 section 3."""
    match problem:
        case Unauthenticated():
            return _REALM  # no error code: the client did not try to authenticate
        case InvalidToken():
            return f'{_REALM}, error="invalid_token"'
        case InsufficientScope(scope=None):
            return f'{_REALM}, error="insufficient_scope"'
        case InsufficientScope(scope=scope):
            return f'{_REALM}, error="insufficient_scope", scope="{scope}"'
        case _:
            return None


def _methods_at(request: Request) -> set[str]:
    """Return the methods of all routes at the path of *request*."""
    path = request.scope["path"]
    methods: set[str] = set()
    for route in iter_route_contexts(request.app.router.routes):
        if route.methods and route.path_regex.match(path):
            methods |= route.methods
    return methods | {"HEAD"} if "GET" in methods else methods


def _oauth_error(problem: Problem) -> OAuthError:
    """Return *problem* as RFC 6749 section 5.2 tells it."""
    match problem.status:
        case HTTPStatus.TOO_MANY_REQUESTS:
            return OAuthError(error="rate_limited", error_description=problem.detail)
        case HTTPStatus.SERVICE_UNAVAILABLE:
            return OAuthError(error="temporarily_unavailable", error_description=problem.detail)
        case status if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return OAuthError(error="server_error", error_description=problem.detail)
        case _:
            return OAuthError(error="invalid_request", error_description=problem.detail)


def _problem_of(error: Exception, request: Request) -> Problem:
    """Return the problem that *error*, ours or the framework's, is for the caller."""
    match error:
        case Problem():
            return error
        case RequestValidationError():
            body = getattr(request.scope.get("route"), "body_field", None)
            known = field_names(body.field_info.annotation) if body else ()
            return InvalidRequest(errors=field_errors(error.errors(), known=known))
        case HTTPException(status_code=status) if status in _FRAMEWORK_REFUSALS:
            return _FRAMEWORK_REFUSALS[status]()
        case HTTPException(status_code=status) if status < HTTPStatus.INTERNAL_SERVER_ERROR:
            # FastAPI's 400: not UTF-8, nested too deep, a number of 5,000 digits, a broken form.
            return InvalidRequest(errors=[FieldError("body", "cannot be read")])
        case _:
            return InternalError()
