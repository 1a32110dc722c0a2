"""Whose token it is that somebody has found."""

from collections.abc import Mapping
from typing import Any

from pydantic import SecretStr

from app.audit.events import Event
from app.audit.log import Log
from app.audit.matches import Filters
from app.audit.search import Entry, Search
from app.minting.mint import keyed

ACTION = "client_secret.look_up"


NOT_OURS = (
    "No row has this token: it was minted elsewhere, or under another SECRET_KEY, or its rows were"
    " taken out of the log."
)


class TokenLookup:
    """Finds the mint that a client secret came from. The secret itself is neither kept nor shown.

    Args:
        fingerprint_key: Keys the digest under which the log knows a client secret.
    """

    def __init__(self, *, fingerprint_key: bytes, search: Search, log: Log) -> None:
        self._fingerprint_key = fingerprint_key
        self._search = search
        self._log = log

    async def find(self, value: SecretStr, *, by: Mapping[str, Any]) -> list[Entry]:
        """Return the rows of the mint, oldest first; none when no row has this secret.

        `NOT_OURS` says what that means.

        Args:
            value: What was found, with or without blanks around it.
            by: Who asks, as members of `Event`. Whatever comes of it, there is a row that says so.

        Raises:
            AuditUnavailable: The log cannot be read or written; nothing is told.
        """
        fingerprint = keyed(self._fingerprint_key, value.get_secret_value().strip())
        page = await self._search.page(Filters(token_fingerprint=fingerprint), limit=1)
        found = page.entries[0].members["attempt_id"] if page.entries else None
        reason = None if found else "not_found"
        event = Event(action=ACTION, outcome="succeeded", reason=reason, target=found, **by)
        await self._log.record([event])
        return await self._search.attempt(found) if found else []
