"""Make the first tables. There is no previous release."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

GENERATED = (
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
)


def upgrade() -> None:
    op.create_table(
        "installation",
        sa.Column("environment", sa.String(16), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("environment", name="pk_installation"),
    )
    op.create_table(
        "users",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("email", sa.String(254), nullable=False),
        sa.Column("password_hash", sa.String(255), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("disabled_at", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_users"),
        sa.UniqueConstraint("email", name="uq_users_email"),
    )
    op.create_table(
        "sign_ins",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("user_id", sa.String(40), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("revoked_at", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_sign_ins"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_sign_ins_user_id_users"),
    )
    op.create_index("ix_sign_ins_user_id", "sign_ins", ["user_id"])
    op.create_table(
        "audit_personal",
        sa.Column("event_id", sa.String(40), nullable=False),
        sa.Column("salt", sa.LargeBinary(16), nullable=False),
        sa.Column("data", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("event_id", name="pk_audit_personal"),
    )
    op.create_table(
        "audit_events",
        sa.Column("seq", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("recorded_at", sa.BigInteger, nullable=False),
        sa.Column("canon", sa.Text, nullable=False),
        sa.Column("row_hash", sa.LargeBinary(32), nullable=False),
        *(
            sa.Column(
                name, sa.Text, sa.Computed(f"json_extract(canon, '$.{name}')", persisted=False)
            )
            for name in GENERATED
        ),
        sa.PrimaryKeyConstraint("seq", name="pk_audit_events"),
    )
    op.create_index("uq_audit_events_event_id", "audit_events", ["event_id"], unique=True)
    op.create_index(
        "uq_audit_events_requested",
        "audit_events",
        ["attempt_id"],
        unique=True,
        sqlite_where=sa.text("outcome = 'requested'"),
    )
    op.create_index(
        "uq_audit_events_outcome",
        "audit_events",
        ["attempt_id"],
        unique=True,
        sqlite_where=sa.text("outcome IN ('issued', 'failed', 'unknown')"),
    )
    for column in ("actor", "action", "outcome"):
        op.create_index(f"ix_audit_events_{column}_seq", "audit_events", [column, "seq"])

    # Append-only is the database's promise, not the application's.
    for verb in ("UPDATE", "DELETE"):
        op.execute(f"""
            CREATE TRIGGER audit_events_no_{verb.lower()} BEFORE {verb} ON audit_events
            BEGIN SELECT RAISE(ABORT, 'audit_events is append-only'); END
        """)
    op.execute("""
        CREATE TRIGGER audit_events_in_sequence BEFORE INSERT ON audit_events
        WHEN NEW.seq IS NOT (SELECT coalesce(max(seq), 0) + 1 FROM audit_events)
        BEGIN SELECT RAISE(ABORT, 'audit_events takes only the next seq'); END
    """)
    # INSERT OR REPLACE takes rows away without asking the DELETE trigger unless the connection
    # has recursive triggers on, so what it could replace is refused here.
    op.execute("""
        CREATE TRIGGER audit_events_no_replace BEFORE INSERT ON audit_events
        WHEN EXISTS (
            SELECT 1 FROM audit_events WHERE event_id = json_extract(NEW.canon, '$.event_id')
        ) OR EXISTS (
            SELECT 1 FROM audit_events
            WHERE attempt_id = json_extract(NEW.canon, '$.attempt_id')
            AND outcome = 'requested' AND json_extract(NEW.canon, '$.outcome') = 'requested'
        ) OR EXISTS (
            SELECT 1 FROM audit_events
            WHERE attempt_id = json_extract(NEW.canon, '$.attempt_id')
            AND outcome IN ('issued', 'failed', 'unknown')
            AND json_extract(NEW.canon, '$.outcome') IN ('issued', 'failed', 'unknown')
        )
        BEGIN SELECT RAISE(ABORT, 'audit_events has this event already'); END
    """)
    # Erasing a person deletes the row; the data of a row never changes.
    op.execute("""
        CREATE TRIGGER audit_personal_no_update BEFORE UPDATE ON audit_personal
        BEGIN SELECT RAISE(ABORT, 'audit_personal is written once'); END
    """)
    op.execute("""
        CREATE TRIGGER audit_personal_no_replace BEFORE INSERT ON audit_personal
        WHEN EXISTS (SELECT 1 FROM audit_personal WHERE event_id = NEW.event_id)
        BEGIN SELECT RAISE(ABORT, 'audit_personal is written once'); END
    """)


def downgrade() -> None:
    for table in ("audit_events", "audit_personal", "sign_ins", "users", "installation"):
        op.drop_table(table)
