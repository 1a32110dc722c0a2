"""What is wrong with a request, field by field, without repeating what was submitted."""

from collections.abc import Collection, Iterable, Mapping
from itertools import islice
from typing import Any, get_args

from pydantic import BaseModel

from app.base.errors import FieldError
from app.base.ids import is_plain
from app.web.schema import NO_CONTROL_CHARACTERS

_MAX_ERRORS = 20  # a hostile body of 64 KiB can hold some 10,000 faults
_MAX_DEPTH = 4

# Our sentence for each of pydantic's error types. Its own may quote what was submitted.
_REASONS = {
    "missing": "is required",
    "json_invalid": "is not valid JSON",
    "string_type": "must be a string",
    "string_unicode": "must be text that UTF-8 can hold",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must match the pattern {pattern}",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a smaller whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be greater than or equal to {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be less than or equal to {le}",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "list_type": "must be an array",
    "too_short": "must have at least {min_length} items",
    "too_long": "must have at most {max_length} items",
    "date_type": "must be a date such as 2026-11-20",
    "date_parsing": "must be a date such as 2026-11-20",
    "date_from_datetime_parsing": "must be a date such as 2026-11-20",
    "datetime_type": "must be a time such as 2026-11-20T09:30:00Z",
    "datetime_parsing": "must be a time such as 2026-11-20T09:30:00Z",
    "datetime_from_date_parsing": "must be a time such as 2026-11-20T09:30:00Z",
    "timezone_aware": "must say its time zone, such as 2026-11-20T09:30:00Z",
}

_PATTERNS = {NO_CONTROL_CHARACTERS: "must have no control characters"}
"""In place of the pattern, where a sentence says it better."""


def field_errors(
    faults: Iterable[Mapping[str, Any]], *, known: Collection[str]
) -> list[FieldError]:
    """Return the first 20 faults, each with the field's dotted path as the client wrote it.

    Args:
        faults: As pydantic names them, each path with its place in front: ``body``, ``query`` …
        known: Names of the fields that the body has.
    """
    return [_field_error(fault, known) for fault in islice(faults, _MAX_ERRORS)]


def field_names(annotation: Any) -> list[str]:
    """Return the names of the fields of a model, or of the model in ``Model | None``."""
    for model in (annotation, *get_args(annotation)):
        if isinstance(model, type) and issubclass(model, BaseModel):
            return [field.alias or name for name, field in model.model_fields.items()]
    return []


def _field_error(fault: Mapping[str, Any], known: Collection[str]) -> FieldError:
    place, *path = fault["loc"]
    if fault["type"] == "json_invalid":
        path = []  # FastAPI puts the position here
    # A name in the path may be one that the caller made up.
    named = [str(part) for part in path if is_plain(str(part))]
    if fault["type"] != "extra_forbidden":
        reason = _reason(fault)
    elif len(named) < len(path):
        reason = "has a field that is not known"
    elif known and place == "body" and len(path) == 1:
        reason = f"is not a known field; known are {', '.join(known)}"
    else:
        reason = "is not a known field"
    return FieldError(".".join(named) or str(place), reason)


def _reason(fault: Mapping[str, Any]) -> str:
    if fault["type"] == "value_error":
        # A sentence of our own validators, unless a library below them raised it.
        sentence = str(fault["ctx"]["error"])
        return "is not valid" if _quotes(sentence, fault["input"]) else sentence
    context = fault.get("ctx", {})
    if told := _PATTERNS.get(context.get("pattern")):
        return told
    return _REASONS.get(fault["type"], "is not valid").format_map(context)


def _quotes(sentence: str, submitted: Any, *, depth: int = 0) -> bool:
    """Tell whether *sentence* may repeat a text or number of what was submitted."""
    match submitted:
        case Mapping() | list() | tuple() if depth == _MAX_DEPTH:
            return True
        case Mapping():
            return any(_quotes(sentence, item, depth=depth + 1) for item in submitted.values())
        case list() | tuple():
            return any(_quotes(sentence, item, depth=depth + 1) for item in submitted)
        case None | bool() | "":
            return False
        case _:
            return str(submitted) in sentence
