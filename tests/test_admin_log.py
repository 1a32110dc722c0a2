"""The log under /admin: what leads where, what is wrong with a filter, and taking it away."""

import csv
import io
import json
import re
from collections.abc import AsyncIterator
from html import unescape
from typing import Any

import pytest

from app.audit.events import Event, Personal
from app.identity.users import OPERATOR, User
from app.runtime import Runtime
from app.settings import Settings
from app.web.export import COLUMNS
from tests.admin_visitor import AUDITOR, HOME, Browser, auditors_browser, text_of, token_in
from tests.conftest import bearer_for
from tests.log_rows import rows
from tests.test_admin_pages import HOSTILE

EXPORT = "/admin/log/export"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"public_url": HOME})


@pytest.fixture
async def page(runtime: Runtime) -> AsyncIterator[Browser]:
    """A browser in which an auditor is signed in."""
    async with auditors_browser(runtime) as client:
        yield client


async def tell(runtime: Runtime, **members: Any) -> str:
    event = Event(**{"action": "a.b", "outcome": "succeeded", **members})
    await runtime.log.record([event])
    return event.event_id


def export_form(text: str) -> str:
    """Return where the form of the export is sent."""
    found = re.search(rf'action="({EXPORT}[^"]*)"', text)
    assert found
    return unescape(found[1])


@pytest.mark.parametrize("format_", ["csv", "jsonl"])
async def test_exactly_what_is_listed_is_taken_away_and_that_is_a_row(
    page: Browser, runtime: Runtime, format_: str
) -> None:
    wanted = [await tell(runtime, reason="=1+1", profile="coach") for _ in range(60)]
    await tell(runtime, profile="default")
    listed = await page.get("/admin/log?profile=coach&action=&from=2026-11-20T11:00&limit=7")

    answer = await page.post(
        export_form(listed.text), data={"formToken": token_in(listed.text), "format": format_}
    )

    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Content-Disposition"].endswith(f'20T120000Z.{format_}"')
    if format_ == "csv":
        table = list(csv.DictReader(io.StringIO(answer.text, newline="")))
        assert tuple(table[0]) == COLUMNS
        assert [row["eventId"] for row in table] == wanted[::-1]
        assert table[0]["reason"] == "'=1+1"
    else:
        lines = [json.loads(line) for line in answer.text.splitlines()]
        assert [line["eventId"] for line in lines] == wanted[::-1]
    [row] = await rows(runtime.database, action="audit_log.export")
    assert row["filters"] == "profile=coach&since=2026-11-20T11:00:00+00:00"
    assert row["credential"] == row["sign_in"]
    assert row["request_id"] == answer.headers["X-Request-ID"]


async def test_a_link_cannot_export_nor_a_form_from_elsewhere(
    page: Browser, runtime: Runtime
) -> None:
    token = token_in((await page.get("/admin/log")).text)

    link = await page.get(EXPORT, params={"format": "csv"})
    without_token = await page.post(EXPORT, data={"format": "csv"})
    elsewhere = await page.post(
        EXPORT,
        data={"format": "csv", "formToken": token},
        headers={"Sec-Fetch-Site": "same-site"},
    )

    assert [link.status_code, without_token.status_code, elsewhere.status_code] == [404, 403, 403]
    assert await rows(runtime.database, action="audit_log.export") == []


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("from=yesterday", {"format": "csv"}),
        ("nonsense=1", {"format": "csv"}),
        ("", {"format": "xlsx"}),
        ("", {}),
    ],
)
async def test_an_export_that_cannot_be_is_refused_with_a_page(
    page: Browser, runtime: Runtime, query: str, fields: dict[str, str]
) -> None:
    answer = await page.act("/admin/log", f"{EXPORT}?{query}", **fields)

    assert answer.status_code == 422
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert await rows(runtime.database, action="audit_log.export") == []


