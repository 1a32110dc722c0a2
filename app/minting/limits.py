"""How many client secrets one user may ask for."""

from app.base.limits import Allowance, Limits
from app.identity.callers import Caller


class MintLimits:
    """The allowances of a user: any minute, and any 24 hours."""

    def __init__(self, limits: Limits, *, per_minute: int, per_day: int) -> None:
        self._limits = limits
        self._per_minute = Allowance.per_minute("mints_per_user_per_minute", per_minute)
        self._per_day = Allowance.per_day("mints_per_user_per_day", per_day)

    async def take(self, caller: Caller) -> None:
        """Count one more mint of *caller*.

        Raises:
            RateLimited: More than the minute allows.
            QuotaExceeded: More than the day allows.
        """
        who = (caller.user_id,)
        await self._limits.take_all((self._per_minute, who), (self._per_day, who))
