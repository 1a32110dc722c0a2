"""What the sandbox calls a function with: it must fit the function's own description."""

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker

from app.sandbox.arguments import MOST_CHARACTERS, arguments_for
from tests.test_sandbox_hostile_input import JSON_VALUES

pytestmark = pytest.mark.slow

CITY = {"type": "string", "enum": ["Berlin", "Paris"]}


@pytest.mark.parametrize(
    ("described", "made"),
    [
        ({"type": "string"}, "sandbox"),
        ({"type": "string", "minLength": 9, "maxLength": 9}, "sandbox.."),
        ({"type": "string", "maxLength": 2}, "sa"),
        ({"type": "string", "format": "date"}, "2026-11-20"),
        ({"type": "string", "pattern": "^[A-Z]{2}$", "examples": ["DE"]}, "DE"),
        (CITY, "Berlin"),
        ({"const": 7}, 7),
        ({"type": ["null", "boolean"]}, False),
        ({"type": "null"}, None),
        ({"type": "integer"}, 0),
        ({"type": "integer", "minimum": 3}, 3),
        ({"type": "integer", "minimum": 2.5}, 3),
        ({"type": "integer", "exclusiveMinimum": 3, "multipleOf": 5}, 5),
        ({"type": "integer", "maximum": -3}, -3),
        ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, 0.5),
        ({"type": "array", "items": {"type": "integer"}}, []),
        ({"type": "array", "items": CITY, "minItems": 2}, ["Berlin", "Berlin"]),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, 0),
        ({"allOf": [{"type": "integer"}, {"minimum": 5}]}, 5),
        ({"$ref": "#/$defs/city"}, "Berlin"),
        (
            {
                "type": "object",
                "properties": {"city": CITY, "note": {"type": "string"}},
                "required": ["city"],
            },
            {"city": "Berlin"},
        ),
    ],
)
def test_an_argument_fits_its_description(described: dict[str, Any], made: object) -> None:
    parameters = {
        "type": "object",
        "properties": {"it": described},
        "additionalProperties": False,
        "$defs": {"city": CITY},
    }

    arguments = arguments_for(parameters)

    assert arguments == {"it": made}
    Draft202012Validator(parameters, format_checker=FormatChecker()).validate(arguments)


NUMBERS = st.integers(-50, 50)
NUMBER_KINDS = st.sampled_from(["integer", "number"])
PLAIN = st.one_of(
    st.just({"type": "boolean"}),
    st.builds(lambda kind, least: {"type": kind, "minimum": least}, NUMBER_KINDS, NUMBERS),
    st.builds(
        lambda kind, least, room: {
            "type": kind,
            "exclusiveMinimum": least,
            "exclusiveMaximum": least + room,
        },
        NUMBER_KINDS,
        NUMBERS,
        st.integers(2, 9),
    ),
    st.builds(
        lambda least, room: {"type": "string", "minLength": least, "maxLength": least + room},
        st.integers(0, 12),
        st.integers(0, 12),
    ),
    st.builds(lambda values: {"enum": values}, st.lists(JSON_VALUES, min_size=1, max_size=3)),
)
SCHEMAS = st.recursive(
    PLAIN,
    lambda inner: st.one_of(
        st.builds(
            lambda items, least: {"type": "array", "items": items, "minItems": least},
            inner,
            st.integers(0, 3),
        ),
        st.builds(
            lambda properties, required: {
                "type": "object",
                "properties": properties,
                "required": [name for name in properties if name in required],
            },
            st.dictionaries(st.sampled_from("abc"), inner),
            st.sets(st.sampled_from("abc")),
        ),
        st.builds(lambda first, other: {"anyOf": [first, other]}, inner, inner),
    ),
    max_leaves=6,
)


@settings(max_examples=200)
@given(properties=st.dictionaries(st.sampled_from(["x", "y"]), SCHEMAS))
def test_arguments_fit_whatever_is_put_together(properties: dict[str, Any]) -> None:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}

    Draft202012Validator(parameters).validate(arguments_for(parameters))


KEYWORDS = st.sampled_from(
    ["type", "properties", "required", "items", "minItems", "minimum", "enum", "allOf", "$ref"]
)


@settings(max_examples=200)
@given(
    parameters=JSON_VALUES
    | st.recursive(
        JSON_VALUES | st.sampled_from(["object", "array", "integer", "#"]),
        lambda inner: st.dictionaries(KEYWORDS, inner | st.lists(inner, max_size=2)),
    )
)
def test_no_description_makes_it_stumble(parameters: object) -> None:
    assert isinstance(arguments_for(parameters), dict)


ENDLESS = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}
WIDE = {"type": "array", "minItems": 10**12, "items": {"enum": ["x" * 1_000]}}
DOUBLING = {
    "$defs": {
        str(n): {
            "type": "object",
            "required": ["a", "b"],
            "properties": {name: {"$ref": f"#/$defs/{n + 1}"} for name in "ab"},
        }
        for n in range(100)
    },
    "$ref": "#/$defs/0",
}


@pytest.mark.parametrize(
    "parameters",
    [
        ENDLESS,
        {"$ref": "#"},
        {"properties": {"all": WIDE}},
        {"properties": {"all": {"type": "array", "minItems": 10**9, "items": WIDE}}},
        {"properties": {"long": {"type": "string", "minLength": 10**12}}},
        DOUBLING,
    ],
)
def test_no_description_makes_it_write_for_ever(parameters: dict[str, Any]) -> None:
    began = time.process_time()

    arguments = arguments_for(parameters)

    assert len(json.dumps(arguments)) < 2 * MOST_CHARACTERS
    assert time.process_time() - began < 1
