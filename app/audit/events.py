"""What is written down: the tables of the log, and how an event becomes a row."""

import os
from dataclasses import dataclass, field, fields
from typing import Any

import sqlalchemy as sa
from pydantic_core import to_json
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ColumnElement

from app.audit import chain
from app.base.db import metadata
from app.base.ids import new_id

_GENERATED = (
    "event_id",
    "attempt_id",
    "action",
    "outcome",
    "reason",
    "actor",
    "target",
    "credential",
    "request_id",
    "profile",
    "model_asked",
    "model_used",
    "token_fingerprint",
    "sign_in",
    "upstream_request_id",
)

KIND = ("action", "outcome", "reason", "profile", "model_asked", "model_used")
"""The members that make the kind of a row. Each has few values, and so have all together: a log of
millions of rows has some hundred kinds. Whichever of them a search asks for, it looks up the kinds
that fit, and takes the rows of each by index."""


class _Member(ColumnElement[str]):
    """A member of the JSON in a column, in the words of each database."""

    inherit_cache = True

    def __init__(self, column: str, name: str) -> None:
        self.column = column
        self.name = name


@compiles(_Member, "sqlite")
def _member_sqlite(element: _Member, _compiler: SQLCompiler, **_: Any) -> str:
    return f"json_extract({element.column}, '$.{element.name}')"


@compiles(_Member, "postgresql")
def _member_postgresql(element: _Member, _compiler: SQLCompiler, **_: Any) -> str:
    return f"({element.column}::jsonb ->> '{element.name}')"


class _Kind(ColumnElement[str]):
    """The members of `KIND` in one text, with a line feed between each two."""

    inherit_cache = True


@compiles(_Kind, "sqlite")
def _kind_sqlite(_element: _Kind, _compiler: SQLCompiler, **_: Any) -> str:
    return " || char(10) || ".join(f"coalesce(json_extract(canon, '$.{m}'), '')" for m in KIND)


@compiles(_Kind, "postgresql")
def _kind_postgresql(_element: _Kind, _compiler: SQLCompiler, **_: Any) -> str:
    return " || chr(10) || ".join(f"coalesce(canon::jsonb ->> '{m}', '')" for m in KIND)


def _from_canon(name: str) -> sa.Column[str]:
    # Computed from the hashed text, so that what is searched cannot drift from what is proved.
    return sa.Column(name, sa.Text, sa.Computed(_Member("canon", name)))


def _index_where_given(name: str, *more: str) -> sa.Index:
    """Return the index of a column that many rows leave empty, and perhaps *more* columns."""
    columns, given = (name, *more, "seq"), sa.text(f"{name} IS NOT NULL")
    return sa.Index(
        f"ix_audit_events_{'_'.join(columns)}",
        *columns,
        sqlite_where=given,
        postgresql_where=given,
    )


_SOUGHT = (
    "target",
    "sign_in",
    "request_id",
    "upstream_request_id",
    "token_fingerprint",
)

audit_events = sa.Table(
    "audit_events",
    metadata,
    sa.Column(
        "seq",
        sa.BigInteger().with_variant(sa.Integer, "sqlite"),
        primary_key=True,
        autoincrement=False,
    ),
    sa.Column("recorded_at", sa.BigInteger, nullable=False),  # Unix µs
    sa.Column("canon", sa.Text, nullable=False),  # compact JSON, hashed as it stands
    sa.Column("row_hash", sa.LargeBinary(32), nullable=False),
    *map(_from_canon, _GENERATED),
    sa.Column("kind", sa.Text, sa.Computed(_Kind())),
    sa.Index("uq_audit_events_event_id", "event_id", unique=True),
    sa.Index(
        "uq_audit_events_requested",
        "attempt_id",
        unique=True,
        sqlite_where=sa.text("outcome = 'requested'"),
        postgresql_where=sa.text("outcome = 'requested'"),
    ),
    sa.Index(
        "uq_audit_events_outcome",  # every attempt has exactly one
        "attempt_id",
        unique=True,
        sqlite_where=sa.text("outcome IN ('issued', 'failed', 'unknown')"),
        postgresql_where=sa.text("outcome IN ('issued', 'failed', 'unknown')"),
    ),
    sa.Index(
        "ix_audit_events_denied",  # the attempts that the two above leave out
        "attempt_id",
        sqlite_where=sa.text("outcome = 'denied'"),
        postgresql_where=sa.text("outcome = 'denied'"),
    ),
    sa.Index(
        "ix_audit_events_requested",  # with it the sweep reads no row that has its outcome
        "seq",
        "attempt_id",
        sqlite_where=sa.text("outcome = 'requested'"),
        postgresql_where=sa.text("outcome = 'requested'"),
    ),
    sa.Index("ix_audit_events_kind_seq", "kind", "seq"),
    sa.Index("ix_audit_events_actor_kind_seq", "actor", "kind", "seq"),
    _index_where_given("credential", "kind"),
    *map(_index_where_given, _SOUGHT),
)

