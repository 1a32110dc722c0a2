"""The first page under /admin: figures, and what needs attention. And whose token was found."""

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from html import unescape
from typing import Any

import pytest
from pydantic import SecretStr

from app.audit.events import Event
from app.audit.overview import Bucket, Counts, Overview
from app.audit.rollup import rolled_up
from app.identity.users import User
from app.runtime import Runtime
from app.settings import Settings
from app.web.admin.chart import MOST_TICKS, chart_of, stacked
from tests.admin_visitor import AUDITOR, HOME, Browser, auditors_browser, text_of
from tests.clock import StandingClock
from tests.conftest import bearer_for, on_sqlite
from tests.log_rows import rows
from tests.test_admin_pages import HOSTILE
from tests.test_error_pages import Page

NOWHERE = "ek_canaryCANARYcanary0123456789abcdef"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"public_url": HOME})


@pytest.fixture
async def page(runtime: Runtime) -> AsyncIterator[Browser]:
    """A browser in which an auditor is signed in."""
    async with auditors_browser(runtime) as client:
        yield client


async def tell(runtime: Runtime, outcome: str, times: int = 1, **members: Any) -> None:
    mint = {"action": "client_secret.mint", "outcome": outcome, **members}
    await runtime.log.record([Event(**mint) for _ in range(times)])


def links_of(text: str, label: str) -> str:
    """Return where the link with this label leads."""
    found = re.search(rf'<a href="([^"]*)"[^>]*>\s*(<bdi[^>]*>)?{re.escape(label)}<', text)
    assert found, label
    return unescape(found[1])


async def test_figures_of_the_period_lead_to_their_rows(
    page: Browser, runtime: Runtime, alice: User, clock: StandingClock
) -> None:
    mini = "gpt-realtime-2.1-mini"
    await tell(runtime, "issued", 3, actor=alice.id, profile="old", upstream_ms=900)
    clock.advance(hours=25)
    await page.sign_in(AUDITOR)
    common = {"actor": alice.id, "profile": "coach"}
    await tell(runtime, "issued", 12, model_used=mini, upstream_ms=240, **common)
    await tell(runtime, "denied", 5, reason="rate_limited", **common)
    await tell(runtime, "failed", 2, reason="upstream_timeout", model_used=mini, **common)

    answer = await page.get("/admin")

    text = text_of(answer)
    assert "Issued 12 tokens given out Refused 5 requests turned away Failed 2" in text
    assert f"{alice.email} 19 12 issued, 5 refused, 2 failed" in text
    assert "rate_limited 5 5 refused" in text
    assert f"{mini} 14 12 issued, 2 failed" in text
    assert re.search(r"OpenAI's answer 2\d\d ms", text)
    assert "old" not in re.findall(r"<bdi>(\w+)</bdi>", answer.text)
    for label, count in (("12", 12), (alice.email, 19), ("coach", 19), (mini, 14)):
        rows_of = await page.get(links_of(answer.text, label))
        assert f"{count} rows" in text_of(rows_of), label


async def test_the_bars_and_the_table_tell_the_same(
    page: Browser, runtime: Runtime, clock: StandingClock
) -> None:
    await tell(runtime, "issued", 3)
    clock.advance(hours=2)
    await tell(runtime, "issued", 4)
    await tell(runtime, "unknown")
    clock.advance(hours=1)
    await page.sign_in(AUDITOR)

    answer = await page.get("/admin?from=2026-11-20T12:00&to=2026-11-20T15:00")

    table = answer.text.partition('<table class="numbers">')[2].partition("</table>")[0]
    lines = re.findall(r'<th scope="row">([^<]*)</th>((?:<td>\d+</td>)*)', table)
    assert [(hour, re.findall(r"\d+", cells)) for hour, cells in lines] == [
        ("2026-11-20 12:00", ["3", "0", "0", "0"]),
        ("2026-11-20 13:00", ["0", "0", "0", "0"]),
        ("2026-11-20 14:00", ["4", "0", "0", "1"]),
    ]
    bars = re.findall(r"<title>([^<]*)</title>\s*<rect", answer.text)
    assert bars == [
        "20 Nov 2026, 12:00: 3 issued",
        "20 Nov 2026, 14:00: 4 issued, 1 unknown",
    ]


