"""Add checkpoints. Safe while the previous release runs: it only adds a table.

On PostgreSQL the functions that append with their owner's rights look for tables in their own
schema alone, and in the caller's temporary one last: a temporary table cannot take a table's place.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

WITH_OWNERS_RIGHTS = (
    "audit_append(text[], bigint[], bytea[], text[])",
    "audit_append_pending()",
)


def upgrade() -> None:
    op.create_table(
        "audit_checkpoints",
        sa.Column("at", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("signed", sa.Text, nullable=False),
        sa.Column("signature", sa.LargeBinary(64), nullable=False),
        sa.PrimaryKeyConstraint("at", name="pk_audit_checkpoints"),
    )
    op.create_index("ix_audit_checkpoints_kind_at", "audit_checkpoints", ["kind", "at"])
    op.create_index("ix_audit_checkpoints_seq", "audit_checkpoints", ["seq"])
    if op.get_bind().dialect.name == "postgresql":
        set_search_path("format('%I, pg_temp', current_schema())")


def downgrade() -> None:
    op.drop_table("audit_checkpoints")
    if op.get_bind().dialect.name == "postgresql":
        set_search_path("current_setting('search_path')")


def set_search_path(to: str) -> None:
    for function in WITH_OWNERS_RIGHTS:
        op.execute(f"""
            DO $$ BEGIN
                EXECUTE 'ALTER FUNCTION {function} SET search_path = ' || {to};
            END $$
        """)