audit_personal = sa.Table(
    "audit_personal",
    metadata,
    sa.Column("event_id", sa.String(40), primary_key=True),  # evt_…
    sa.Column("salt", sa.LargeBinary(16), nullable=False),
    sa.Column("data", sa.Text, nullable=False),  # compact JSON, as it was committed to
    sa.Column("seq", sa.BigInteger),  # of the row; None where an older release wrote it on SQLite
    sa.Column("ip", sa.Text, sa.Computed(_Member("data", "ip"))),
    sa.Index(
        "ix_audit_personal_ip_seq",
        "ip",
        "seq",
        sqlite_where=sa.text("ip IS NOT NULL"),
        postgresql_where=sa.text("ip IS NOT NULL"),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Personal:
    """What identifies a person; kept beside the chain, so that it can be erased."""

    ip: str | None = None
    user_agent: str | None = None
    email: str | None = None


@dataclass(slots=True, kw_only=True)  # frozen, it takes four times as long to make
class Event:
    """One row to be; never altered. Members left at ``None`` are not written.

    ``actor`` is who did it: a user's id, ``operator`` for the command line, or the pseudonym of the
    end user on whose behalf a backend asked; where there is none, the id of its service key.
    ``target`` is whom it was done to when that is somebody else, ``credential`` the id of what was
    shown (a ``jti``, ``sha256:…`` of a token without one, or that of a service key), ``sign_in``
    the sign-in that gave it.
    """

    action: str  # noun.verb
    outcome: str  # requested, then issued, failed or unknown; denied; succeeded
    reason: str | None = None
    attempt_id: str | None = None
    actor: str | None = None
    target: str | None = None
    credential: str | None = None
    sign_in: str | None = None
    request_id: str | None = None
    role: str | None = None
    scopes: str | None = None  # of a service key, separated by blanks
    profiles: str | None = None  # the only ones of a service key, separated by blanks
    successor: str | None = None  # of a service key that is rotated
    profile: str | None = None
    model_asked: str | None = None
    model_used: str | None = None
    shutdown_before: str | None = None  # YYYY-MM-DD, of the model that is the target
    shutdown_after: str | None = None
    transcription_model: str | None = None
    language: str | None = None
    ttl_seconds: int | None = None
    expires_at: int | None = None
    config_digest: str | None = None
    upstream_status: int | None = None
    upstream_code: str | None = None
    upstream_request_id: str | None = None
    upstream_session_id: str | None = None
    upstream_ms: int | None = None
    token_fingerprint: str | None = None
    count: int | None = None
    boundary_seq: int | None = None  # of the last row that was pruned, forgotten or accepted
    boundary_hash: str | None = None  # its row_hash, hex
    filters: str | None = None  # of what was exported; see `app.audit.matches.Filters.told`
    personal: Personal | None = None
    event_id: str = field(default_factory=lambda: new_id("evt"))


_PLAIN = tuple(f.name for f in fields(Event) if f.name not in {"personal", "event_id"})


@dataclass(frozen=True, slots=True)
class Written:
    """An event as it is stored: the text that is hashed, and what is kept beside it."""

    event_id: str
    canon: str
    salt: bytes | None
    personal: str | None


def write_out(event: Event, *, environment: str) -> Written:
    """Put *event* into the words in which it is stored.

    Args:
        event: What happened.
        environment: ``live`` or ``sandbox``; every row says it.
    """
    members: dict[str, Any] = {"event_id": event.event_id, "environment": environment}
    for name in _PLAIN:
        value = getattr(event, name)
        if value is not None:
            members[name] = value
    salt = personal = None
    if event.personal is not None:
        salt = os.urandom(16)
        personal = to_json(
            {
                "ip": event.personal.ip,
                "user_agent": event.personal.user_agent,
                "email": event.personal.email,
            }
        ).decode()
        members["personal"] = chain.commitment(salt, personal)
    return Written(event.event_id, to_json(members).decode(), salt, personal)