@pytest.mark.parametrize("span", ["1h", "today", "24h", "7d", "30d"])
async def test_each_period_is_a_link_and_shows_that_it_is_chosen(
    page: Browser, runtime: Runtime, span: str
) -> None:
    await tell(runtime, "issued")

    answer = await page.get(f"/admin?span={span}")

    assert answer.status_code == 200
    assert f'<a href="/admin?span={span}" aria-current="true">' in answer.text
    assert f"/admin/log?span={span}&amp;outcome=issued" in answer.text


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("span=24h&from=2026-11-20T10:00", "span cannot stand beside from or to"),
        ("span=week", "span must be"),
        ("to=0001-01-01T00:00:00%2B14:00", "It must be a time of the years 1 to 9999"),
        ("from=yesterday", "It must be a time such as"),
        ("actor=a", "actor is not a known field"),
    ],
)
async def test_a_period_that_cannot_be_is_explained(page: Browser, query: str, reason: str) -> None:
    answer = await page.get(f"/admin?{query}")

    assert answer.status_code == 422
    assert reason in text_of(answer)


@pytest.mark.parametrize(
    "query",
    [
        "from=2020-01-01T00:00&to=2020-01-02T00:00",
        "to=0001-01-01T00:00:00Z",
        "from=0001-01-01T00:00:00Z&to=0001-01-02T00:00:00Z",
        "from=9999-12-31T23:59:59Z",
        "from=2026-11-20T12:00&to=2026-11-20T11:00",
    ],
)
async def test_a_period_without_anything_says_so(
    page: Browser, runtime: Runtime, query: str
) -> None:
    await tell(runtime, "issued")

    answer = await page.get(f"/admin?{query}")

    assert answer.status_code == 200
    assert "Nobody asked for a token in this time" in text_of(answer)


async def test_figures_that_are_not_ready_leave_the_notices_standing(
    page: Browser, runtime: Runtime
) -> None:
    far = rolled_up.update().values(seq=-1_000_000)
    await runtime.database.alter(lambda tx: tx.execute(far).close())

    answer = await page.get("/admin")

    assert answer.status_code == 503
    assert "The log is still being added up" in text_of(answer)
    assert "The log has never been verified as a whole." in text_of(answer)


async def test_what_is_urgent_stands_above_the_figures(page: Browser, runtime: Runtime) -> None:
    await tell(runtime, "failed", reason="upstream_quota_exhausted")

    text = text_of(await page.get("/admin"))

    assert text.index("the money is used up") < text.index("never been verified")
    assert text.index("never been verified") < text.index("There is no checkpoint")
    assert text.index("There is no checkpoint") < text.index("Issued")


async def test_hostile_names_are_harmless_in_figures_and_links(
    page: Browser, runtime: Runtime
) -> None:
    await tell(runtime, "denied", actor=HOSTILE, profile=HOSTILE, reason=HOSTILE)
    await tell(runtime, "issued", model_used=HOSTILE)

    answer = await page.get("/admin")

    assert not [tag for tag in Page(answer.text).tags if tag == "b"]
    assert "<script>alert" not in answer.text
    assert not set("\u202e\u2066\u200b") & set(answer.text)
    for filtered in re.findall(
        r'href="(/admin/log\?[^"]*(?:actor|profile|reason)=[^"]*)"', answer.text
    ):
        assert "1 row" in text_of(await page.get(unescape(filtered)))


# The chart ----------------------------------------------------------------------------------------


def of_buckets(*counts: int, width: timedelta = timedelta(hours=1)) -> Overview:
    start = datetime(2026, 11, 20, tzinfo=UTC)
    buckets = [Bucket(start + place * width, Counts(issued=n)) for place, n in enumerate(counts)]
    return Overview(start, start, width, buckets, Counts(), (), (), (), (), None)


def test_parts_stand_on_each_other_and_fill_the_bar() -> None:
    parts = stacked(Counts(issued=5, denied=3, unknown=2), 20)

    assert [(part.outcome, part.start, part.size) for part in parts] == [
        ("issued", 0, 25),
        ("denied", 25, 15),
        ("unknown", 40, 10),
    ]