async def test_whoever_is_disabled_takes_nothing_away(page: Browser, runtime: Runtime) -> None:
    token = token_in((await page.get("/admin/log")).text)
    await runtime.users.disable(AUDITOR, by=OPERATOR)

    answer = await page.post(EXPORT, data={"format": "csv", "formToken": token})

    assert answer.status_code == 403
    assert await rows(runtime.database, action="audit_log.export") == []


@pytest.mark.parametrize(
    ("query", "faulty", "reason"),
    [
        ("span=24h&from=2026-11-20T10:00", "span", "It cannot stand beside from or to"),
        ("span=week", "span", "It must be"),
        ("to=soon", "to", "It must be a time such as"),
        *[
            (f"{name}=%01x", name, "It must have no control characters")
            for name in ("outcome", "target", "id", "credential")
        ],
    ],
)
async def test_what_is_wrong_with_a_filter_stands_beside_it(
    page: Browser, query: str, faulty: str, reason: str
) -> None:
    answer = await page.get(f"/admin/log?{query}")

    assert answer.status_code == 422
    assert f'aria-describedby="{faulty}-fault"' in answer.text
    told = answer.text.partition(f'id="{faulty}-fault">')[2].partition("</p>")[0]
    assert unescape(told).startswith(reason)


async def test_what_was_typed_stays_in_the_form_when_it_cannot_be_used(page: Browser) -> None:
    answer = await page.get("/admin/log?span=24h&from=2026-11-20T10:00&target=usr_x")

    for kept in ("2026-11-20T10:00", "usr_x"):
        assert f'value="{kept}"' in answer.text
    assert '<option value="24h" selected>' in answer.text


async def test_a_row_leads_to_all_that_has_something_in_common_with_it(
    page: Browser, runtime: Runtime
) -> None:
    common = {
        "actor": "usr_" + "1" * 26,
        "target": "usr_" + "2" * 26,
        "credential": "key_" + "3" * 26,
        "sign_in": "sgn_" + "4" * 26,
        "request_id": "req_common",
    }
    personal = Personal(ip="203.0.113.200")
    row, _, _ = [await tell(runtime, **common, personal=personal) for _ in range(3)]
    shown = await page.get(f"/admin/log/{row}")

    links = re.findall(r'class="more" href="([^"]*)"', shown.text)

    assert [link.partition("?")[2].partition("=")[0] for link in links] == [
        *("actor", "target", "credential", "id", "address", "id")
    ]
    for link in links:
        assert "3 rows" in text_of(await page.get(unescape(link))), link


@pytest.mark.parametrize(
    ("members", "told"),
    [
        (
            {"shutdown_before": "2027-01-20", "shutdown_after": "2027-02-20", "target": "gpt-x"},
            ["2027-01-20", "2027-02-20", "gpt-x"],
        ),
        ({"boundary_seq": 4711, "boundary_hash": "ab" * 32}, ["4,711", "ab" * 32]),
        ({"filters": "actor=usr_1&address=withheld"}, ["actor=usr_1&address=withheld"]),
        ({"filters": ""}, ["the whole log"]),
        ({"filters": HOSTILE}, ["[U+202E]gnp.exe"]),
    ],
    ids=["model", "boundary", "export", "whole export", "hostile"],
)
async def test_a_row_of_another_kind_shows_what_it_tells(
    page: Browser, runtime: Runtime, members: dict[str, Any], told: list[str]
) -> None:
    row = await tell(runtime, **members)

    answer = await page.get(f"/admin/log/{row}")

    for text in told:
        assert text in text_of(answer)
    assert "<b onx" not in answer.text


async def test_the_id_of_anything_finds_its_rows(
    page: Browser, runtime: Runtime, alice: User
) -> None:
    minted = (await page.post("/realtime/token", headers=await bearer_for(runtime, alice))).json()
    intent, outcome = await rows(runtime.database, attempt_id=minted["id"])

    for id_, count in (
        (minted["id"], "2 rows"),
        (intent["event_id"], "1 row "),
        (intent["request_id"], "2 rows"),
        (outcome["upstream_request_id"], "1 row "),
    ):
        assert count in text_of(await page.get("/admin/log", params={"id": id_})), id_
