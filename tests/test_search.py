from datetime import timedelta

import pytest

from app.audit.events import Event, Personal
from app.audit.log import Log
from app.audit.matches import Filters, Matches
from app.audit.search import Search
from app.base.db import Database
from app.base.errors import InvalidCursor
from tests.clock import StandingClock
from tests.conftest import START

KEY = b"k" * 32


def an_event(number: int, **members: object) -> Event:
    return Event(**{"action": "test.act", "outcome": "succeeded", "count": number, **members})  # type: ignore[arg-type]  # a table of members


async def test_pages_neither_skip_nor_repeat_while_rows_arrive(
    database: Database, log: Log
) -> None:
    search = Search(database, cursor_key=KEY)
    for number in range(1, 26):
        await log.record([an_event(number)])

    seen, cursor, later = [], None, 100
    while True:
        page = await search.page(Filters(), limit=10, cursor=cursor)
        seen += [entry.members["count"] for entry in page.entries]
        await log.record([an_event(later)])
        later += 1
        if page.older is None:
            break
        cursor = page.older

    assert seen == list(range(25, 0, -1))


async def test_a_full_last_page_has_no_next(database: Database, log: Log) -> None:
    await log.record([an_event(number) for number in range(10)])

    page = await Search(database, cursor_key=KEY).page(Filters(), limit=10)

    assert len(page.entries) == 10
    assert page.older is None


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (Filters(), [4, 3, 2, 1]),
        (Filters(actor="usr_a"), [2, 1]),
        (Filters(action="user.create"), [3]),
        (Filters(outcome="denied"), [4]),
        (Filters(profile="coach"), [2]),
        (Filters(model="asked"), [2]),
        (Filters(model="used"), [4, 2]),
        (Filters(actor="usr_a", profile="coach"), [2]),
        (Filters(since=START + timedelta(hours=2)), [4, 3]),
        (Filters(until=START + timedelta(hours=2)), [2, 1]),
        (Filters(since=START + timedelta(hours=1), until=START + timedelta(hours=2)), [2]),
        (Filters(actor="nobody"), []),
        (Filters(address="192.0.2.1"), [3, 1]),
        (Filters(address="192.0.2.1", action="user.create"), [3]),
        (Filters(address="192.0.2"), []),
        (Filters(target="usr_a"), [3]),
        (Filters(id="usr_a"), [3, 2, 1]),
        (Filters(id="key_a"), [4]),
        (Filters(id="req_a"), [4, 1]),
        (Filters(id="tok_a"), [4, 2]),
        (Filters(id="sgn_a"), [1]),
        (Filters(id="any-name"), [3]),
        (Filters(reason="why"), [4]),
        (Filters(actor="usr_a' OR 1=1 --"), []),
    ],
)
async def test_filters_select_and_combine(
    database: Database, log: Log, clock: StandingClock, filters: Filters, expected: list[int]
) -> None:
    somewhere = Personal(ip="192.0.2.1")
    for event in (
        an_event(1, actor="usr_a", request_id="req_a", sign_in="sgn_a", personal=somewhere),
        an_event(
            2,
            actor="usr_a",
            profile="coach",
            model_asked="asked",
            model_used="used",
            outcome="issued",
            attempt_id="tok_a",
        ),
        an_event(
            3, action="user.create", target="usr_a", request_id="any-name", personal=somewhere
        ),
        an_event(
            4,
            outcome="denied",
            reason="why",
            model_used="used",
            actor="key_a",  # and its own credential: one row all the same
            credential="key_a",
            upstream_request_id="req_a",
            target="tok_a",
        ),
    ):
        await log.record([event])
        clock.advance(hours=1)

    page = await Search(database, cursor_key=KEY).page(filters, limit=10)
    matches = await database.read(lambda tx: Matches.of(tx, filters).count(tx, most=10))

    assert [entry.members["count"] for entry in page.entries] == expected
    assert matches == len(expected)
    assert page.matches == len(expected)


@pytest.mark.parametrize("cursor", ["", "x", "AAAAAAAAAAE=", "A" * 32, "💥", "../../etc"])
async def test_a_cursor_that_is_not_ours_is_refused(
    database: Database, log: Log, cursor: str
) -> None:
    with pytest.raises(InvalidCursor):
        await Search(database, cursor_key=KEY).page(Filters(), limit=10, cursor=cursor)


async def test_a_cursor_of_another_key_is_refused(database: Database, log: Log) -> None:
    await log.record([an_event(number) for number in range(3)])
    page = await Search(database, cursor_key=b"other").page(Filters(), limit=1)

    with pytest.raises(InvalidCursor):
        await Search(database, cursor_key=KEY).page(Filters(), limit=1, cursor=page.older)
