"""What leaves the log: exactly what was asked for, harmless in a spreadsheet, and written down."""

import csv
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.audit.events import Event, Personal
from app.audit.export import ROWS_AT_ONCE, Exports
from app.audit.log import Log
from app.audit.matches import Filters
from app.base.db import Database
from app.base.errors import AuditUnavailable
from app.identity.users import User
from app.main import create_app
from app.runtime import Runtime
from app.web.export import COLUMNS, defused
from tests.clock import StandingClock
from tests.conftest import as_served, bearer_for
from tests.log_rows import rows

WHO = {"actor": "usr_auditor", "request_id": "req_1"}
FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1", '"=1"', "' =1", " =1"]  # noqa: RUF001 - the wide ones are meant


@pytest.fixture
def exports(database: Database, log: Log) -> Exports:
    return Exports(database=database, log=log)


@pytest.fixture
async def client(runtime: Runtime) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(as_served(create_app(runtime.settings), runtime))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        yield client


async def wrote(log: Log, count: int, **members: Any) -> None:
    for start in range(0, count, 100):
        some = range(start, min(start + 100, count))
        await log.record(
            [
                Event(**{"action": "a.b", "outcome": "succeeded", "count": n, **members})
                for n in some
            ]
        )


async def test_an_export_has_what_matches_newest_first_and_nothing_that_came_later(
    database: Database, log: Log, exports: Exports
) -> None:
    wanted = ROWS_AT_ONCE * 2 + 7
    await wrote(log, wanted, profile="coach")
    await wrote(log, 30, profile="default")

    parts = await exports.begin(Filters(profile="coach"), by=WHO)
    await wrote(log, 1, profile="coach")
    found = []
    async for part in parts:
        assert len(part) <= ROWS_AT_ONCE
        found += [entry.members["count"] for entry in part]
        await wrote(log, 1, profile="coach")

    assert found == list(range(wanted - 1, -1, -1))


async def test_an_export_is_in_the_log_before_it_begins(
    database: Database, log: Log, exports: Exports
) -> None:
    await exports.begin(Filters(outcome="denied", address="192.0.2.1"), by=WHO)

    [row] = await rows(database, action="audit_log.export")
    assert row.items() >= {**WHO, "outcome": "succeeded"}.items()
    assert row["filters"] == "address=withheld&outcome=denied"


@pytest.mark.slow
@pytest.mark.impatient
async def test_nothing_is_exported_that_cannot_be_written_down(log: Log, exports: Exports) -> None:
    await log.close()

    with pytest.raises(AuditUnavailable):
        await exports.begin(Filters(), by=WHO)


@pytest.mark.parametrize(
    "typed", ["ek_0123456789abcdef", "ada@example.com", "192.0.2.1 or so", "sk-x", "a" * 65]
)
def test_what_may_be_a_persons_or_a_secret_is_not_kept_for_good(typed: str) -> None:
    for name in ("id", "actor", "credential", "profile"):
        assert Filters(**{name: typed}).told() == f"{name}=withheld"  # type: ignore[arg-type]  # a table of members


# Over HTTP ----------------------------------------------------------------------------------------


async def export(
    client: httpx.AsyncClient, runtime: Runtime, user: User, **query: str
) -> httpx.Response:
    headers = await bearer_for(runtime, user)
    return await client.get("/audit/export", headers=headers, params=query)


async def test_a_table_has_a_name_for_each_column_and_a_line_for_each_row(
    client: httpx.AsyncClient, runtime: Runtime, admin: User, clock: StandingClock
) -> None:
    agent = 'curl "8"; \r\n=cmd|x'
    personal = Personal(ip="192.0.2.1", user_agent=agent)
    await runtime.log.record([Event(action="a.b", outcome="denied", personal=personal)])

    answer = await export(client, runtime, admin, outcome="denied")

    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    assert answer.headers["Content-Disposition"] == (
        'attachment; filename="audit-2026-11-20T120000Z.csv"'
    )
    [row] = csv.DictReader(io.StringIO(answer.text, newline=""))
    shown = await client.get(
        "/audit/events",
        params={"outcome": "denied"},
        headers=await bearer_for(runtime, admin),
    )
    [view] = shown.json()["events"]
    assert tuple(row) == COLUMNS == tuple(view)
    assert row == {name: "" if value is None else str(value) for name, value in view.items()}
    assert row["userAgent"] == agent


async def test_lines_of_json_are_the_rows_without_what_does_not_apply(
    client: httpx.AsyncClient, runtime: Runtime, admin: User
) -> None:
    await runtime.log.record([Event(action="a.b", outcome="denied", reason="=1+1", count=3)])

    answer = await export(client, runtime, admin, format="jsonl", outcome="denied")

    assert answer.headers["Content-Type"] == "application/jsonl"
    [line] = map(json.loads, answer.text.splitlines())
    assert (line["reason"], line["count"]) == ("=1+1", 3)
    assert line.keys() == {
        *("seq", "recordedAt", "eventId", "action", "outcome"),
        *("reason", "count", "environment", "rowHash"),
    }


async def test_who_exports_is_in_the_log_with_their_request(
    client: httpx.AsyncClient, runtime: Runtime, admin: User
) -> None:
    answer = await export(client, runtime, admin, span="7d", actor=admin.id)

    [row] = await rows(runtime.database, action="audit_log.export")
    assert row["request_id"] == answer.headers["X-Request-ID"]
    assert row["actor"] == admin.id
    assert row["filters"] == f"actor={admin.id}&since=2026-11-13T12:00:00+00:00"


@pytest.mark.parametrize("text", FORMULAS)
def test_what_a_spreadsheet_would_compute_becomes_text(text: str) -> None:
    assert defused(text) == f"'{text}"


@given(st.text())
def test_no_text_begins_like_a_formula_and_none_is_lost(text: str) -> None:
    safe = defused(text)

    assert not safe.lstrip(' "').startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    assert safe in {text, f"'{text}"}


@pytest.mark.parametrize("value", ["a=b", "usr_1", "2026-11-20", "", None, 7, -7])
def test_what_is_harmless_stays_as_it_is(value: object) -> None:
    assert defused(value) == value
