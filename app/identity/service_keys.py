"""Service keys: what a backend shows, known to the database by their digest alone.

A key is ``rtk_live_<id>_<secret><checksum>``: the 26 characters of its ``key_…``, 43 of base62 (256
random bits), and the CRC-32 of all that, six more. The prefix is what secret scanners find, the
checksum spares them false alarms and us a look into the database.
"""

import hashlib
import hmac
import re
import secrets
import string
import zlib
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

import sqlalchemy as sa

from app.base.clock import Clock, from_unix_microseconds, to_unix_microseconds
from app.base.db import Database, metadata

PREFIX = "rtk_"

KeyScope = Literal["mint:on-behalf", "audit:read"]

KEY_SCOPES: dict[str, KeyScope] = {"mint": "mint:on-behalf", "audit:read": "audit:read"}
"""What a service key needs where a user needs the scope on the left; nothing else is for keys."""

KEY_SCOPE_MEANINGS: dict[KeyScope, str] = {
    "mint:on-behalf": "ask for tokens on behalf of end users, and see what they can be bound to",
    "audit:read": "read the audit log",
}

Fault = Literal[
    "service_key_malformed",
    "service_key_misplaced",
    "service_key_unknown",
    "service_key_revoked",
    "service_key_expired",
]

WHAT_TO_DO: dict[Fault, str] = {
    "service_key_malformed": "This is no complete service key. Copy it from rtk_ to its end.",
    "service_key_misplaced": "This service key belongs to another environment: rtk_sandbox_… is for"
    " the sandbox, rtk_live_… for tokens of OpenAI.",
    "service_key_unknown": "The service key is not valid. Ask the operator for another one.",
    "service_key_revoked": "The service key has been revoked. Ask the operator for another one.",
    "service_key_expired": "The service key has expired. Ask the operator for another one.",
}
"""What the caller is told. The last two are for those who hold the key, and for nobody else."""

USE_EVERY = timedelta(minutes=1)
"""How far the time of a key's last use may lie behind."""

_FORM = re.compile(
    r"(rtk_(?P<environment>live|sandbox)_(?P<id>[0-9A-HJKMNP-TV-Z]{26})_[0-9A-Za-z]{43})"
    r"(?P<checksum>[0-9A-Za-z]{6})"
)
_BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase

service_keys = sa.Table(
    "service_keys",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),  # key_…
    sa.Column("key_sha256", sa.LargeBinary(32), nullable=False),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("scopes", sa.String(255), nullable=False),  # separated by blanks
    sa.Column("profiles", sa.Text),  # names separated by blanks; null: all of the role `user`
    sa.Column("created_at", sa.BigInteger, nullable=False),  # Unix µs
    sa.Column("expires_at", sa.BigInteger, nullable=False),  # Unix µs
    sa.Column("revoked_at", sa.BigInteger),  # Unix µs
    sa.Column("successor_id", sa.String(40)),  # key_…, once it has been rotated
    sa.Column("last_used_at", sa.BigInteger),  # Unix µs; up to `USE_EVERY` behind
)


@dataclass(frozen=True, slots=True)
class ServiceKey:
    """What the database knows of a key."""

    id: str
    name: str
    scopes: frozenset[str]
    profiles: frozenset[str] | None
    """The only ones it may be used for; None for all that the role ``user`` may."""

    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None
    successor_id: str | None
    last_used_at: datetime | None
    key_sha256: bytes = field(repr=False)

    @classmethod
    def of(cls, row: sa.Row[Any]) -> "ServiceKey":
        """Read a row of the table `service_keys`."""
        return cls(
            id=row.id,
            name=row.name,
            scopes=frozenset(row.scopes.split()),
            profiles=None if row.profiles is None else frozenset(row.profiles.split()),
            created_at=from_unix_microseconds(row.created_at),
            expires_at=from_unix_microseconds(row.expires_at),
            revoked_at=_instant(row.revoked_at),
            successor_id=row.successor_id,
            last_used_at=_instant(row.last_used_at),
            key_sha256=row.key_sha256,
        )

    def fault(self, now: datetime) -> Fault | None:
        """Return why the key is not good at *now*, in the words of the log."""
        revoked = self.revoked_at is not None
        return standing_fault(now, revoked=revoked, expires_at=self.expires_at)


def standing_fault(now: datetime, *, revoked: bool, expires_at: datetime) -> Fault | None:
    """Return why a key of which this is known is not good at *now*."""
    if revoked:
        return "service_key_revoked"
    return "service_key_expired" if expires_at <= now else None


def write_key(key_id: str, *, environment: str) -> str:
    """Return a new secret for the key *key_id*: the text that its holder shows."""
    secret = "".join(secrets.choice(_BASE62) for _ in range(43))
    body = f"{PREFIX}{environment}_{key_id.removeprefix('key_')}_{secret}"
    return body + _checksum(body)


def read_key(text: str) -> tuple[str, str] | None:
    """Return environment and id of the key *text*, unless it is none, or was not copied whole."""
    form = _FORM.fullmatch(text)
    if form is None or _checksum(form[1]) != form["checksum"]:
        return None
    return form["environment"], f"key_{form['id']}"


def sha256_of(key: str) -> bytes:
    """Return the digest under which *key* is stored."""
    # Of 256 random bits a plain digest gives nothing away; a slow one is for passwords.
    return hashlib.sha256(key.encode()).digest()


class KeyRefused(Exception):
    """What was shown as a service key is not good.

    Args:
        fault: Why, in the words of the log.
        key: Which one it is, where its holder has shown all of it.
    """

    def __init__(self, fault: Fault, key: ServiceKey | None = None) -> None:
        self.fault = fault
        self.key = key
        super().__init__(fault)


class ServiceKeys:
    """Recognises the keys that callers show, and remembers which were used.

    Args:
        environment: ``live`` or ``sandbox``; a key of the other one is not looked up.
    """

    def __init__(self, *, database: Database, environment: str, clock: Clock) -> None:
        self._database = database
        self._environment = environment
        self._clock = clock
        self.used: dict[str, int] = {}
        """Keys whose last use is to be written down, and when that was, in Unix µs."""

    async def recognise(self, text: str) -> ServiceKey:
        """Return the key that *text* is.

        Args:
            text: Anything a stranger may have sent. Nothing is read for what we cannot have made.

        Raises:
            KeyRefused: It is none of ours, or not good any more.
            AuditUnavailable: The database is away.
        """
        parts = read_key(text)
        if parts is None:
            raise KeyRefused("service_key_malformed")
        environment, key_id = parts
        if environment != self._environment:
            raise KeyRefused("service_key_misplaced")
        wanted = service_keys.select().where(service_keys.c.id == key_id)
        row = await self._database.read(lambda tx: tx.execute(wanted).first())
        if row is None or not hmac.compare_digest(row.key_sha256, sha256_of(text)):
            raise KeyRefused("service_key_unknown")
        key, now = ServiceKey.of(row), self._clock()
        if fault := key.fault(now):
            raise KeyRefused(fault, key)
        if key.last_used_at is None or now - key.last_used_at >= USE_EVERY:
            self.used[key.id] = to_unix_microseconds(now)
        return key


def _checksum(body: str) -> str:
    """Return the CRC-32 of *body* in base62: six digits, the last one the lowest."""
    number, digits = zlib.crc32(body.encode()), ""
    for _ in range(6):
        number, digit = divmod(number, 62)
        digits = _BASE62[digit] + digits
    return digits


def _instant(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else from_unix_microseconds(microseconds)
