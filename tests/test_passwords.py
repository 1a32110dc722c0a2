"""Passwords, with real Argon2 at its cheapest; what an attempt costs is counted, not timed."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Literal

import pytest
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from app.base.errors import Overloaded
from app.identity.passwords import Passwords

PASSWORD = "correct horse battery staple"
COMPOSED = "\u00c5ngstr\u00f6m \u00c5ngstr\u00f6m \u00c5ngstr\u00f6m"
DECOMPOSED = "A\u030angstro\u0308m A\u030angstro\u0308m A\u030angstro\u0308m"


class CountingHasher(PasswordHasher):
    """Counts what is computed, remembers on which threads, and can be made to wait."""

    def __init__(self) -> None:
        super().__init__(time_cost=1, memory_cost=8, parallelism=1)
        self.computed = 0
        self.waiting = 0
        self.threads: set[int] = set()
        self.started = threading.Event()
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def hash(self, password: str | bytes, *, salt: bytes | None = None) -> str:
        self._compute()
        return super().hash(password, salt=salt)

    def verify(self, hash: str | bytes, password: str | bytes) -> Literal[True]:  # noqa: A002 - argon2's name
        self._compute()
        return super().verify(hash, password)

    def _compute(self) -> None:
        self.started.set()
        self.waiting += 1
        self.may_go_on.wait(10)
        self.waiting -= 1
        self.computed += 1
        self.threads.add(threading.get_ident())


@pytest.fixture
def hasher() -> CountingHasher:
    return CountingHasher()


@pytest.fixture
def passwords(hasher: CountingHasher) -> Iterator[Passwords]:
    passwords = Passwords(threads=1, waiting=2, hasher=hasher)
    yield passwords
    hasher.may_go_on.set()
    passwords.close()


async def test_a_password_opens_its_own_hash_and_no_other(passwords: Passwords) -> None:
    stored = await passwords.hash(PASSWORD)

    assert await passwords.verify(PASSWORD, stored)
    assert not await passwords.verify(PASSWORD + " ", stored)
    assert not await passwords.verify(PASSWORD.title(), stored)
    assert not await passwords.verify("", stored)


async def test_one_password_hashes_differently_each_time(passwords: Passwords) -> None:
    assert await passwords.hash(PASSWORD) != await passwords.hash(PASSWORD)


async def test_both_spellings_of_an_accent_are_one_password(passwords: Passwords) -> None:
    assert COMPOSED != DECOMPOSED

    assert await passwords.verify(DECOMPOSED, await passwords.hash(COMPOSED))
    assert await passwords.verify(COMPOSED, await passwords.hash(DECOMPOSED))


async def test_compatibility_characters_stay_apart(passwords: Passwords) -> None:
    assert not await passwords.verify(
        "squared x2 and more", await passwords.hash("squared x² and more")
    )


async def test_what_follows_a_nul_counts(passwords: Passwords) -> None:
    assert not await passwords.verify("x" * 20 + "\0one", await passwords.hash("x" * 20 + "\0two"))


@pytest.mark.parametrize("attempt", ["right", "wrong", "no account", "too long", "surrogate"])
async def test_an_attempt_costs_one_hash_whatever_is_wrong_with_it(
    passwords: Passwords, hasher: CountingHasher, attempt: str
) -> None:
    stored = await passwords.hash(PASSWORD)
    password, password_hash = {
        "right": (PASSWORD, stored),
        "wrong": ("x" * 20, stored),
        "no account": (PASSWORD, None),
        "too long": ("x" * 257, stored),
        "surrogate": (PASSWORD + "\ud800", stored),
    }[attempt]
    before = hasher.computed

    right = await passwords.verify(password, password_hash)

    assert right == (attempt == "right")
    assert hasher.computed == before + 1


async def test_the_hash_of_a_missing_account_costs_as_much_as_a_real_one(
    passwords: Passwords, hasher: CountingHasher
) -> None:
    assert not passwords.needs_rehash(passwords._nobodys_hash)
    assert not await passwords.verify("", None)


async def test_even_the_right_password_is_refused_beyond_256_characters(
    passwords: Passwords,
) -> None:
    too_long = "x" * 257

    assert not await passwords.verify(too_long, await passwords.hash(too_long))


async def test_hashes_are_computed_off_the_event_loop(
    passwords: Passwords, hasher: CountingHasher
) -> None:
    await passwords.verify(PASSWORD, await passwords.hash(PASSWORD))

    assert threading.get_ident() not in hasher.threads


async def blocked(passwords: Passwords, hasher: CountingHasher) -> list[asyncio.Task[bool]]:
    """Fill the one thread and the two waiting places, and let nothing move."""
    hasher.started.clear()
    hasher.may_go_on.clear()
    tasks = [asyncio.create_task(passwords.verify(PASSWORD, None)) for _ in range(3)]
    await asyncio.to_thread(hasher.started.wait, 10)
    return tasks


async def test_one_too_many_is_refused_before_any_work(
    passwords: Passwords, hasher: CountingHasher
) -> None:
    waiting = await blocked(passwords, hasher)

    with pytest.raises(Overloaded) as refusal:
        await passwords.verify(PASSWORD, None)
    with pytest.raises(Overloaded):
        await passwords.hash(PASSWORD)

    assert refusal.value.retry_after_seconds == 5
    hasher.may_go_on.set()
    assert await asyncio.gather(*waiting) == [False] * 3
    assert hasher.computed == 3


async def test_places_become_free_again(passwords: Passwords, hasher: CountingHasher) -> None:
    for _ in range(3):
        waiting = await blocked(passwords, hasher)
        hasher.may_go_on.set()
        await asyncio.gather(*waiting)

    assert hasher.computed == 9


async def test_one_who_leaves_the_queue_frees_a_place_at_once(
    passwords: Passwords, hasher: CountingHasher
) -> None:
    waiting = await blocked(passwords, hasher)
    waiting[-1].cancel()
    await asyncio.wait([waiting[-1]])

    late = asyncio.create_task(passwords.verify(PASSWORD, None))
    await asyncio.sleep(0)

    hasher.may_go_on.set()
    assert await asyncio.gather(*waiting[:-1], late) == [False] * 3
    assert hasher.computed == 3


async def test_one_who_leaves_a_running_hash_keeps_its_place_until_it_is_done(
    passwords: Passwords, hasher: CountingHasher
) -> None:
    waiting = await blocked(passwords, hasher)
    waiting[0].cancel()
    await asyncio.wait([waiting[0]])

    with pytest.raises(Overloaded):
        await passwords.verify(PASSWORD, None)


async def test_a_damaged_hash_is_an_error_that_tells_neither_hash_nor_password(
    passwords: Passwords,
) -> None:
    stored = await passwords.hash(PASSWORD)

    for damaged in (stored[:-1] + "!", stored.removeprefix("$argon2id"), "plain"):
        with pytest.raises((VerificationError, InvalidHashError)) as error:
            await passwords.verify(PASSWORD, damaged)

        assert damaged not in repr(error.value)
        assert PASSWORD not in repr(error.value)


async def test_hashes_with_other_parameters_ask_to_be_made_anew(passwords: Passwords) -> None:
    dearer = PasswordHasher(time_cost=2, memory_cost=8, parallelism=1)

    assert not passwords.needs_rehash(await passwords.hash(PASSWORD))
    assert passwords.needs_rehash(dearer.hash(PASSWORD))


async def test_the_default_is_the_second_choice_of_rfc_9106() -> None:
    passwords = Passwords()

    stored = await passwords.hash(PASSWORD)

    passwords.close()
    assert stored.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
