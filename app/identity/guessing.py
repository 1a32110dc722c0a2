"""Slowing down who guesses, without locking out the owner of what is guessed."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from app.audit.denials import network_of
from app.base.clock import Clock
from app.base.errors import Overloaded, Problem, RateLimited
from app.base.limits import Allowance, Full, Limits

_HOUR, _DAY = 60 * 60, 24 * 60 * 60  # seconds

LONGEST_WAIT_SECONDS = 15 * 60
"""Where waits stop to grow."""

WARY_AFTER = 100
"""Wrong passwords for one account within a day, from wherever they came, after which an address has
a single try before it has to wait; NIST SP 800-63B-4 section 3.2.2 names this figure."""

WARY_FIRST_WAIT_SECONDS = 60


@dataclass(slots=True)
class Guess:
    """A password that is being checked."""

    right: bool = False


class PasswordGuesses:
    """Counts wrong passwords, and makes who has given some wait before the next.

    An attempt counts as wrong until it is known to be right, so that many at once gain nothing.
    What is counted is the account as it was typed: one that does not exist is guarded like others.

    * One account from one address: some are free, then each wait is twice as long as the last.
    * One address, whatever the account: likewise, with more that are free.
    * One account, from wherever: nobody waits for what others did, for that would lock the owner
      out. But after many failures each address has one try that is free instead of some.
    * All together: a ceiling, because each check costs processor time.

    Args:
        limits: What counts.
        per_account: Failures for one account from one address that are free, in a day.
        per_address: Failures from one address that are free, in an hour.
        attempts_per_address: Attempts of any kind from one address in a minute.
        checks: Passwords checked in a minute, for everybody.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        per_account: int,
        per_address: int,
        attempts_per_address: int,
        checks: int,
    ) -> None:
        self._limits = limits
        name = "sign_in_failures_per_account"
        longest = LONGEST_WAIT_SECONDS
        self._usual = Allowance(name, per_account, _DAY, RateLimited, 1, longest)
        self._wary = Allowance(name, 1, _DAY, RateLimited, WARY_FIRST_WAIT_SECONDS, longest)
        self._address = Allowance(
            "sign_in_failures_per_address", per_address, _HOUR, RateLimited, 1, longest
        )
        self._account = Allowance("sign_in_failures_anywhere", WARY_AFTER, _DAY, RateLimited)
        self._attempts = Allowance.per_minute(
            "sign_ins_per_address_per_minute", attempts_per_address
        )
        self._checks = Allowance.per_minute(
            "password_checks_per_minute", checks, refusal=Overloaded
        )

    async def attempt(self, ip: str | None) -> None:
        """Let an address try something that is not a password: a token too long to be guessed.

        Raises:
            RateLimited: Too many attempts from this address.
        """
        await self._limits.take(self._attempts, _network(ip))

    @asynccontextmanager
    async def guess(self, account: str, ip: str | None) -> AsyncIterator[Guess]:
        """Let a password be checked inside, and be told whether it was right.

        Whatever is refused in there instead was no guess, and is not held against anybody.

        Args:
            account: Whose, as it was typed, in lower case.
            ip: Where the attempt comes from.

        Raises:
            RateLimited: This address has to wait.
            Overloaded: Too many passwords are being checked, of all accounts together.
        """
        wary = await self._limits.is_full(self._account, account)
        network = _network(ip)
        pair = (self._wary if wary else self._usual, (account, network))
        address = (self._address, (network,))
        await self._limits.take_all((self._attempts, (network,)), pair, address, (self._checks, ()))
        guess = Guess()
        try:
            yield guess
        except Problem:
            await self._limits.give_back(once=[pair, address])
            raise
        if guess.right:
            await self._limits.give_back(once=[address], all_of=[pair])
        else:
            await self._limits.note(self._account, account)


class BadCredentials:
    """Does not listen for a while to an address that has shown too many bad credentials.

    Failures alone are counted, so a network of many honest users is not hurt. What is counted may
    be shared between processes; whom not to listen to is remembered in each, so that looking costs
    nothing. A process learns it from the first bad credential beyond the limit.
    """

    def __init__(self, limits: Limits, *, per_minute: int, clock: Clock) -> None:
        self._limits = limits
        self._allowance = Allowance.per_minute("bad_credentials_per_address_per_minute", per_minute)
        self._clock = clock
        self._until: dict[str, float] = {}  # Unix seconds, by network

    def check(self, ip: str | None) -> None:
        """See that credentials from this address are looked at.

        Raises:
            RateLimited: They are not, for a while.
        """
        if not self._until:
            return
        now = self._clock().timestamp()
        wait = self._until.get(_network(ip), now) - now
        if wait > 0:
            self._limits.refuse(Full(self._allowance, wait))

    async def count(self, ip: str | None) -> None:
        """Count one more bad credential.

        Raises:
            RateLimited: It is one too many.
        """
        network = _network(ip)
        try:
            await self._limits.take(self._allowance, network)
        except RateLimited as refusal:
            now = self._clock().timestamp()
            self._until = {name: until for name, until in self._until.items() if until > now}
            self._until[network] = now + (refusal.retry_after_seconds or 0)
            raise


def _network(ip: str | None) -> str:
    return network_of(ip or "unknown")