@pytest.mark.parametrize(
    ("most", "top"), [(0, 2), (1, 2), (3, 4), (10, 10), (11, 20), (99, 100), (401, 600)]
)
def test_the_scale_ends_at_a_number_that_is_easily_read(most: int, top: int) -> None:
    assert chart_of(of_buckets(0, most)).top == top


@pytest.mark.parametrize(
    ("count", "width"),
    [
        *[(hours, timedelta(hours=1)) for hours in (1, 2, 24, 25, 49, 73)],
        *[(days, timedelta(days=1)) for days in (4, 7, 31, 366, 2_000)],
    ],
)
def test_times_below_the_bars_are_few_and_within(count: int, width: timedelta) -> None:
    chart = chart_of(of_buckets(*[1] * count, width=width))

    assert 1 <= len(chart.ticks) <= MOST_TICKS
    assert all(0 < tick.x < 100 for tick in chart.ticks)
    assert chart.bars[-1].x + chart.slot == pytest.approx(100)


def test_no_bars_make_no_chart_and_no_fault() -> None:
    assert chart_of(of_buckets()).bars == []


# Whose token it is --------------------------------------------------------------------------------

LOOK_UP = "/admin/look-up"


@pytest.mark.parametrize("around", ["{}", " {}\r\n"])
async def test_a_found_token_leads_to_its_mint_and_is_shown_nowhere(
    page: Browser, runtime: Runtime, alice: User, around: str
) -> None:
    minted = (await page.post("/realtime/token", headers=await bearer_for(runtime, alice))).json()

    answer = await page.act(LOOK_UP, LOOK_UP, token=around.format(minted["token"]))

    assert answer.status_code == 200
    assert alice.email in text_of(answer)
    attempt = await rows(runtime.database, attempt_id=minted["id"])
    for row in attempt:
        assert f'href="/admin/log/{row["event_id"]}"' in answer.text
    assert minted["token"] not in answer.text
    [asked] = await rows(runtime.database, action="client_secret.look_up")
    assert asked["target"] == minted["id"]
    assert asked["sign_in"]
    assert minted["token"] not in str(await rows(runtime.database))


@pytest.mark.parametrize(
    ("token", "status", "told"),
    [
        (NOWHERE, 404, "No row has this token"),
        (HOSTILE, 404, "No row has this token"),
        ("", 422, "Paste one token"),
        (" \t", 422, "Paste one token"),
        (NOWHERE * 30, 422, "Paste one token"),
    ],
    ids=["unknown", "hostile", "none", "blank", "long"],
)
async def test_a_token_that_is_not_found_is_neither_shown_nor_kept_nor_logged(
    page: Browser,
    runtime: Runtime,
    capsys: pytest.CaptureFixture[str],
    token: str,
    status: int,
    told: str,
) -> None:
    answer = await page.act(LOOK_UP, LOOK_UP, token=token)

    assert (answer.status_code, answer.headers["Cache-Control"]) == (status, "no-store")
    assert told in text_of(answer)
    asked = await rows(runtime.database, action="client_secret.look_up")
    assert [row["reason"] for row in asked] == (["not_found"] if status == 404 else [])
    if token.strip():
        output = capsys.readouterr()
        for place in (answer.text, str(asked), output.out, output.err, str(answer.headers)):
            assert token.strip()[:20] not in place


async def test_a_token_in_the_address_is_not_looked_at(page: Browser, runtime: Runtime) -> None:
    answer = await page.get(LOOK_UP, params={"token": NOWHERE})

    assert NOWHERE not in answer.text
    assert await rows(runtime.database, action="client_secret.look_up") == []


@pytest.mark.slow
@on_sqlite
@pytest.mark.impatient
async def test_nothing_is_told_that_cannot_be_written_down(
    page: Browser, runtime: Runtime, alice: User
) -> None:
    minted = (await page.post("/realtime/token", headers=await bearer_for(runtime, alice))).json()
    token = SecretStr(minted["token"])
    await page.get(LOOK_UP)
    form = await page.get(LOOK_UP)
    await runtime.log.close()

    answer = await page.post(
        LOOK_UP,
        data={
            "formToken": re.findall(r'name="formToken" value="(\w+)"', form.text)[0],
            "token": token.get_secret_value(),
        },
    )

    assert answer.status_code == 503
    assert minted["id"] not in answer.text
    assert minted["token"] not in answer.text
