"""The log to take away: as a table for spreadsheets, or as JSON for programs."""

import asyncio
import csv
import io
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, TypeAlias

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from pydantic import Field

from app.audit.search import Entry
from app.base.errors import AuditUnavailable, FieldError, InvalidRequest
from app.identity.callers import Caller
from app.runtime import Runtime
from app.web.audit import OUTCOME, EventView, FilterQuery
from app.web.callers import Auditor, RuntimeDep
from app.web.problems import problem_responses

router = APIRouter(prefix="/audit", tags=["Audit"])

COLUMNS = tuple(field.alias or name for name, field in EventView.model_fields.items())

_CSV = "text/csv; charset=utf-8"
_JSON_LINES = "application/jsonl"

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # noqa: RUF001 - taken for the narrow ones
"""Beginnings of what spreadsheets compute rather than show; the wide ones, Japanese editions do."""


Format: TypeAlias = Literal["csv", "jsonl"]


class ExportQuery(FilterQuery):
    """What is exported, and how. All of it is optional and combines."""

    format: Format = Field(
        default="csv",
        description="`csv`: RFC 4180 with a line of names, in UTF-8. `jsonl`: a line of JSON for"
        " each row, without what does not apply to it.",
    )


def defused(value: Any) -> Any:
    """Return *value* so that no spreadsheet computes it: an apostrophe makes it text.

    Whoever sends a `User-Agent` would else have a word in what an auditor's spreadsheet does. What
    stands in quotes is looked at too, for some programs take these off first.
    """
    if isinstance(value, str) and value.lstrip(" \"'").startswith(_FORMULA):
        return f"'{value}"
    return value


def _csv(rows: Iterable[Mapping[str, Any]]) -> bytes:
    text = io.StringIO()
    lines = csv.writer(text, quoting=csv.QUOTE_ALL)
    lines.writerows([defused(row[name]) for name in COLUMNS] for row in rows)
    return text.getvalue().encode()


def _json_lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    given = ({name: value for name, value in row.items() if value is not None} for row in rows)
    return b"".join(_compact(row).encode() + b"\n" for row in given)


_compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

_HEADER = _csv([{name: name for name in COLUMNS}])


async def _body(
    parts: AsyncIterator[list[Entry]], write: Callable[[Iterable[Mapping[str, Any]]], bytes]
) -> AsyncIterator[bytes]:
    if write is _csv:
        yield _HEADER
    async for part in parts:
        views = (EventView.of(entry).model_dump(mode="json", by_alias=True) for entry in part)
        yield await asyncio.to_thread(write, views)  # others have their turn meanwhile


async def exported(runtime: Runtime, query: ExportQuery, *, by: Caller) -> StreamingResponse:
    """Return every row that matches as a file, as it is read.

    Raises:
        AuditUnavailable: It cannot be written down that *by* exports.
    """
    now = runtime.clock()
    parts = await runtime.exports.begin(query.filters(now), by=by.trace)
    name = f"audit-{now:%Y-%m-%dT%H%M%SZ}.{query.format}"
    return StreamingResponse(
        _body(parts, _csv if query.format == "csv" else _json_lines),
        media_type=_CSV if query.format == "csv" else _JSON_LINES,
        headers={
            "Content-Disposition": f'attachment; filename="{name}"',
            "Cache-Control": "no-store",  # this answer is not the one that `caller_with` prepared
        },
    )


@router.get(
    "/export",
    operation_id="exportAuditEvents",
    summary="Export the log",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "Every row that matches, newest first.",
            "content": {
                _CSV: {
                    "schema": {"type": "string"},
                    "example": _csv([dict.fromkeys(COLUMNS) | OUTCOME]).decode(),
                },
                _JSON_LINES: {
                    "schema": {"type": "string"},
                    "example": _json_lines([OUTCOME]).decode(),
                },
            },
            "headers": {
                "Content-Disposition": {
                    "description": "A name for the file.",
                    "schema": {"type": "string"},
                    "example": 'attachment; filename="audit-2026-11-20T120000Z.csv"',
                }
            },
        },
        **problem_responses(
            InvalidRequest(errors=[FieldError("format", "must be 'csv' or 'jsonl'")]),
            AuditUnavailable,
        ),
    },
)
async def export_events(
    caller: Auditor, runtime: RuntimeDep, query: Annotated[ExportQuery, Query()]
) -> StreamingResponse:
    """Give every row that matches the filters, however many, newest first.

    The rows are those of the moment of asking. That somebody exports, and what, is a row of the log
    itself, written before the first byte leaves.

    In `csv` a text that a spreadsheet would compute, since it begins with `=`, `+`, `-`, `@`, a tab
    or a line break, has an apostrophe in front; in `jsonl` every text is as it was written.
    """
    return await exported(runtime, query, by=caller)
