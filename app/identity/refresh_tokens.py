"""Refresh tokens: opaque, good for one use, and known to the database by their digest alone.

Each use gives the next token of its family, which is the sign-in. A used one that comes back says
that two hold it, the owner and a thief; nobody can tell which is which, so the family ends (RFC
9700 section 4.14.2).
"""

import hashlib
import re
import secrets
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import sqlalchemy as sa

from app.base.db import metadata
from app.identity.users import User, sign_ins, users

GRACE = timedelta(seconds=10)
"""How long a used token may come back and is only refused: two tabs that asked at once, or a
request that was sent again. Later it is reuse."""

_FORM = re.compile(r"rtr_[A-Za-z0-9_-]{43}")  # 256 bits; scanners and our logs know the prefix

_GRACE_MICROSECONDS = GRACE // timedelta(microseconds=1)

Fault = Literal[
    "user_disabled",
    "sign_in_revoked",
    "sign_in_expired",
    "refresh_token_repeated",
    "refresh_token_reuse",
    "refresh_token_expired",
]

refresh_tokens = sa.Table(
    "refresh_tokens",
    metadata,
    sa.Column("token_sha256", sa.LargeBinary(32), primary_key=True),
    sa.Column(
        "sign_in_id",
        sa.String(40),
        sa.ForeignKey("sign_ins.id", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    sa.Column("created_at", sa.BigInteger, nullable=False),  # Unix µs
    sa.Column("expires_at", sa.BigInteger, nullable=False),  # Unix µs; when it stays unused
    sa.Column("rotated_at", sa.BigInteger),  # Unix µs; when it was used
)


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """What the database knows of a refresh token; instants in Unix µs."""

    token_sha256: bytes
    expires_at: int
    rotated_at: int | None
    sign_in_id: str
    sign_in_expires_at: int
    revoked_at: int | None
    scopes: frozenset[str]
    """What the sign-in was granted, whatever narrower access tokens came of it."""

    user: User

    def fault(self, now: int) -> Fault | None:
        """Return why the token is not good at *now*, in the words of the log."""
        if self.user.disabled_at is not None:
            return "user_disabled"
        if self.revoked_at is not None:
            return "sign_in_revoked"
        if self.sign_in_expires_at <= now:
            return "sign_in_expired"
        if self.rotated_at is not None:
            repeated = now - self.rotated_at <= _GRACE_MICROSECONDS
            return "refresh_token_repeated" if repeated else "refresh_token_reuse"
        return "refresh_token_expired" if self.expires_at <= now else None


def is_refresh_token(text: str) -> bool:
    """Tell whether *text* has the form of a refresh token."""
    return _FORM.fullmatch(text) is not None


def find(tx: sa.Connection, token: str) -> RefreshToken | None:
    """Return what is known of *token*, if it is one that we issued."""
    wanted = (
        sa.select(
            users,
            refresh_tokens.c.expires_at,
            refresh_tokens.c.rotated_at,
            sign_ins.c.id.label("sign_in_id"),
            sign_ins.c.expires_at.label("sign_in_expires_at"),
            sign_ins.c.revoked_at,
            sign_ins.c.scopes,
        )
        .join_from(refresh_tokens, sign_ins)
        .join(users)
        .where(refresh_tokens.c.token_sha256 == _sha256(token))
    )
    row = tx.execute(wanted).first()
    if row is None:
        return None
    return RefreshToken(
        token_sha256=_sha256(token),
        expires_at=row.expires_at,
        rotated_at=row.rotated_at,
        sign_in_id=row.sign_in_id,
        sign_in_expires_at=row.sign_in_expires_at,
        revoked_at=row.revoked_at,
        scopes=frozenset(row.scopes.split()),
        user=User.of(row),
    )


def issue(tx: sa.Connection, sign_in_id: str, *, now: int, expires_at: int) -> str:
    """Return a new token of the sign-in, of which the digest is stored; instants in Unix µs."""
    token = f"rtr_{secrets.token_urlsafe(32)}"
    row = {
        "token_sha256": _sha256(token),
        "sign_in_id": sign_in_id,
        "created_at": now,
        "expires_at": expires_at,
        "rotated_at": None,
    }
    tx.execute(refresh_tokens.insert(), row)
    return token


def use_up(tx: sa.Connection, token: RefreshToken, *, now: int) -> bool:
    """Mark *token* as used, and tell whether it still was there to be used.

    Of any number that try, this one statement lets a single one through. *now* is in Unix µs.
    """
    sign_in_stands = sa.exists().where(
        sign_ins.c.id == token.sign_in_id, sign_ins.c.revoked_at.is_(None)
    )
    unused = (
        (refresh_tokens.c.token_sha256 == token.token_sha256)
        & refresh_tokens.c.rotated_at.is_(None)
        & sign_in_stands
    )
    return tx.execute(refresh_tokens.update().where(unused).values(rotated_at=now)).rowcount == 1


def _sha256(token: str) -> bytes:
    # Of 256 random bits a plain digest gives nothing away; a slow one is for passwords.
    return hashlib.sha256(token.encode()).digest()
