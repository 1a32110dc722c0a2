"""The OpenAPI document by itself: valid, complete, with examples that fit."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from fastapi.routing import APIRoute, iter_route_contexts
from openai.types.realtime import RealtimeSessionCreateRequestParam
from openapi_spec_validator import OpenAPIV31SpecValidator
from pydantic import TypeAdapter

from app.identity.service_keys import KEY_SCOPES
from app.main import create_app
from app.minting.session_shape import faults
from app.settings import Settings
from app.web.admin.problem_page import is_page
from app.web.callers import PUBLIC
from tests.openapi_document import OPERATIONS, Operation, check, example_of, openapi

every_operation = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=lambda o: o.id)


# The document ---------------------------------------------------------------------------------


def test_the_document_is_valid_openapi_3_1() -> None:
    OpenAPIV31SpecValidator(openapi()).validate()

    assert openapi()["openapi"].startswith("3.1.")


@every_operation
def test_every_operation_introduces_itself(operation: Operation) -> None:
    tags = {tag["name"]: tag["description"] for tag in openapi()["tags"]}

    assert re.fullmatch(r"[a-z]+([A-Z][a-z]*)*", operation.id)
    assert operation.described["summary"]
    assert operation.described["description"]
    assert operation.described["tags"]
    assert all(tags[tag] for tag in operation.described["tags"])


def test_no_two_operations_share_a_name_and_no_tag_is_empty() -> None:
    told = [told for methods in openapi()["paths"].values() for told in methods.values()]

    assert len({operation["operationId"] for operation in told}) == len(told)
    assert {tag for operation in told for tag in operation["tags"]} == {
        tag["name"] for tag in openapi()["tags"]
    }


def test_every_route_but_the_pages_is_described() -> None:
    app = create_app(Settings(_env_file=None))
    paths = {
        context.path
        for context in iter_route_contexts(app.router.routes)
        if isinstance(context.original_route, APIRoute)
    }

    undescribed = {path for path in paths - set(openapi()["paths"]) if not is_page(str(path))}
    assert undescribed == {"/", "/docs", "/errors", "/errors/{code}", "/metrics", "/reset"}


@every_operation
def test_security_agrees_with_the_list_of_public_routes(operation: Operation) -> None:
    alternatives = operation.described.get("security", [])
    schemes = {name: scopes for alternative in alternatives for name, scopes in alternative.items()}

    for_key = schemes.pop("serviceKey", [])
    if operation.path in PUBLIC:
        assert schemes == {}
    else:
        known = openapi()["components"]["securitySchemes"].keys()
        assert schemes.keys() == known - {"serviceKey"}
        assert all(scopes == operation.scopes for scopes in schemes.values())
        assert for_key == [KEY_SCOPES[name] for name in operation.scopes if name in KEY_SCOPES]


def test_the_body_of_a_mint_may_be_left_out() -> None:
    assert "required" not in OPERATIONS["mintToken"].described["requestBody"]


def test_our_json_is_camel_case() -> None:
    schemas = openapi()["components"]["schemas"]
    oauth = {"Grant", "Revocation", "TokenGrant", "OAuthError"}  # RFC 6749 names their members
    names = {
        name for schema in schemas.keys() - oauth for name in schemas[schema].get("properties", {})
    } | {
        parameter["name"]
        for operation in OPERATIONS.values()
        for parameter in operation.described.get("parameters", ())
    }

    assert "ttlSeconds" in names
    assert {
        name for name in names if not re.fullmatch(r"[a-z][a-z0-9]*([A-Z][a-z]*)*", name)
    } == set()


def test_nothing_of_what_fastapi_says_by_itself_is_left() -> None:
    text = json.dumps(openapi())

    assert "ValidationError" not in text
    assert "Successful Response" not in text
    assert '"title": "Ttlseconds"' not in text
    assert '"title": "Actor"' not in text


@pytest.mark.parametrize(
    ("public_url", "token_url"),
    [
        ("http://127.0.0.1:8000", "/auth/token"),
        ("https://example.com/tokens", "/tokens/auth/token"),
    ],
)
def test_signing_in_from_the_docs_page_works_below_a_path_too(
    public_url: str, token_url: str
) -> None:
    document = openapi(public_url)

    flows = document["components"]["securitySchemes"]["accessToken"]["flows"]
    assert flows["password"]["tokenUrl"] == token_url
    assert document["servers"] == [{"url": public_url}]


# Its examples ---------------------------------------------------------------------------------


def nodes(node: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Give every object of the document that is not part of an example, and where it stands."""
    if isinstance(node, dict):
        yield place, node
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for name, item in items:
        if isinstance(item, dict | list) and name not in {"example", "examples"}:
            yield from nodes(item, f"{place}/{name}")


def examples() -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Give every example of the document: where it stands, its value, the schema it has to fit."""
    for place, node in nodes(openapi()):
        if "example" in node:
            yield place, node["example"], node["schema"]
        match node.get("examples", []):
            case dict(named):  # of a media type or a parameter
                for name, example in named.items():
                    yield f"{place}#{name}", example["value"], node["schema"]
            case listed:  # of a schema
                for example in listed:
                    yield place, example, node


@pytest.mark.parametrize(
    ("example", "schema"),
    [pytest.param(value, schema, id=place) for place, value, schema in examples()],
)
def test_every_example_fits_its_schema(example: Any, schema: Mapping[str, Any]) -> None:
    check(example, schema)


@every_operation
def test_everything_that_is_sent_or_answered_has_an_example(operation: Operation) -> None:
    body = operation.described.get("requestBody", {"content": {}})
    for told in (body, *operation.described["responses"].values()):
        for media_type, media in told.get("content", {}).items():
            assert "example" in media or "examples" in media or media_type.endswith("urlencoded")


def test_the_example_of_a_session_is_one_that_openai_takes() -> None:
    session = example_of("mintToken")["sessionConfig"]

    assert faults(session) == []
    official: TypeAdapter[Any] = TypeAdapter(RealtimeSessionCreateRequestParam)
    assert official.validate_python(session) == session
