"""Links to set another password: good once, for an hour, one at a time for each user.

The link carries a token, of which the database knows the digest alone.
"""

import hashlib
import re
import secrets
from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa

from app.base.db import metadata

LIFETIME = timedelta(hours=1)

_FORM = re.compile(r"rts_[A-Za-z0-9_-]{43}")

reset_links = sa.Table(
    "reset_links",
    metadata,
    sa.Column("user_id", sa.String(40), sa.ForeignKey("users.id"), primary_key=True),
    sa.Column("token_sha256", sa.LargeBinary(32), nullable=False, unique=True),
    sa.Column("expires_at", sa.BigInteger, nullable=False),  # Unix µs
)


@dataclass(frozen=True, slots=True)
class ResetLink:
    """What the database knows of a link; *expires_at* in Unix µs."""

    user_id: str
    expires_at: int


def token_in(text: str) -> str | None:
    """Return the token in *text*, which may be the token or the whole link."""
    _, _, token = text.strip().rpartition("#")
    return token if _FORM.fullmatch(token) else None


def issue(tx: sa.Connection, user_id: str, *, expires_at: int) -> str:
    """Return the token of a new link, which takes the place of an older one.

    The row of the user has to be locked: two at once would be in each other's way.
    """
    end(tx, user_id)
    token = f"rts_{secrets.token_urlsafe(32)}"
    row = {"user_id": user_id, "token_sha256": _sha256(token), "expires_at": expires_at}
    tx.execute(reset_links.insert(), row)
    return token


def find(tx: sa.Connection, token: str) -> ResetLink | None:
    """Return the link with this token, unless it has ended; it may have expired."""
    row = tx.execute(reset_links.select().where(_with(token))).first()
    return ResetLink(row.user_id, row.expires_at) if row else None


def use_up(tx: sa.Connection, token: str) -> bool:
    """End the link, and tell whether it was there to be used.

    Of any number that try, this one statement lets a single one through.
    """
    return tx.execute(reset_links.delete().where(_with(token))).rowcount == 1


def end(tx: sa.Connection, user_id: str) -> None:
    """End the link of a user, if there is one."""
    tx.execute(reset_links.delete().where(reset_links.c.user_id == user_id))


def _with(token: str) -> sa.ColumnElement[bool]:
    return reset_links.c.token_sha256 == _sha256(token)


def _sha256(token: str) -> bytes:
    # Of 256 random bits a plain digest gives nothing away; a slow one is for passwords.
    return hashlib.sha256(token.encode()).digest()
