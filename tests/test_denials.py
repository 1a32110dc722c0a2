import asyncio
from dataclasses import replace

import pytest
import sqlalchemy as sa

from app.audit.denials import Denials, network_of
from app.audit.events import Event, Personal, audit_personal
from app.audit.log import BATCH, Log
from app.base.db import Database
from tests.clock import StandingClock
from tests.log_faults import stopped
from tests.log_lines import captured_log
from tests.log_rows import rows


def a_refusal(*, ip: str | None = None, actor: str | None = None) -> Event:
    """Return the refusal of somebody who has shown that they are *actor*, or of anybody."""
    return Event(
        action="test.act",
        outcome="denied",
        reason="why",
        actor=actor,
        sign_in="sgn_1" if actor else None,
        personal=Personal(ip=ip),
    )


@pytest.fixture
def denials(log: Log, clock: StandingClock) -> Denials:
    return Denials(log, clock=clock, most_windows=3)


async def refuse(
    denials: Denials, times: int, *, ip: str | None = None, actor: str | None = None
) -> None:
    for _ in range(times):
        await denials.record(a_refusal(ip=ip, actor=actor))


async def one_by_one(database: Database) -> int:
    return len(await rows(database, reason="why"))


async def counts(database: Database) -> list[int]:
    return [row["count"] for row in await rows(database, reason="repeated")]


async def test_a_flood_becomes_five_rows_and_a_count(
    database: Database, denials: Denials, clock: StandingClock
) -> None:
    await refuse(denials, 50, ip="192.0.2.1")
    await denials.settle()
    assert (await one_by_one(database), await counts(database)) == (5, [])

    clock.advance(seconds=60)
    await denials.settle()
    await denials.settle()

    assert (await one_by_one(database), await counts(database)) == (5, [45])


async def test_five_or_fewer_leave_no_count(
    database: Database, denials: Denials, clock: StandingClock
) -> None:
    await refuse(denials, 5, ip="192.0.2.1")
    clock.advance(seconds=60)
    await denials.settle()

    assert (await one_by_one(database), await counts(database)) == (5, [])


async def test_the_next_minute_begins_anew(
    database: Database, denials: Denials, clock: StandingClock
) -> None:
    await refuse(denials, 7, ip="192.0.2.1")
    clock.advance(seconds=60)
    await refuse(denials, 8, ip="192.0.2.1")

    await denials.settle(all_of_them=True)

    assert (await one_by_one(database), await counts(database)) == (10, [2, 3])


async def test_whom_we_know_is_counted_apart_from_the_address(
    database: Database, denials: Denials
) -> None:
    await refuse(denials, 6, ip="192.0.2.1", actor="usr_1")
    await refuse(denials, 7, ip="192.0.2.1", actor="usr_2")
    await refuse(denials, 8, ip="192.0.2.1")

    await denials.settle(all_of_them=True)

    repeated = await rows(database, reason="repeated")
    assert [(row.get("actor"), row["count"]) for row in repeated] == [
        ("usr_1", 1),
        ("usr_2", 2),
        (None, 3),
    ]


async def test_guesses_at_many_accounts_are_those_of_one_address(
    database: Database, denials: Denials
) -> None:
    for number in range(20):
        guess = replace(a_refusal(ip="192.0.2.1"), actor=f"usr_{number}")  # whose it would be
        await denials.record(guess)

    await denials.settle(all_of_them=True)

    assert (await one_by_one(database), await counts(database)) == (5, [15])


async def test_whoever_comes_on_top_of_the_most_is_counted_together(
    database: Database, denials: Denials
) -> None:
    for number in range(20):
        await refuse(denials, 6, ip=f"192.0.2.{number}")
    assert await one_by_one(database) == 4 * 5  # three addresses, and everybody else

    await denials.settle(all_of_them=True)

    assert await counts(database) == [1, 1, 1, 17 * 6 - 5]


async def test_what_several_did_together_is_blamed_on_none_of_them(
    database: Database, denials: Denials
) -> None:
    for number in range(3):
        await refuse(denials, 1, ip=f"192.0.2.{number}")
    for number in range(10):
        await refuse(denials, 1, ip="192.0.2.9", actor=f"usr_{number}")

    await denials.settle(all_of_them=True)

    [counted] = await rows(database, reason="repeated")
    assert "actor" not in counted
    assert counted["count"] == 5


async def test_a_clock_that_is_set_back_begins_a_new_minute_and_loses_no_count(
    database: Database, denials: Denials, clock: StandingClock
) -> None:
    await refuse(denials, 7, ip="192.0.2.1")
    clock.advance(hours=-1)
    await refuse(denials, 7, ip="192.0.2.1")
    assert await one_by_one(database) == 10
    clock.advance(hours=-1)

    await denials.settle()

    assert await counts(database) == [2, 2]


@pytest.mark.slow
@pytest.mark.impatient
async def test_a_count_outlasts_a_log_that_is_down(
    database: Database, denials: Denials, clock: StandingClock
) -> None:
    await refuse(denials, 8, ip="192.0.2.1")
    clock.advance(seconds=60)
    async with stopped(database):
        await denials.settle()
        assert await counts(database) == []

    await denials.settle()

    assert set(await counts(database)) == {3}


@pytest.mark.slow
@pytest.mark.impatient
async def test_a_stop_does_not_wait_long_for_a_log_that_is_down(
    database: Database, log: Log, clock: StandingClock
) -> None:
    denials = Denials(log, clock=clock)
    addresses = [f"10.0.{number // 256}.{number % 256}" for number in range(BATCH + 1)]
    async with stopped(database):
        refusals = [a_refusal(ip=ip) for ip in addresses for _ in range(6)]
        await asyncio.gather(*map(denials.record, refusals))
        with captured_log() as lines:
            async with asyncio.timeout(4):
                await denials.settle(all_of_them=True)

    assert (lines.last["event"], lines.last["count"]) == ("denials_not_recorded", BATCH + 1)


async def test_an_ipv6_customer_is_one_address(database: Database, denials: Denials) -> None:
    for number in range(8):
        await refuse(denials, 1, ip=f"2001:db8:0:1::{number}")
    await refuse(denials, 1, ip="2001:db8:0:2::1")

    await denials.settle(all_of_them=True)

    assert (await one_by_one(database), await counts(database)) == (6, [3])


@pytest.mark.parametrize(
    ("ip", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:0:1::7", "2001:db8:0:1::/64"),
        ("2001:db8:0:1:ffff:ffff:ffff:ffff", "2001:db8:0:1::/64"),
        ("2001:db8:0:2::7", "2001:db8:0:2::/64"),
        ("unknown", "unknown"),
    ],
)
def test_what_stands_for_a_caller_is_the_address_or_the_network_of_64_bits(
    ip: str, network: str
) -> None:
    assert network_of(ip) == network


async def test_the_count_of_somebody_known_has_no_address_of_theirs(
    database: Database, denials: Denials
) -> None:
    await refuse(denials, 7, ip="192.0.2.1", actor="usr_1")
    await refuse(denials, 7, ip="192.0.2.2")

    await denials.settle(all_of_them=True)

    kept = await database.read(lambda tx: list(tx.scalars(sa.select(audit_personal.c.data))))
    assert sum("192.0.2.1" in data for data in kept) == 5
    assert sum("192.0.2.2" in data for data in kept) == 6
