"""Passwords: their Argon2id hashes, computed off the event loop."""

import asyncio
import base64
import os
import threading
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError
from argon2.profiles import RFC_9106_LOW_MEMORY

from app.base.errors import Overloaded

T = TypeVar("T")

MAX_LENGTH = 256
"""Code points; NIST SP 800-63B-4 section 3.1.1.2 asks for at least 64."""

RECOMMENDED_HASHER = PasswordHasher.from_parameters(RFC_9106_LOW_MEMORY)
"""Argon2id with 64 MiB, 3 passes and 4 lanes: the second choice of RFC 9106 section 4, for where
2 GiB per sign-in is too much. It takes 0.1 to 0.2 s of processor time."""

_RETRY_AFTER_SECONDS = 5  # about what the default queue takes to empty on two cores


class Passwords:
    """Hashes and verifies passwords in threads of their own, so many at a time and no more.

    Args:
        threads: Hashes computed at once; each takes the hasher's memory (64 MiB by default).
        waiting: Further ones that may queue.
        hasher: Argon2 with its parameters.
    """

    def __init__(
        self, *, threads: int = 2, waiting: int = 64, hasher: PasswordHasher = RECOMMENDED_HASHER
    ) -> None:
        self._hasher = hasher
        self._nobodys_hash = _hash_of_no_password(hasher)
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="passwords")
        self._places = threading.BoundedSemaphore(threads + waiting)

    async def hash(self, password: str) -> str:
        """Return the hash of *password*, with its parameters and salt, to be stored as it is.

        Raises:
            Overloaded: Too many wait already; nothing has been computed.
        """
        octets = _octets(password)
        return await self._in_a_thread(lambda: self._hasher.hash(octets))

    async def verify(self, password: str, password_hash: str | None) -> bool:
        """Tell whether *password* is the one behind *password_hash*.

        Costs one hash whatever the answer, so that its duration does not tell which accounts
        exist.

        Args:
            password: Anything a stranger may have sent.
            password_hash: What ``hash`` returned; None when there is no such account.

        Raises:
            Overloaded: Too many wait already; nothing has been computed.
        """
        if password_hash is None or len(password) > MAX_LENGTH:
            # Normalizing takes quadratic time on some long texts, so those are not looked at.
            password, password_hash = "", self._nobodys_hash
        octets, expected = _octets(password), password_hash

        def matches() -> bool:
            try:
                return self._hasher.verify(expected, octets)
            except VerifyMismatchError:
                return False

        return await self._in_a_thread(matches)

    def needs_rehash(self, password_hash: str) -> bool:
        """Tell whether *password_hash* was made with other parameters than today's."""
        return self._hasher.check_needs_rehash(password_hash)

    def close(self) -> None:
        """Drop what waits, and return when what is being computed is done."""
        self._executor.shutdown(cancel_futures=True)

    async def _in_a_thread(self, work: Callable[[], T]) -> T:
        if not self._places.acquire(blocking=False):
            raise Overloaded(retry_after_seconds=_RETRY_AFTER_SECONDS)
        future = self._executor.submit(work)
        # The place is free when the work is done or dropped, not when the caller goes away.
        future.add_done_callback(lambda _: self._places.release())
        return await asyncio.wrap_future(future)


def _octets(password: str) -> bytes:
    """Return what is hashed: NFC (NIST SP 800-63B-4 section 3.1.1.2), in UTF-8.

    Lone surrogates pass, so that no exception carries the password; none was ever set.
    """
    return unicodedata.normalize("NFC", password).encode("utf-8", "surrogatepass")


def _hash_of_no_password(hasher: PasswordHasher) -> str:
    """Return a hash that costs as much to verify as any, and that nobody knows a password for."""
    salt, digest = (
        base64.b64encode(os.urandom(length)).rstrip(b"=").decode("ascii")
        for length in (hasher.salt_len, hasher.hash_len)
    )
    costs = f"m={hasher.memory_cost},t={hasher.time_cost},p={hasher.parallelism}"
    return f"$argon2id$v=19${costs}${salt}${digest}"
