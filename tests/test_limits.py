import pytest

from app.base.errors import QuotaExceeded, RateLimited
from app.base.limits import Allowance, Limits, MemoryWindows
from tests.clock import StandingClock

THREE = Allowance.per_minute("test", 3)


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
