"""Whatever is asked of a long log: what is found, and how."""

import random
from collections.abc import Callable, Iterator
from dataclasses import fields
from datetime import timedelta
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import sqlalchemy as sa

from app.audit.log import Log
from app.audit.matches import Filters, Matches
from app.audit.rollup import RollUp
from app.audit.search import Entry, Page, Search, entries_of
from app.base.postgres import PostgresDatabase
from app.base.sqlite import SqliteDatabase
from tests.conftest import START
from tests.filled_log import MODEL, OLD_MODEL, PROFILES, REFUSALS, Story, fill

DAYS = 10
ROWS = 4_000
BEFORE = START - timedelta(days=DAYS)

Either = SqliteDatabase | PostgresDatabase

pytestmark = pytest.mark.slow


@pytest.fixture
def story() -> Story:
    return Story(users=40, start=BEFORE, days=DAYS)


@pytest.fixture
async def search(database: Either, log: Log, story: Story) -> Search:
    await fill(database, story, ROWS)
    await RollUp(database=database, log=log).catch_up()
    return Search(database, cursor_key=b"k" * 32)


async def every_row(search: Search) -> list[Entry]:
    """Return the whole log, newest first, past all filters."""
    seqs = range(1, ROWS + 1)
    parts = [seqs[start : start + 500] for start in range(0, ROWS, 500)]
    found = [await search._database.read(partial(entries_of, seqs=part)) for part in parts]
    return [entry for part in found[::-1] for entry in part]


IDS = ("event_id", "attempt_id", "actor", "target", "credential", "sign_in", "request_id")


def fits(entry: Entry, filters: Filters) -> bool:
    """Tell whether a row matches, by looking at it."""
    row, at = entry.members, entry.recorded_at
    ids = {row.get(name) for name in (*IDS, "upstream_request_id")}
    plain = ("actor", "target", "credential", "action", "outcome", "reason", "profile")
    return (
        filters.id in {None, *ids}
        and filters.address in {None, (entry.personal or {}).get("ip")}
        and filters.model in {None, row.get("model_asked"), row.get("model_used")}
        and all(getattr(filters, n) in {None, row.get(n)} for n in (*plain, "token_fingerprint"))
        and (filters.since is None or filters.since <= at)
        and (filters.until is None or at < filters.until)
    )


def some_filters(rows: list[Entry], story: Story) -> Iterator[Filters]:
    """Give each filter alone, and many of them together; most match something."""
    chance = random.Random(1)  # noqa: S311 - the same each time is what is wanted
    values: dict[str, Callable[[Entry], Any]] = {
        "id": lambda e: e.members.get(chance.choice((*IDS, "upstream_request_id"))),
        "address": lambda e: (e.personal or {}).get("ip"),
        "model": lambda e: e.members.get(chance.choice(("model_asked", "model_used"))),
        "since": lambda e: e.recorded_at,
        "until": lambda e: e.recorded_at + timedelta(hours=chance.choice((1, 30))),
    }
    for field in fields(Filters):
        values.setdefault(field.name, partial(member, name=field.name))
    for name, value in values.items():
        for _ in range(3):
            yield Filters(**{name: value(chance.choice(rows))})
    for _ in range(60):
        entry, other = chance.choices(rows, k=2)
        names = chance.sample(sorted(values), k=chance.choice((2, 2, 3, 4)))
        asked = {name: values[name](entry if chance.random() < 0.9 else other) for name in names}
        yield Filters(**asked)
    # Sets that are large and have nothing in common.
    yield Filters(credential=story.keys[0], profile=PROFILES[1])
    yield Filters(credential=story.keys[0], address="203.0.113.1")
    yield Filters(actor="nobody' OR 1=1 --", outcome="issued")
    yield Filters(outcome="issued\nrate_limited")


def member(entry: Entry, name: str) -> Any:
    return entry.members.get(name)


async def pages(search: Search, filters: Filters, limit: int) -> list[Page]:
    found = [await search.page(filters, limit=limit)]
    while (cursor := found[-1].older) is not None:
        found.append(await search.page(filters, limit=limit, cursor=cursor))
    return found


