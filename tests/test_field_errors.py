from typing import Annotated, Any, Literal

import pytest
from fastapi import APIRouter, FastAPI, Query
from pydantic import (
    UUID4,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel
from starlette.testclient import TestClient

from app.web.problems import install_problem_handlers
from app.web.schema import NO_CONTROL_CHARACTERS


class Strict(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="forbid")


class Inner(Strict):
    deep_name: str


class Wish(Strict):
    ttl_seconds: int | None = Field(default=None, ge=10, le=600)
    voice: Literal["marin", "cedar"] | None = None
    language: str | None = Field(default=None, min_length=2, max_length=5)
    variables: dict[str, str] = Field(default_factory=dict, max_length=2)
    inner: list[Inner] = []
    word: str = Field(default="", pattern=NO_CONTROL_CHARACTERS)
    number: str = Field(default="1", pattern="^[0-9]+$")
    loud: bool = False
    speed: float = 1
    since: AwareDatetime | None = None
    ticket: UUID4 | None = None
    even: int = 0
    risky: int = 0

    @field_validator("even")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("must be an even number")
        return value

    @field_validator("risky", mode="before")
    @classmethod
    def _risky(cls, value: Any) -> int:
        return int(value)  # Python's message quotes the value

    @model_validator(mode="after")
    def _agree(self) -> "Wish":
        if self.loud and self.speed > 1:
            raise ValueError("loud and fast do not go together")
        return self


class Page(Strict):
    page_size: int = Field(default=10, le=100)


router = APIRouter()


@router.post("/wish")
async def wish(wish: Wish | None = None) -> dict[str, bool]:
    return {"given": wish is not None}


@router.get("/page")
async def page(page: Annotated[Page, Query()]) -> dict[str, int]:
    return {"size": page.page_size}


@pytest.fixture(scope="module")
def client() -> TestClient:
    app = FastAPI()
    install_problem_handlers(app, public_url="https://tokens.example.com")
    app.include_router(router)
    return TestClient(app)


def faults(client: TestClient, body: str | bytes) -> dict[str, str]:
    content = body.encode() if isinstance(body, str) else body
    answer = client.post("/wish", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert answer.json()["code"] == "invalid_request"
    return {error["field"]: error["reason"] for error in answer.json()["errors"]}


@pytest.mark.parametrize(
    ("body", "field", "reason"),
    [
        ('{"ttlSeconds": 9}', "ttlSeconds", "must be greater than or equal to 10"),
        ('{"ttlSeconds": 601}', "ttlSeconds", "must be less than or equal to 600"),
        ('{"ttlSeconds": "soon"}', "ttlSeconds", "must be a whole number"),
        ('{"ttlSeconds": 10.5}', "ttlSeconds", "must be a whole number"),
        ('{"voice": "marvin"}', "voice", "must be 'marin' or 'cedar'"),
        ('{"language": 7}', "language", "must be a string"),
        ('{"language": "x"}', "language", "must have at least 2 characters"),
        ('{"language": "klingon"}', "language", "must have at most 5 characters"),
        ('{"variables": 1}', "variables", "must be an object"),
        ('{"variables": {"a": 1}}', "variables.a", "must be a string"),
        ('{"variables": {"a": "", "b": "", "c": ""}}', "variables", "must have at most 2 items"),
        ('{"inner": [{}]}', "inner.0.deepName", "is required"),
        ('{"inner": [{"deepName": "x", "y": 1}]}', "inner.0.y", "is not a known field"),
        ('{"inner": {}}', "inner", "must be an array"),
        ('{"word": "a\\tb"}', "word", "must have no control characters"),
        ('{"number": "one"}', "number", "must match the pattern ^[0-9]+$"),
        ('{"loud": "perhaps"}', "loud", "must be true or false"),
        ('{"ttlSeconds": NaN}', "ttlSeconds", "must be a finite number"),
        ('{"since": "now"}', "since", "must be a time such as 2026-11-20T09:30:00Z"),
        ('{"since": "2026-11-20T09:30:00"}', "since", "must say its time zone"),
        ('{"ticket": "tick"}', "ticket", "is not valid"),
        ('{"even": 1}', "even", "must be an even number"),
        ('{"risky": "hunter2"}', "risky", "is not valid"),
        ('{"loud": true, "speed": 2.5}', "body", "loud and fast do not go together"),
        ("[]", "body", "must be an object"),
        ("{", "body", "is not valid JSON"),
        (b"\xff", "body", "cannot be read"),
        ("[" * 30_000, "body", "cannot be read"),
        ('{"ttlSeconds": ' + "1" * 5_000 + "}", "body", "cannot be read"),
    ],
)
def test_each_fault_is_told_in_words_a_client_can_act_on(
    client: TestClient, body: str | bytes, field: str, reason: str
) -> None:
    found = faults(client, body)

    assert found.keys() == {field}
    assert found[field].startswith(reason)


def test_an_unknown_field_is_named_together_with_the_known_ones(client: TestClient) -> None:
    assert faults(client, '{"voise": "marin"}') == {
        "voise": (
            "is not a known field; known are ttlSeconds, voice, language, variables, inner, "
            "word, number, loud, speed, since, ticket, even, risky"
        )
    }


def test_a_name_that_the_caller_made_up_is_repeated_only_when_it_is_plain(
    client: TestClient,
) -> None:
    assert faults(client, '{"<script>": 1}') == {"body": "has a field that is not known"}
    assert faults(client, '{"variables": {"<script>": 1}}') == {"variables": "must be a string"}
    assert faults(client, '{"inner": [{"deepName": "x", "a b": 1}]}') == {
        "inner.0": "has a field that is not known"
    }


def test_no_fault_repeats_what_was_submitted(client: TestClient) -> None:
    body = dict.fromkeys(("ttlSeconds", "voice", "ticket", "risky", "since", "inner"), "hunter2")
    answer = client.post("/wish", json={**body, "language": "hunter2", "speed": "hunter2"})

    assert len(answer.json()["errors"]) == 8
    assert "hunter2" not in answer.text


def test_a_body_with_thousands_of_faults_gets_a_short_answer(client: TestClient) -> None:
    answer = client.post("/wish", json={f"x{number}": 1 for number in range(5_000)})

    assert len(answer.json()["errors"]) == 20


def test_a_query_parameter_is_named_as_it_was_sent(client: TestClient) -> None:
    errors = client.get("/page?pageSize=1000&pageNumber=2").json()["errors"]

    assert errors == [
        {"field": "pageSize", "reason": "must be less than or equal to 100"},
        {"field": "pageNumber", "reason": "is not a known field"},
    ]


def test_a_body_may_be_left_out_where_it_is_optional(client: TestClient) -> None:
    assert client.post("/wish").json() == {"given": False}
