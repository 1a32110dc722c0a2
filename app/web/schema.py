"""How our own JSON is written and described: camelCase, and unknown fields are refused."""

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema


class Asked(BaseModel):
    """Base of what clients send; fields go by their camelCase names alone."""

    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", frozen=True)


class Answer(BaseModel):
    """Base of what we answer; built here by the names of Python."""

    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True, frozen=True)


class _NeverNull:
    """Describes what may be None here as what it is otherwise; validation is not affected."""

    def __get_pydantic_json_schema__(
        self, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        described, _null = handler(core_schema)["anyOf"]
        return dict(described)


NO_CONTROL_CHARACTERS = r"^[^\x00-\x1f]*$"
"""Pattern of what can be looked up: PostgreSQL holds no NUL, and no row has control characters."""

T = TypeVar("T")

Omissible = Annotated[T | None, _NeverNull()]
"""What clients may leave out and cannot send as null: a parameter, a field of a form."""

Absent = Annotated[Omissible[T], Field(exclude_if=lambda value: value is None)]
"""A member that is left out of the answer where it does not apply."""


def success(
    description: str, *, example: Any, cache_control: str | None = None
) -> dict[int | str, dict[str, Any]]:
    """Return what a route passes as ``responses`` to describe its 200.

    Args:
        description: What the answer means, in a sentence.
        example: An answer as it may occur, in JSON. A member that is null does not survive
            FastAPI, so show one that is not.
        cache_control: The header, where the route sets it.
    """
    response: dict[str, Any] = {
        "description": description,
        "content": {"application/json": {"example": example}},
    }
    if cache_control is not None:
        response["headers"] = {"Cache-Control": always(cache_control)}
    return {200: response}


def always(value: str) -> dict[str, Any]:
    """Return the description of a header that has this *value* in every answer."""
    return {
        "description": f"Always `{value}`.",
        "schema": {"type": "string", "const": value},
    }
