"""Reading the log in tests."""

import json
from typing import Any

import sqlalchemy as sa

from app.audit.events import audit_events
from app.base.db import Database


async def rows(database: Database, **members: object) -> list[dict[str, Any]]:
    """Return the rows that have these members, oldest first."""
    wanted = sa.select(audit_events.c.canon).order_by(audit_events.c.seq)
    texts = await database.read(lambda tx: tx.scalars(wanted).all())
    return [row for row in map(json.loads, texts) if members.items() <= row.items()]


async def outcomes(database: Database) -> list[str]:
    """Return what became of every mint, in order of the rows."""
    return [row["outcome"] for row in await rows(database, action="client_secret.mint")]
