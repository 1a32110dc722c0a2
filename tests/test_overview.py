"""Figures are exact, however far the roll-up is, and whatever becomes of the log."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial

import pytest
import sqlalchemy as sa

from app.audit import rollup
from app.audit.events import Event, audit_events
from app.audit.log import Log
from app.audit.overview import Counts, Overviews, Ranked
from app.audit.rollup import RollUp, figures, hours
from app.base.clock import from_unix_microseconds, to_unix_microseconds
from app.base.errors import AuditUnavailable
from app.base.postgres import PostgresDatabase
from app.base.sqlite import SqliteDatabase
from tests.clock import StandingClock
from tests.conftest import START
from tests.filled_log import Story, fill

pytestmark = pytest.mark.slow

DAYS = 6
ROWS = 3_000
BEFORE = START - timedelta(days=DAYS, minutes=1)

Either = SqliteDatabase | PostgresDatabase


@pytest.fixture
async def filled(database: Either) -> Either:
    await fill(database, Story(users=30, start=BEFORE, days=DAYS), ROWS)
    return database


@pytest.fixture
def roll_up(database: Either, log: Log) -> RollUp:
    return RollUp(database=database, log=log)


@pytest.fixture
def overviews(database: Either, clock: StandingClock) -> Overviews:
    return Overviews(database=database, clock=clock)


async def one_by_one(
    database: Either, since: datetime, until: datetime, member: str
) -> dict[str, Counter[str]]:
    """Return what an overview should say, from every single row of the span."""
    c = audit_events.c
    wanted = sa.select(c.recorded_at, c.canon).order_by(c.seq)
    found: dict[str, Counter[str]] = {}
    for at, canon in await database.read(lambda tx: tx.execute(wanted).all()):
        row = json.loads(canon)
        if since <= from_unix_microseconds(at) < until and row["outcome"] in rollup.COUNTED:
            counter = found.setdefault(row.get(member), Counter())
            counter[row["outcome"]] += row.get("count", 1)
    return found


def counts(counter: Counter[str]) -> Counts:
    return Counts(**counter)


def ranked(found: dict[str, Counter[str]]) -> list[Ranked]:
    names = sorted((n for n in found if n), key=lambda n: (-found[n].total(), n))
    return [Ranked(name, counts(found[name])) for name in names[:10]]


async def stop_at(database: Either, seq: int) -> None:
    """Set the roll-up back to nothing, and let it come as far as this row."""
    c = audit_events.c
    wanted = sa.select(c.seq, c.recorded_at, c.canon, c.row_hash).where(c.seq <= seq)
    rows = await database.read(lambda tx: tx.execute(wanted.order_by(c.seq)).all())
    start = rollup.Mark(0, bytes(32))
    end = rollup.Mark(rows[-1].seq, rows[-1].row_hash)
    await database.alter(rollup._adding(start, end, rollup.count(rows), rollup._spans(rows)))


SPANS = [
    (None, None),
    (timedelta(hours=1), None),
    (timedelta(hours=24), None),
    (timedelta(days=5), timedelta(minutes=7)),
    (timedelta(days=4, minutes=40), timedelta(days=1, minutes=15)),
    (timedelta(days=4, minutes=50), timedelta(days=4, minutes=20)),
    (timedelta(days=3, hours=1, minutes=1), timedelta(days=2, minutes=59)),
    (timedelta(days=3), timedelta(days=2)),
]


@pytest.mark.parametrize("rolled_up_to", [0, 1_700, ROWS])
async def test_an_overview_says_what_every_row_says_together(
    filled: Either, overviews: Overviews, rolled_up_to: int
) -> None:
    if rolled_up_to:
        await stop_at(filled, rolled_up_to)
    for began, ended in SPANS:
        since = START - began if began else None
        until = START - ended if ended else None

        told = await overviews.of(since, until)

        span = partial(one_by_one, filled, since or BEFORE, until or START)
        total = sum((await span("action")).values(), Counter[str]())
        assert told.totals == counts(total)
        assert total
        assert told.users == ranked(await span("actor"))
        assert told.profiles == ranked(await span("profile"))
        assert told.models == ranked(await span("model_used"))
        assert told.reasons == ranked(await span("reason"))
        by_bucket = [bucket.counts for bucket in told.buckets]
        assert sum(c.issued for c in by_bucket) == told.totals.issued
        assert sum(c.denied for c in by_bucket) == told.totals.denied


async def test_hours_or_days_are_told_in_order_without_a_gap(
    filled: Either, overviews: Overviews, roll_up: RollUp
) -> None:
    await roll_up.catch_up()

    short = await overviews.of(START - timedelta(hours=5), None)
    long = await overviews.of(START - timedelta(days=5), START)

    hour, day = timedelta(hours=1), timedelta(days=1)
    assert [b.begins_at for b in short.buckets] == [START - n * hour for n in range(5, -1, -1)]
    midnight = START - timedelta(hours=12)
    assert [b.begins_at for b in long.buckets] == [midnight - n * day for n in range(5, -1, -1)]
    [of_a_day] = [b.counts for b in long.buckets if b.begins_at == midnight - day]
    expected = await one_by_one(filled, midnight - day, midnight, "environment")
    assert of_a_day == counts(expected["live"])


async def test_how_long_openai_took_is_a_tenth_off_at_the_most(
    filled: Either, overviews: Overviews, roll_up: RollUp
) -> None:
    await roll_up.catch_up()
    canons = await filled.read(lambda tx: tx.scalars(sa.select(audit_events.c.canon)).all())
    exact = sorted(row["upstream_ms"] for row in map(json.loads, canons) if "upstream_ms" in row)

    told = await overviews.of(None, None)

    assert told.latency is not None
    assert told.latency.p50_ms == pytest.approx(exact[len(exact) // 2], rel=0.1)
    assert told.latency.p95_ms == pytest.approx(exact[len(exact) * 95 // 100], rel=0.1)


async def test_an_empty_log_has_an_empty_overview(overviews: Overviews) -> None:
    told = await overviews.of(None, None)

    assert (told.totals, told.users, told.latency) == (Counts(), [], None)


async def test_a_span_begins_a_year_before_the_log_at_the_most(
    filled: Either, overviews: Overviews
) -> None:
    told = await overviews.of(datetime(1, 1, 1, tzinfo=START.tzinfo), None)

    assert len(told.buckets) == 367
    assert told.totals.issued > 0


async def test_rows_of_this_very_moment_count_too(
    database: Either, log: Log, overviews: Overviews, roll_up: RollUp
) -> None:
    for expected in (1, 2):
        await log.record([Event(action="client_secret.mint", outcome="issued")])
        assert (await overviews.of(None, None)).totals.issued == expected
        await roll_up.catch_up()


# The roll-up --------------------------------------------------------------------------------------


async def added_up(database: Either) -> Counter[tuple[object, ...]]:
    found = await database.read(lambda tx: tx.execute(figures.select()).all())
    return Counter({tuple(row)[:4]: row[4] for row in found})


async def every_figure(database: Either) -> Counter[tuple[object, ...]]:
    c = audit_events.c
    wanted = sa.select(c.recorded_at, c.canon)
    rows = await database.read(lambda tx: tx.execute(wanted).all())
    counted = rollup.count(rows)
    return Counter({tuple(f): n for f, n in (counted + rollup.by_day(counted)).items()})


async def test_each_row_is_added_once_however_many_processes_do_it(
    filled: Either, log: Log, roll_up: RollUp
) -> None:
    others = [RollUp(database=filled, log=log) for _ in range(2)]

    await asyncio.gather(*(one.catch_up() for one in (roll_up, *others)))
    await roll_up.catch_up()

    assert await added_up(filled) == await every_figure(filled)


async def meddle(database: Either, *statements: str) -> None:
    """Do to the log what its triggers forbid."""

    def change(tx: sa.Connection) -> None:
        if tx.dialect.name == "postgresql":
            tx.exec_driver_sql("SET LOCAL session_replication_role = replica")
        else:
            named = "SELECT name FROM sqlite_master WHERE type = 'trigger'"
            for name in tx.exec_driver_sql(named).scalars().all():
                tx.exec_driver_sql(f"DROP TRIGGER {name}")
        for statement in statements:
            tx.exec_driver_sql(statement)

    await database.alter(change)


@pytest.mark.parametrize("appended", [0, 50])
async def test_a_log_that_was_set_back_is_added_up_anew(
    filled: Either, log: Log, roll_up: RollUp, appended: int
) -> None:
    await roll_up.catch_up()
    await meddle(filled, f"DELETE FROM audit_events WHERE seq > {ROWS - 20}")
    for _ in range(appended):
        await log.record([Event(action="user.sign_in", outcome="denied", reason="new")])

    await roll_up.catch_up()

    assert await added_up(filled) == await every_figure(filled)


async def test_what_was_pruned_stays_added_up(
    filled: Either, overviews: Overviews, roll_up: RollUp
) -> None:
    await roll_up.catch_up()
    before = await overviews.of(None, None)

    await meddle(filled, f"DELETE FROM audit_events WHERE seq < {ROWS // 2}")
    await roll_up.catch_up()

    assert await overviews.of(None, None) == before
    # Its rows are gone, so of an hour nothing is known but the whole.
    told = await overviews.of(BEFORE + timedelta(hours=4, minutes=59), before.until)
    whole = await overviews.of(to_the_hour(BEFORE + timedelta(hours=4, minutes=59)), before.until)
    assert told.totals == whole.totals


def to_the_hour(at: datetime) -> datetime:
    return at.replace(minute=0, second=0, microsecond=0)


async def test_a_log_that_was_pruned_and_set_back_keeps_what_was_pruned(
    filled: Either, overviews: Overviews, roll_up: RollUp
) -> None:
    await roll_up.catch_up()
    pruned = await filled.read(
        lambda tx: tx.execute(hours.select().order_by(hours.c.hour).offset(9).limit(1)).one()
    )
    before = await overviews.of(None, from_unix_microseconds(pruned.hour))
    await meddle(
        filled,
        f"DELETE FROM audit_events WHERE seq < {pruned.first_seq}",
        f"DELETE FROM audit_events WHERE seq > {ROWS - 20}",
    )

    await roll_up.catch_up()

    assert await overviews.of(None, from_unix_microseconds(pruned.hour)) == before
    c = figures.c
    told = await overviews.of(from_unix_microseconds(pruned.hour), None)
    rows = await one_by_one(filled, from_unix_microseconds(pruned.hour), START, "profile")
    assert told.profiles == ranked(rows)
    by_hour = sa.select(sa.func.sum(c.count)).where(c.dimension == rollup.USER)
    days = sa.select(sa.func.sum(c.count)).where(c.dimension == rollup.USER + rollup.BY_DAY)
    assert await filled.read(lambda tx: tx.scalar(by_hour) == tx.scalar(days))


async def test_a_row_that_was_tampered_with_stops_nothing() -> None:
    at = to_unix_microseconds(START)
    texts = ["", "5", "[]", '{"outcome":[]}', '{"outcome":"issued","actor":{},"upstream_ms":"x"}']

    counted = rollup.count(rows_of(at, [*texts, '{"outcome":"issued","profile":"p"}']))

    assert counted[rollup.Figure("profile", at, "p", "issued")] == 1


def rows_of(at: int, canons: Sequence[str]) -> list[sa.Row[tuple[int, str]]]:
    statement = sa.union_all(
        *(
            sa.select(sa.literal(at).label("recorded_at"), sa.literal(c).label("canon"))
            for c in canons
        )
    )
    with sa.create_engine("sqlite://").connect() as connection:
        return list(connection.execute(statement))


async def test_a_span_of_time_is_found_although_clocks_were_set_back(
    database: Either, log: Log, roll_up: RollUp, clock: StandingClock
) -> None:
    chance = random.Random(3)  # noqa: S311 - the same each time is what is wanted
    times = []
    for number in range(200):
        clock.advance(minutes=chance.choice((20, 20, 20, 20, -50)))
        times.append(clock())
        await log.record([Event(action="a.b", outcome="succeeded", count=number)])
        if number == 150:
            await roll_up.catch_up()

    for _ in range(50):
        since, until = sorted(chance.sample(times, k=2))
        inside = [n for n, at in enumerate(times, start=1) if since <= at < until]
        first, last = await database.read(partial(rollup.seqs_between, since=since, until=until))
        assert not inside or (first <= inside[0] and (last is None or inside[-1] <= last))


async def test_who_asks_while_the_log_is_still_added_up_is_told_to_wait(
    filled: Either, overviews: Overviews
) -> None:
    await meddle(filled, "UPDATE audit_rolled_up SET seq = -1000000")

    with pytest.raises(AuditUnavailable, match="still being added up") as refusal:
        await overviews.of(None, None)

    assert refusal.value.retry_after_seconds == 10
