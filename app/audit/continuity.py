"""Whether the database is still the one that was written to, and has all that was written.

A PostgreSQL that failed over to a replica which lagged behind, a SQLite file that was put back from
a backup: the chain of such a database is whole, and its end is gone. So a process remembers a row
that has to be there, and before it writes over a new connection it looks for that row. What it
begins with is the newest checkpoint of the file, which stands outside of the database.
"""

from collections.abc import Iterable
from typing import NamedTuple

import sqlalchemy as sa
import structlog

from app.audit import chain
from app.audit.checkpoints import Authority, Checkpoint, PublicKey, Unreadable
from app.audit.events import audit_events
from app.base.db import Database, DatabaseFault

WHAT_TO_DO = (
    "put the right database back, or, if this one is meant, run:"
    ' realtime-tokens audit accept-rollback --reason "why"'
)


class RolledBack(DatabaseFault):
    """The database lacks a row that it had, or has another in its place."""


class Known(NamedTuple):
    """What has to be in the database."""

    head: chain.Head = chain.BEGINNING
    event_id: str | None = None  # appended after that row, where the database counts the rows
    at: int = 0  # when it became known, Unix µs


class Continuity:
    """What one process knows of the end of the log.

    Args:
        key: Signs what may explain that rows are gone; without it nothing does.
        newest: The newest checkpoint of the file; None where there is none.
    """

    def __init__(self, key: PublicKey | None = None, newest: Checkpoint | None = None) -> None:
        self._authority = Authority(*([key] if key else []))
        self.known = Known()
        if newest is not None:
            self.known = Known(newest.head, at=newest.at)
        self.fault: str | None = None
        """Why nothing is written; None while the database has what is known."""
        self._logger = structlog.get_logger(__name__)

    def confirm(self, known: chain.Head, row_hash: bytes | None, *, has_event: bool = True) -> bool:
        """Tell whether the database has what is known.

        Args:
            known: The row that was looked for. More may be known by now: others write meanwhile.
            row_hash: What the database has as the hash of that row.
            has_event: Whether it has the known event, where there is one.
        """
        if not has_event or (known.seq > 0 and row_hash != known.row_hash):
            return False
        self._set_fault(None)
        return True

    @property
    def explanations(self) -> str:
        """The statement that finds what may explain that something known is not there."""
        return (
            "SELECT signed, signature FROM audit_checkpoints"  # noqa: S608 - integers alone
            f" WHERE (kind = 'accepted' AND at >= {self.known.at})"
            f" OR (kind = 'pruned' AND seq >= {self.known.head.seq}) ORDER BY at DESC LIMIT 100"
        )

    def settle(self, explanations: Iterable[Iterable[object]]) -> None:
        """Take the newest of the *explanations* that holds in place of what is known.

        Raises:
            RolledBack: None holds.
        """
        for signed, signature in explanations:
            try:
                one = Checkpoint.read(signed, signature)
            except Unreadable:
                continue
            if self._authority.fault(one) is None and self._explains(one):
                self.known = Known(one.head, at=one.at)
                self._set_fault(None)
                return
        self._set_fault(
            f"the database does not have row {self.known.head.seq} of the log as it was, or not"
            f" what came after it; until that is settled nothing is written: {WHAT_TO_DO}"
        )
        raise RolledBack(self.fault)

    def _explains(self, one: Checkpoint) -> bool:
        """Tell so by what was signed: the columns beside it anybody may have changed."""
        if one.kind == "pruned":
            return one.seq >= self.known.head.seq
        return one.kind == "accepted" and one.at >= self.known.at

    def _set_fault(self, fault: str | None) -> None:
        if fault is not None and self.fault is None:
            self._logger.error("audit_log_rolled_back", reason=fault)
        elif fault is None and self.fault is not None:
            self._logger.warning("audit_log_goes_on", seq=self.known.head.seq)
        self.fault = fault

    async def look(self, database: Database) -> chain.Head:
        """See whether *database* has what is known; know its last row from then on, and return it.

        Raises:
            RolledBack: It has not.
            AuditUnavailable: It cannot be read.
        """
        return await database.read(self._look)

    def _look(self, tx: sa.Connection) -> chain.Head:
        c, known = audit_events.c, self.known
        newest = sa.select(c.seq, c.row_hash, c.recorded_at).order_by(c.seq.desc()).limit(1)
        row_hash = tx.scalar(sa.select(c.row_hash).where(c.seq == known.head.seq))
        event = sa.select(c.seq).where(c.event_id == known.event_id)
        has_event = known.event_id is None or tx.scalar(event) is not None
        if not self.confirm(known.head, row_hash, has_event=has_event):
            self.settle(tx.execute(sa.text(self.explanations)).all())
        if (row := tx.execute(newest).first()) is None:
            return chain.BEGINNING
        head = chain.Head(row.seq, row.row_hash)
        if self.known is known:  # else the writer was quicker, and knows more
            self.known = Known(head, at=max(row.recorded_at, known.at))
        return head
