"""Rows for refusals, so that a flood of them does not become a flood of rows."""

import ipaddress
from dataclasses import dataclass

import structlog

from app.audit.events import Event, Personal
from app.audit.log import BATCH, Log
from app.base.clock import Clock
from app.base.errors import AuditUnavailable
from app.base.ids import is_id

ROWS_PER_MINUTE = 5
"""Refusals of one caller that get a row of their own within a minute."""

MOST_WINDOWS = 10_000
"""Callers told apart at once; whoever comes on top of them is counted together."""

WINDOW_SECONDS = 60

_EVERYBODY_ELSE = "*"


@dataclass(slots=True)
class _Window:
    began: float
    rows: int
    repeated: int
    actor: str | None  # known when the caller is told apart by their id
    ip: str | None


class Denials:
    """Writes the first five refusals of a caller in a minute, then counts, then writes the count.

    A refusal stands whether or not its row could be written: it is then in the server's log alone.
    """

    def __init__(self, log: Log, *, clock: Clock, most_windows: int = MOST_WINDOWS) -> None:
        self._log = log
        self._clock = clock
        self._most_windows = most_windows
        self._windows: dict[str, _Window] = {}
        self._over: list[_Window] = []  # past their minute, with a count that is not yet written
        self._logger = structlog.get_logger(__name__)

    async def record(self, event: Event) -> None:
        """Write *event* down, or count it.

        It counts for its actor once they have shown who they are, else for the address: whoever
        guesses at many accounts is one caller. So is a service key, whomever it speaks for.
        """
        ip = event.personal.ip if event.personal else None
        actor, known = event.actor, event.sign_in or event.credential
        if event.credential and is_id(event.credential, "key"):
            actor = event.credential
        key = (actor if known else network_of(ip) if ip else None) or _EVERYBODY_ELSE
        if key not in self._windows and len(self._windows) >= self._most_windows:
            key = _EVERYBODY_ELSE
        now = self._clock().timestamp()
        window = self._windows.get(key)
        if window is not None and not 0 <= now - window.began < WINDOW_SECONDS:
            self._put_by(window)
            window = None
        if window is None:
            shared = key == _EVERYBODY_ELSE
            window = self._windows[key] = _Window(
                began=now, rows=0, repeated=0, actor=actor, ip=None if shared else ip
            )
        if window.actor != actor:
            window.actor = None  # an address from which several were refused
        if window.rows >= ROWS_PER_MINUTE:
            window.repeated += 1
            return
        window.rows += 1
        try:
            await self._log.record([event])
        except AuditUnavailable:
            self._logger.warning(
                "denial_not_recorded", action=event.action, reason=event.reason, actor=event.actor
            )

    async def settle(self, *, all_of_them: bool = False) -> None:
        """Write the counts of the minutes that are over, or of all of them at the end.

        What cannot be written now is kept for the next time; at the end it goes to the server's
        log.
        """
        now = self._clock().timestamp()
        for key, window in list(self._windows.items()):
            if all_of_them or not 0 <= now - window.began < WINDOW_SECONDS:
                self._put_by(self._windows.pop(key))
        while self._over:
            batch = self._over[:BATCH]
            try:
                await self._log.record([_count(window) for window in batch])
            except AuditUnavailable:
                if all_of_them:
                    total = sum(window.repeated for window in self._over)
                    self._logger.warning("denials_not_recorded", count=total)
                return
            del self._over[: len(batch)]

    def _put_by(self, window: _Window) -> None:
        """Keep the count of *window* until it is written."""
        if not window.repeated:
            return
        if len(self._over) <= self._most_windows:
            self._over.append(window)
            return
        # The log has been down for long, and a flood goes on: the newest share one row.
        shared = self._over[-1]
        shared.repeated += window.repeated
        shared.actor = shared.ip = None


def _count(window: _Window) -> Event:
    """Return the row that stands for what *window* has only counted."""
    return Event(
        action="request.deny",
        outcome="denied",
        reason="repeated",
        actor=window.actor,
        count=window.repeated,
        # Of whoever is known the first rows have it; what comes a minute later would have it even
        # when they were erased meanwhile.
        personal=Personal(ip=None if window.actor else window.ip),
    )


def network_of(ip: str) -> str:
    """Return what stands for a caller at *ip*: an IPv6 customer has at least a /64 to themselves.

    Args:
        ip: An address, or any other text that names where a request came from.
    """
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return ip
    if address.version == 4:  # noqa: PLR2004 - the version is the name
        return ip
    return str(ipaddress.ip_network((address, 64), strict=False))
