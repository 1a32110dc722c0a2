"""How our own JSON is written: camelCase, and unknown fields are refused."""

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel


class Asked(BaseModel):
    """Base of what clients send; fields go by their camelCase names alone."""

    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", frozen=True)


class Answer(BaseModel):
    """Base of what we answer; built here by the names of Python."""

    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True, frozen=True)


T = TypeVar("T")

Absent = Annotated[T | None, Field(exclude_if=lambda value: value is None)]
"""A member that is left out of the answer where it does not apply."""
