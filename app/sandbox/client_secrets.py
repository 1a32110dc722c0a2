"""The client secrets that the sandbox has given out and still takes."""

import hashlib
import json
import secrets
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from app.sandbox.errors import incorrect_api_key

PREFIX = "ek_sandbox_"
MOST_BYTES = 64 * 1024 * 1024  # of sessions remembered; beyond, the oldest secrets are forgotten
_BYTES_PER_SECRET = 512  # what remembering one costs besides its session, about


@dataclass(slots=True)
class _Minted:
    session_json: str
    expires_at: int  # Unix seconds
    used: bool = False

    @property
    def size(self) -> int:
        return len(self.session_json) + _BYTES_PER_SECRET


class ClientSecrets:
    """Remembers each secret by its SHA-256 digest, with the session it is bound to.

    A secret opens any number of sessions until it expires. A dump of the memory gives none away.
    """

    def __init__(self) -> None:
        self._minted: OrderedDict[bytes, _Minted] = OrderedDict()
        self._bytes = 0

    def mint(
        self, session: Mapping[str, object], *, ttl_seconds: int, now: datetime
    ) -> tuple[str, int]:
        """Bind *session* to a new secret; return it, and the Unix second in which it expires."""
        value = PREFIX + secrets.token_hex(16)
        minted = _Minted(json.dumps(session), int(now.timestamp()) + ttl_seconds)
        self._minted[_digest(value)] = minted
        self._bytes += minted.size
        self._forget(now)
        return value, minted.expires_at

    def use(self, value: str, *, now: datetime, single_use: bool = False) -> dict[str, Any]:
        """Return the session that *value* is bound to.

        Raises:
            Refusal: The secret is not ours, has expired, or was forgotten; or it was used before,
                and *single_use* forbids that.
        """
        minted = self._minted.get(_digest(value))
        if minted is None or minted.expires_at <= now.timestamp() or (single_use and minted.used):
            raise incorrect_api_key(value)
        minted.used = True
        session: dict[str, Any] = json.loads(minted.session_json)
        return session

    def _forget(self, now: datetime) -> None:
        """Drop what has expired, oldest first, and whatever does not fit."""
        while self._minted:
            oldest = next(iter(self._minted.values()))
            if oldest.expires_at > now.timestamp() and self._bytes <= MOST_BYTES:
                return
            self._minted.popitem(last=False)
            self._bytes -= oldest.size


def _digest(value: str) -> bytes:
    return hashlib.sha256(value.encode()).digest()
