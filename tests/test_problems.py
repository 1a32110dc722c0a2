from typing import Annotated, Any

import pytest
from fastapi import FastAPI, Form
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import validate
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.testclient import TestClient

from app.base.errors import (
    Conflict,
    FieldError,
    InsufficientScope,
    InvalidRequest,
    InvalidToken,
    NotFound,
    Overloaded,
    Problem,
    ProfileNotFound,
    RateLimited,
    Unauthenticated,
    UpstreamTimeout,
    every_problem,
)
from app.web.problems import example_of, install_problem_handlers, problem_responses

PUBLIC_URL = "https://tokens.example.com"


def app_that_raises(error: Exception, path: str = "/") -> FastAPI:
    app = FastAPI()
    install_problem_handlers(app, public_url=PUBLIC_URL)

    @app.post(path)
    async def refuse() -> None:
        raise error

    return app


def refusal_of(error: Exception, path: str = "/") -> Any:
    client = TestClient(app_that_raises(error, path), raise_server_exceptions=False)
    return client.post(path)


def test_a_refusal_is_a_problem_document_with_everything_the_client_needs() -> None:
    answer = refusal_of(Conflict("The key is revoked already."))

    assert answer.status_code == 409
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    document = answer.json()
    assert document.pop("requestId").startswith("req_")
    assert document == {
        "type": "https://tokens.example.com/errors/conflict",
        "title": "This conflicts with what is there",
        "status": 409,
        "detail": "The key is revoked already.",
        "code": "conflict",
    }


@pytest.mark.parametrize("kind", list(every_problem()), ids=lambda kind: kind.code)
def test_every_kind_of_problem_is_answered_with_its_own_status_and_code(
    kind: type[Problem],
) -> None:
    answer = refusal_of(example_of(kind))

    assert answer.status_code == kind.status
    assert answer.json()["code"] == kind.code
    assert answer.json()["type"] == f"{PUBLIC_URL}/errors/{kind.code}"


def test_the_fields_at_fault_are_listed() -> None:
    answer = refusal_of(InvalidRequest(errors=[FieldError("voice", "is required")]))

    assert answer.json()["errors"] == [{"field": "voice", "reason": "is required"}]


@pytest.mark.parametrize(
    ("problem", "challenge"),
    [
        (Unauthenticated(), 'Bearer realm="realtime-tokens"'),
        (InvalidToken(), 'Bearer realm="realtime-tokens", error="invalid_token"'),
        (
            InsufficientScope("audit:read"),
            'Bearer realm="realtime-tokens", error="insufficient_scope", scope="audit:read"',
        ),
        (NotFound(), None),
    ],
)
def test_a_refused_credential_is_challenged_as_rfc_6750_says(
    problem: Problem, challenge: str | None
) -> None:
    assert refusal_of(problem).headers.get("www-authenticate") == challenge


def test_retry_after_is_sent_where_waiting_helps_and_only_there() -> None:
    assert refusal_of(RateLimited(retry_after_seconds=12)).headers["retry-after"] == "12"
    assert "retry-after" not in refusal_of(UpstreamTimeout()).headers


def test_an_unknown_path_and_a_wrong_method_are_problems_too() -> None:
    client = TestClient(app_that_raises(Conflict()))

    unknown, wrong = client.get("/nowhere"), client.get("/")

    assert (unknown.status_code, unknown.json()["code"]) == (404, "not_found")
    assert (wrong.status_code, wrong.json()["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, "invalid_request"), (413, "body_too_large"), (415, "unsupported_media_type")],
)
def test_a_refusal_of_the_framework_keeps_none_of_its_text(status: int, code: str) -> None:
    answer = refusal_of(HTTPException(status, detail="hunter2"))

    assert answer.json()["code"] == code
    assert "hunter2" not in answer.text


@pytest.mark.parametrize("bug", [RuntimeError("hunter2"), HTTPException(500, detail="hunter2")])
def test_a_bug_is_a_500_that_says_nothing(bug: Exception) -> None:
    answer = refusal_of(bug)

    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "internal_error"
    assert "hunter2" not in answer.text


@pytest.mark.parametrize("path", ["/auth/token", "/auth/revoke"])
@pytest.mark.parametrize(
    ("error", "status", "name"),
    [
        (InvalidRequest(), 400, "invalid_request"),
        (RateLimited(retry_after_seconds=5), 429, "rate_limited"),
        (Overloaded(retry_after_seconds=5), 503, "temporarily_unavailable"),
        (RuntimeError("hunter2"), 500, "server_error"),
    ],
)
def test_the_oauth_endpoints_refuse_as_rfc_6749_says(
    path: str, error: Exception, status: int, name: str
) -> None:
    answer = refusal_of(error, path)

    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json().keys() == {"error", "error_description"}
    assert answer.json()["error"] == name
    assert "hunter2" not in answer.text


def test_a_form_that_cannot_be_read_is_refused() -> None:
    app = FastAPI()
    install_problem_handlers(app, public_url=PUBLIC_URL)

    @app.post("/form")
    async def read(name: Annotated[str, Form()]) -> str:
        return name

    answer = TestClient(app).post(
        "/form", content=b"x" * 9, headers={"Content-Type": "multipart/form-data"}
    )

    assert answer.status_code == 422
    assert answer.json()["errors"] == [{"field": "body", "reason": "cannot be read"}]


class Answer(BaseModel):
    name: str


def test_the_openapi_document_is_valid_and_each_example_matches_its_schema() -> None:
    app = FastAPI()
    install_problem_handlers(app, public_url=PUBLIC_URL)

    @app.get("/x", responses=problem_responses(*every_problem()))
    async def get_x() -> Answer:
        return Answer(name="x")

    document = app.openapi()

    validate(document)
    found = set()
    for status, response in document["paths"]["/x"]["get"]["responses"].items():
        if status == "200":
            continue
        assert response["content"].keys() == {"application/problem+json"}
        media = response["content"]["application/problem+json"]
        schema = {**media["schema"], "components": document["components"]}
        for code, example in media["examples"].items():
            OAS31Validator(schema).validate(example["value"])
            assert example["value"]["code"] == code
            assert str(example["value"]["status"]) == status
            found.add(code)
    assert found == {kind.code for kind in every_problem()}


def test_kinds_with_one_status_share_it() -> None:
    responses = problem_responses(ProfileNotFound, NotFound, Conflict)

    assert list(responses) == [404, 409]
    examples = responses[404]["content"]["application/problem+json"]["examples"]
    assert list(examples) == ["not_found", "profile_not_found"]


def test_the_schema_names_what_clients_may_rely_on() -> None:
    schema = app_that_raises(Conflict()).openapi()["components"]["schemas"]["ProblemDocument"]

    assert set(schema["required"]) == {"type", "title", "status", "detail", "code", "requestId"}
