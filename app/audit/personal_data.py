"""Deleting personal data beside the chain, which stays whole."""

from collections.abc import Sequence

import sqlalchemy as sa

from app.audit.events import audit_personal


def delete_personal(tx: sa.Connection, *, event_ids: Sequence[str]) -> int:
    """Delete what is kept beside these events; return of how many there was something.

    SQLite overwrites it in the file, see `SqliteDatabase.connect`; what PostgreSQL does with it
    until the next vacuum is its own matter.
    """
    deleted = tx.execute(audit_personal.delete().where(audit_personal.c.event_id.in_(event_ids)))
    return deleted.rowcount
