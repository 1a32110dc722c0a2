"""Add sign-ins by cookie, and when users last signed in. Safe while the previous release runs.

It only adds. Who signs in with the previous release meanwhile is not shown to have done so.
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.add_column("users", sa.Column("last_sign_in_at", sa.BigInteger))
    op.create_table(
        "browser_sign_ins",
        sa.Column("cookie_sha256", sa.LargeBinary(32), nullable=False),
        sa.Column("sign_in_id", sa.String(40), nullable=False),
        sa.Column("used_at", sa.BigInteger, nullable=False),
        sa.Column("password_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("cookie_sha256", name="pk_browser_sign_ins"),
        sa.ForeignKeyConstraint(
            ["sign_in_id"],
            ["sign_ins.id"],
            name="fk_browser_sign_ins_sign_in_id_sign_ins",
            ondelete="CASCADE",
        ),
        sa.UniqueConstraint("sign_in_id", name="uq_browser_sign_ins_sign_in_id"),
    )


def downgrade() -> None:
    op.drop_table("browser_sign_ins")
    op.drop_column("users", "last_sign_in_at")
