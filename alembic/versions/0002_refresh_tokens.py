"""Add refresh tokens and an end to sign-ins. Safe while the previous release runs: it only adds.

A sign-in that the previous release writes meanwhile has no end and no scopes. It has no refresh
token either, so that it is good for its one access token.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("sign_ins", sa.Column("expires_at", sa.BigInteger))
    op.add_column("sign_ins", sa.Column("scopes", sa.String(255)))
    op.create_index("ix_sign_ins_expires_at", "sign_ins", ["expires_at"])
    op.create_table(
        "refresh_tokens",
        sa.Column("token_sha256", sa.LargeBinary(32), nullable=False),
        sa.Column("sign_in_id", sa.String(40), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("rotated_at", sa.BigInteger),
        sa.PrimaryKeyConstraint("token_sha256", name="pk_refresh_tokens"),
        sa.ForeignKeyConstraint(
            ["sign_in_id"],
            ["sign_ins.id"],
            name="fk_refresh_tokens_sign_in_id_sign_ins",
            ondelete="CASCADE",
        ),
    )
    op.create_index("ix_refresh_tokens_sign_in_id", "refresh_tokens", ["sign_in_id"])


def downgrade() -> None:
    op.drop_table("refresh_tokens")
    op.drop_index("ix_sign_ins_expires_at", "sign_ins")
    op.drop_column("sign_ins", "scopes")
    op.drop_column("sign_ins", "expires_at")
