"""Deleting personal data beside the chain, which stays whole."""

from collections.abc import Sequence

import sqlalchemy as sa

from app.audit.events import audit_personal


def delete_personal(tx: sa.Connection, *, event_ids: Sequence[str]) -> int:
    """Delete what is kept beside these events; return of how many there was something.

    SQLite overwrites it in the file (`secure_delete`); what PostgreSQL does with it until the next
    vacuum is its own matter.
    """
    on_sqlite = tx.dialect.name == "sqlite"
    if on_sqlite:
        tx.exec_driver_sql("PRAGMA secure_delete = ON")
    deleted = tx.execute(audit_personal.delete().where(audit_personal.c.event_id.in_(event_ids)))
    if on_sqlite:
        tx.exec_driver_sql("PRAGMA secure_delete = OFF")
    return deleted.rowcount
