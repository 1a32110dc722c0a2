"""Let the log be searched at any length, and count its hours. Safe while the previous release runs.

It only adds columns, indexes and tables, and replaces three indexes. Rows that the previous release
writes meanwhile into SQLite are not found by address; on PostgreSQL they are.

The rows of the log are computed anew for the columns and indexes. For each million of them that
takes about a minute, in which nobody gets a token.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

KIND = ("action", "outcome", "reason", "profile", "model_asked", "model_used")
GENERATED = ("sign_in", "upstream_request_id")
SOUGHT = (
    "target",
    "sign_in",
    "request_id",
    "upstream_request_id",
    "token_fingerprint",
)
REPLACED = ("actor", "action", "outcome")
MEMBER = {"sqlite": "json_extract({}, '$.{}')", "postgresql": "({}::jsonb ->> '{}')"}
LINE_FEED = {"sqlite": "char(10)", "postgresql": "chr(10)"}

INSERT = "INSERT INTO audit_personal (event_id, salt, data)"
VALUES = "VALUES (event ->> 'event_id', given.salt, given.personal)"
PLACED = (
    "INSERT INTO audit_personal (event_id, salt, data, seq)",
    "VALUES (event ->> 'event_id', given.salt, given.personal, head)",
)


def upgrade() -> None:
    dialect = op.get_bind().dialect.name
    member, line_feed = MEMBER[dialect].format, LINE_FEED[dialect]
    kind = f" || {line_feed} || ".join(f"coalesce({member('canon', name)}, '')" for name in KIND)
    computed = {name: member("canon", name) for name in GENERATED} | {"kind": kind}
    add_computed("audit_events", computed)
    for name in REPLACED:
        op.drop_index(f"ix_audit_events_{name}_seq", "audit_events")
    op.create_index("ix_audit_events_kind_seq", "audit_events", ["kind", "seq"])
    op.create_index("ix_audit_events_actor_kind_seq", "audit_events", ["actor", "kind", "seq"])
    add_index("audit_events", ["credential", "kind", "seq"], where="credential IS NOT NULL")
    for name in SOUGHT:
        add_index("audit_events", [name, "seq"], where=f"{name} IS NOT NULL")
    for outcome, columns in (("denied", ["attempt_id"]), ("requested", ["seq", "attempt_id"])):
        add_index("audit_events", columns, where=f"outcome = '{outcome}'", name=outcome)

    op.add_column("audit_personal", sa.Column("seq", sa.BigInteger))
    add_computed("audit_personal", {"ip": member("data", "ip")})
    with rewriting_personal(dialect):
        op.execute(
            "UPDATE audit_personal SET seq = (SELECT audit_events.seq FROM audit_events"
            " WHERE audit_events.event_id = audit_personal.event_id)"
        )
    add_index("audit_personal", ["ip", "seq"], where="ip IS NOT NULL")
    if dialect == "postgresql":
        rewrite_append({INSERT: PLACED[0], VALUES: PLACED[1]})

    op.create_table(
        "audit_rolled_up",
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("row_hash", sa.LargeBinary(32), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_audit_rolled_up"),
    )
    op.execute(
        sa.text("INSERT INTO audit_rolled_up (seq, row_hash) VALUES (0, :hash)").bindparams(
            hash=bytes(32)
        )
    )
    op.create_table(
        "audit_hours",
        sa.Column("hour", sa.BigInteger, nullable=False),
        sa.Column("first_seq", sa.BigInteger, nullable=False),
        sa.Column("last_seq", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("hour", name="pk_audit_hours"),
    )
    op.create_table(
        "audit_figures",
        sa.Column("dimension", sa.String(16), nullable=False),
        sa.Column("hour", sa.BigInteger, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("count", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("dimension", "hour", "name", "outcome", name="pk_audit_figures"),
    )


def add_computed(table: str, columns: dict[str, str]) -> None:
    """Add generated columns; at once, for PostgreSQL writes the table anew each time."""
    persisted = op.get_bind().dialect.name == "postgresql"
    storage = "STORED" if persisted else "VIRTUAL"
    parts = [
        f"ADD COLUMN {name} TEXT GENERATED ALWAYS AS ({text}) {storage}"
        for name, text in columns.items()
    ]
    for statement in [", ".join(parts)] if persisted else parts:
        op.execute(f"ALTER TABLE {table} {statement}")


def add_index(table: str, columns: list[str], *, where: str, name: str | None = None) -> None:
    """Add an index of the rows *where* something holds."""
    condition = sa.text(where)
    op.create_index(
        f"ix_{table}_{name or '_'.join(columns)}",
        table,
        columns,
        sqlite_where=condition,
        postgresql_where=condition,
    )


@contextmanager
def rewriting_personal(dialect: str) -> Iterator[None]:
    """Let personal data be updated, which a trigger forbids, and forbid it again."""
    name = "audit_personal_no_update"
    if dialect == "postgresql":
        op.execute(f"ALTER TABLE audit_personal DISABLE TRIGGER {name}")
        yield
        op.execute(f"ALTER TABLE audit_personal ENABLE TRIGGER {name}")
        return
    found = sa.text("SELECT sql FROM sqlite_master WHERE type = 'trigger' AND name = :name")
    trigger = op.get_bind().scalar(found, {"name": name})
    op.execute(f"DROP TRIGGER {name}")
    yield
    op.execute(trigger)


def rewrite_append(changes: dict[str, str]) -> None:
    """Replace parts of the function that appends, whatever else it says by now."""
    found = sa.text("SELECT pg_get_functiondef(to_regproc('audit_append'))")
    definition = op.get_bind().scalar(found)
    for before, after in changes.items():
        assert before in definition, "audit_append is not as migrations have made it"  # noqa: S101 - see there
        definition = definition.replace(before, after)
    op.get_bind().exec_driver_sql(definition)


def downgrade() -> None:
    dialect = op.get_bind().dialect.name
    for table in ("audit_figures", "audit_hours", "audit_rolled_up"):
        op.drop_table(table)
    if dialect == "postgresql":
        rewrite_append({PLACED[0]: INSERT, PLACED[1]: VALUES})
    op.drop_index("ix_audit_personal_ip_seq", "audit_personal")
    with_kind = ("kind_seq", "actor_kind_seq", "credential_kind_seq")
    for name in ("denied", "requested", *with_kind, *(f"{name}_seq" for name in SOUGHT)):
        op.drop_index(f"ix_audit_events_{name}", "audit_events")
    for name in ("ip", "seq"):
        op.drop_column("audit_personal", name)
    for name in ("kind", *GENERATED):
        op.drop_column("audit_events", name)
    for name in REPLACED:
        op.create_index(f"ix_audit_events_{name}_seq", "audit_events", [name, "seq"])
