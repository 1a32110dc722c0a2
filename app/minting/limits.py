"""How many client secrets one user may ask for, and one service key for all of its users."""

from app.base.limits import Allowance, Limits
from app.identity.callers import Caller


class MintLimits:
    """The allowances of a user: any minute, and any 24 hours; and of a service key: any minute."""

    def __init__(
        self, limits: Limits, *, per_minute: int, per_day: int, per_key_per_minute: int
    ) -> None:
        self._limits = limits
        self._per_minute = Allowance.per_minute("mints_per_user_per_minute", per_minute)
        self._per_day = Allowance.per_day("mints_per_user_per_day", per_day)
        self._per_key_per_minute = Allowance.per_minute(
            "mints_per_service_key_per_minute", per_key_per_minute
        )

    async def take(self, caller: Caller) -> None:
        """Count one more mint of *caller*.

        Raises:
            RateLimited: More than the minute allows the user, or the service key.
            QuotaExceeded: More than the day allows.
        """
        who = (caller.user_id,)
        takings = [(self._per_minute, who), (self._per_day, who)]
        if caller.key is not None:
            takings.append((self._per_key_per_minute, (caller.key.id,)))
        await self._limits.take_all(*takings)
