"""Add what OpenAI's list of models says. Safe while the previous release runs: it only adds."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.create_table(
        "listed_models",
        sa.Column("id", sa.String(256), nullable=False),
        sa.Column("shutdown_date", sa.String(10), nullable=True),
        sa.Column("said_at", sa.BigInteger, nullable=False),
        sa.Column("doubted_at", sa.BigInteger, nullable=True),
        sa.Column("listed_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_listed_models"),
    )
    model_look = op.create_table(
        "model_look",
        sa.Column("id", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("tried_at", sa.BigInteger, nullable=True),
        sa.Column("succeeded_at", sa.BigInteger, nullable=True),
        sa.Column("problem", sa.String(64), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_model_look"),
    )
    op.execute(model_look.insert().values(id=1))


def downgrade() -> None:
    op.drop_table("model_look")
    op.drop_table("listed_models")
