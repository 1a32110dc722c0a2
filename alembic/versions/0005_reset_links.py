"""Add links to set a password. Safe while the previous release runs: it only adds.

What the previous release changes meanwhile, a password or a disabled account, does not end a link.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "reset_links",
        sa.Column("user_id", sa.String(40), nullable=False),
        sa.Column("token_sha256", sa.LargeBinary(32), nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("user_id", name="pk_reset_links"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_reset_links_user_id_users"),
        sa.UniqueConstraint("token_sha256", name="uq_reset_links_token_sha256"),
    )


def downgrade() -> None:
    op.drop_table("reset_links")
