"""What the address of a page asks for: the fields that are filled in, spans of time, faults."""

import re
from collections.abc import Mapping

from fastapi import Request
from pydantic import ValidationError

from app.base.errors import FieldError
from app.web.audit import SpanQuery
from app.web.field_errors import field_errors

SPANS = {
    "1h": "The last hour",
    "today": "Today (UTC)",
    "24h": "The last 24 hours",
    "7d": "The last 7 days",
    "30d": "The last 30 days",
}
"""The spans of `app.audit.spans` for people."""

_LOCAL = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d+)?)?", re.ASCII)


def asked_in(request: Request) -> dict[str, str]:
    """Return what the address asks for; browsers send fields that are left empty too."""
    asked = {name: value.strip() for name, value in request.query_params.items()}
    return {name: value for name, value in asked.items() if value}


def in_utc(asked: Mapping[str, str]) -> dict[str, str]:
    """Complete the times of browsers' own date fields, which say neither offset nor seconds."""
    completed = dict(asked)
    for name in ("from", "to"):
        local = _LOCAL.fullmatch(completed.get(name, ""))
        if local:
            completed[name] = f"{local[0]}{'' if local[1] else ':00'}Z"
    return completed


def times_in(asked: Mapping[str, str], query: SpanQuery) -> dict[str, str]:
    """Return what browsers' date fields begin with: what was understood, or typed in them."""
    understood = {"from": query.since, "to": query.until}
    return {
        name: f"{at:%Y-%m-%dT%H:%M:%S}" if at else _typed(asked.get(name, ""))
        for name, at in understood.items()
    }


def _typed(text: str) -> str:
    """Return *text* if a date field has sent it; in others it would be an error of the page."""
    return text if _LOCAL.fullmatch(text) else ""


def faults_in(error: ValidationError) -> list[FieldError]:
    """Return what is wrong with what was asked for."""
    found = [fault | {"loc": ("query", *fault["loc"])} for fault in error.errors(include_url=False)]
    return field_errors(found, known=())
