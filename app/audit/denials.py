"""Rows for refusals, so that a flood of them does not become a flood of rows."""

from dataclasses import dataclass, replace

import structlog

from app.audit.log import Event, Log
from app.base.clock import Clock
from app.base.errors import AuditUnavailable
from app.base.ids import new_id

ROWS_PER_MINUTE = 5
"""Refusals of one caller that get a row of their own within a minute."""

KEYS = 10_000
"""Callers told apart at once; whoever comes on top of them is counted together."""

_WINDOW_SECONDS = 60


@dataclass(slots=True)
class _Window:
    began: float
    rows: int
    repeated: int
    last: Event


class Denials:
    """Writes the first five refusals of a caller in a minute, then counts, then writes the count.

    A refusal stands whether or not its row could be written: it is then in the server's log alone.
    """

    def __init__(self, log: Log, *, clock: Clock) -> None:
        self._log = log
        self._clock = clock
        self._windows: dict[str, _Window] = {}
        self._logger = structlog.get_logger(__name__)

    async def record(self, event: Event, *, key: str) -> None:
        """Write *event* down, or count it.

        Args:
            event: The refusal.
            key: Who was refused: a user's id, else an address.
        """
        now = self._clock().timestamp()
        if key not in self._windows and len(self._windows) >= KEYS:
            key = "*"
        window = self._windows.get(key)
        if window is not None and now - window.began >= _WINDOW_SECONDS:
            del self._windows[key]
            await self._write_count(window)
            window = None
        if window is None:
            window = self._windows[key] = _Window(began=now, rows=0, repeated=0, last=event)
        window.last = event
        if window.rows < ROWS_PER_MINUTE:
            window.rows += 1
            await self._write(event)
        else:
            window.repeated += 1

    async def settle(self, *, all_of_them: bool = False) -> None:
        """Write the counts of the minutes that are over, or of all of them at the end."""
        now = self._clock().timestamp()
        for key, window in list(self._windows.items()):
            if all_of_them or now - window.began >= _WINDOW_SECONDS:
                self._windows.pop(key, None)
                await self._write_count(window)

    async def _write_count(self, window: _Window) -> None:
        if window.repeated:
            await self._write(
                replace(
                    window.last, event_id=new_id("evt"), reason="repeated", count=window.repeated
                )
            )

    async def _write(self, event: Event) -> None:
        try:
            await self._log.record([event])
        except AuditUnavailable:
            self._logger.warning(
                "denial_not_recorded", action=event.action, reason=event.reason, actor=event.actor
            )
