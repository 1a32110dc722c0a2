"""Add users of external issuers. Safe while the previous release runs: it only adds a table."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "external_users",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("issuer", sa.String(255), nullable=False),
        sa.Column("subject", sa.String(255), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("disabled_at", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_external_users"),
        sa.UniqueConstraint("issuer", "subject", name="uq_external_users_issuer_subject"),
    )


def downgrade() -> None:
    op.drop_table("external_users")
