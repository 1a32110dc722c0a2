import pytest

from app.base.errors import QuotaExceeded, RateLimited
from app.base.limits import MOST_WAITING, Allowance, Limits, MemoryWindows
from tests.clock import StandingClock

THREE = Allowance.per_minute("test", 3)
TEN_A_DAY = Allowance.per_day("a_day", 10)
GROWING = Allowance("growing", 2, 60, RateLimited, 1, 4)


async def test_a_window_moves_with_the_clock(clock: StandingClock) -> None:
    limits = Limits(MemoryWindows(clock))
    for _ in range(3):
        await limits.take(THREE, "alice")
        clock.advance(seconds=10)

    with pytest.raises(RateLimited) as caught:
        await limits.take(THREE, "alice")
    assert caught.value.retry_after_seconds == 30

    clock.advance(seconds=30)
    await limits.take(THREE, "alice")
    with pytest.raises(RateLimited):
        await limits.take(THREE, "alice")


async def test_a_refused_attempt_does_not_prolong_the_wait(clock: StandingClock) -> None:
    limits = Limits(MemoryWindows(clock))
    for _ in range(3):
        await limits.take(THREE, "alice")
    for _ in range(59):
        clock.advance(seconds=1)
        with pytest.raises(RateLimited):
            await limits.take(THREE, "alice")

    clock.advance(seconds=1)
    await limits.take(THREE, "alice")


async def test_callers_and_names_are_counted_apart(clock: StandingClock) -> None:
    limits = Limits(MemoryWindows(clock))
    for _ in range(3):
        await limits.take(THREE, "alice")

    await limits.take(THREE, "bob")
    await limits.take(Allowance.per_minute("other", 3), "alice")


async def test_a_day_has_its_own_refusal(clock: StandingClock) -> None:
    limits = Limits(MemoryWindows(clock))
    allowance = Allowance.per_day("test", 1)
    await limits.take(allowance, "alice")

    with pytest.raises(QuotaExceeded) as caught:
        await limits.take(allowance, "alice")

    assert caught.value.retry_after_seconds == 24 * 3600


async def test_windows_that_have_passed_are_forgotten(clock: StandingClock) -> None:
    windows = MemoryWindows(clock)
    limits = Limits(windows)
    for number in range(1_000):
        await limits.take(THREE, f"user {number}")
    clock.advance(seconds=61)

    for number in range(500):
        await limits.take(THREE, f"later {number}")

    assert len(windows._by_name["test"]) == 500


async def test_several_are_taken_all_or_none_and_the_longest_wait_is_told(
    clock: StandingClock,
) -> None:
    limits = Limits(MemoryWindows(clock))
    both = ((THREE, ("alice",)), (TEN_A_DAY, ("alice",)))
    for _ in range(3):
        await limits.take_all(*both)
    for _ in range(20):
        with pytest.raises(RateLimited):
            await limits.take_all(*both)

    for _ in range(7):  # of the ten, three are taken, and those that were refused are not
        await limits.take(TEN_A_DAY, "alice")
    with pytest.raises(QuotaExceeded) as caught:
        await limits.take_all(*both)
    assert caught.value.retry_after_seconds == 24 * 3600


async def test_waits_grow_up_to_the_longest_and_shrink_when_the_window_has_moved(
    clock: StandingClock,
) -> None:
    limits = Limits(MemoryWindows(clock))
    waits = []
    for _ in range(12):
        try:
            await limits.take(GROWING, "alice")
        except RateLimited as refusal:
            waits.append(refusal.retry_after_seconds)
            clock.advance(seconds=refusal.retry_after_seconds or 0)
    clock.advance(seconds=60)
    for _ in range(2):
        await limits.take(GROWING, "alice")

    assert waits == [1, 2, 4, 4, 4]


async def test_what_is_given_back_may_be_taken_again(clock: StandingClock) -> None:
    limits = Limits(MemoryWindows(clock))
    taking = (THREE, ("alice",))
    await limits.give_back(once=[taking], all_of=[taking])  # nothing is there yet
    for _ in range(3):
        await limits.take_all(taking)
    assert await limits.is_full(THREE, "alice")

    await limits.give_back(once=[taking])
    await limits.take_all(taking)
    assert await limits.is_full(THREE, "alice")

    await limits.give_back(all_of=[taking])
    for _ in range(3):
        await limits.take_all(taking)


async def test_a_note_is_not_refused_and_ends_where_it_is_full(clock: StandingClock) -> None:
    limits = Limits(MemoryWindows(clock))
    for _ in range(10):
        await limits.note(THREE, "alice")

    assert await limits.is_full(THREE, "alice")
    clock.advance(minutes=1)
    assert not await limits.is_full(THREE, "alice")


async def test_strangers_cannot_fill_the_memory(clock: StandingClock) -> None:
    windows = MemoryWindows(clock)
    for number in range(MOST_WAITING + 100):
        await windows.take([(GROWING, (str(number),))])

    kept = windows._by_name["growing"]
    assert len(kept) == MOST_WAITING
    assert ("99",) not in kept
    assert (str(MOST_WAITING),) in kept