@pytest.mark.slow
async def test_a_search_finds_what_looking_at_every_row_finds(search: Search, story: Story) -> None:
    rows = await every_row(search)
    found_something = 0

    for filters in some_filters(rows, story):
        expected = [entry for entry in rows if fits(entry, filters)]
        found = await search.page(filters, limit=200)

        assert list(found.entries) == expected[:200], filters
        assert (found.matches, found.more) == (len(expected), False), filters
        found_something += bool(expected)

    assert found_something > 60


@pytest.mark.parametrize(
    "filters",
    [Filters(), Filters(outcome="issued"), Filters(address="203.0.113.0")],
    ids=Filters.told,
)
async def test_pages_lead_there_and_back(search: Search, filters: Filters) -> None:
    there = (await pages(search, filters, 90))[:5]
    seqs = [entry.seq for page in there for entry in page.entries]
    back = [there[-1]]
    while (cursor := back[-1].newer) is not None:
        back.append(await search.page(filters, limit=90, cursor=cursor))

    assert len(there) == 5
    assert all(newer > older for newer, older in pairwise(seqs))
    assert [page.entries for page in back] == [page.entries for page in there[::-1]]
    assert there[0].newer is None


async def test_no_more_matches_are_counted_than_asked_for(search: Search) -> None:
    counted = await search._database.read(
        lambda tx: [
            Matches.of(tx, filters).count(tx, most=100)
            for filters in (Filters(), Filters(action="client_secret.mint"), Filters(outcome="x"))
        ]
    )

    assert counted == [100, 100, 0]


async def test_a_page_between_a_row_and_nothing_leads_back(search: Search) -> None:
    first = await search.page(Filters(outcome="issued"), limit=5)
    second = await search.page(Filters(outcome="issued"), limit=5, cursor=first.older)

    nothing = await search.page(Filters(outcome="nothing"), limit=5, cursor=second.newer)
    again = await search.page(Filters(outcome="issued"), limit=5, cursor=nothing.older)

    assert nothing.entries == []
    assert again.entries == second.entries


# How it is found ----------------------------------------------------------------------------------

LISTED = [
    Filters(),
    Filters(since=START - timedelta(hours=1)),
    Filters(until=START - timedelta(days=5)),
    Filters(actor="usr_x"),
    Filters(target="usr_x"),
    Filters(credential="key_x"),
    Filters(address="192.0.2.1"),
    *(Filters(id=f"{prefix}_x") for prefix in ("evt", "tok", "usr", "eus", "key", "sgn", "req")),
    Filters(token_fingerprint="ab"),
    Filters(action="client_secret.mint"),
    Filters(outcome="issued"),
    Filters(outcome="nothing"),
    Filters(reason=REFUSALS[0]),
    Filters(profile=PROFILES[0]),
    Filters(model=MODEL),
    Filters(model=OLD_MODEL, since=START - timedelta(days=1)),
    Filters(actor="usr_x", outcome="issued", since=START - timedelta(days=7)),
    Filters(address="203.0.113.0", outcome="denied"),
    Filters(credential="key_x", address="203.0.113.0", profile=PROFILES[0]),
]


async def test_no_search_reads_the_whole_log(search: Search) -> None:
    for filters in LISTED:
        plans = await search._database.read(partial(plans_of, filters=filters))

        assert "audit_events" in plans
        for table in ("audit_events", "audit_personal"):
            assert f"SCAN {table}" not in plans, (filters, plans)
            assert f"Seq Scan on {table}" not in plans, (filters, plans)


def plans_of(tx: sa.Connection, filters: Filters) -> str:
    """Return how the database goes about each statement of a search."""
    said: list[tuple[str, Any]] = []

    def listen(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        said.append((statement, parameters))

    if tx.dialect.name == "postgresql":
        tx.exec_driver_sql("SET LOCAL enable_seqscan = off")  # for so short a log it is the best
    sa.event.listen(tx, "before_cursor_execute", listen)
    matches = Matches.of(tx, filters)
    matches.newest(tx, limit=51)
    matches.oldest(tx, after=7, limit=51)
    matches.count(tx, most=10_001)
    entries_of(tx, [1, 2, 3])
    sa.event.remove(tx, "before_cursor_execute", listen)
    explain = "EXPLAIN QUERY PLAN" if tx.dialect.name == "sqlite" else "EXPLAIN"
    return "\n".join(
        str(row[-1])
        for statement, parameters in said
        for row in tx.exec_driver_sql(f"{explain} {statement}", parameters)
    )
