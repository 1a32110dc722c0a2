"""Whether the money at OpenAI is used up, as far as the log can tell."""

from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from app.audit.events import audit_events
from app.base.clock import from_unix_microseconds, to_unix_microseconds
from app.base.errors import UpstreamQuotaExhausted
from app.minting.mint import ACTION

WITHIN = timedelta(days=1)
"""What is older is no news: nobody has asked for a token since."""

LAST = 2**63 - 1
"""No row has it as its seq."""

MOST_FAILURES = 1000
"""Rows looked at: among so many failures in a row one says it, if the money is the matter."""


def quota_exhausted_at(tx: sa.Connection, *, now: datetime) -> datetime | None:
    """Return when OpenAI last refused a mint because the money is used up.

    None when a mint has succeeded since, of whatever instance, or when it is a day ago. Both looks
    into the log follow an index, however long it is.

    Args:
        tx: A read transaction.
        now: The day is counted back from here.
    """
    found: int | None = tx.scalar(_last_refusal(since=now - WITHIN))
    return None if found is None else from_unix_microseconds(found)


def _last_refusal(*, since: datetime) -> sa.Select[Any]:
    c = audit_events.c
    last_issued = _newest_first("issued", after=0).with_only_columns(c.seq).limit(1)
    failures = (
        _newest_first("failed", after=sa.func.coalesce(last_issued.scalar_subquery(), 0))
        .with_only_columns(c.recorded_at, c.action, c.reason)
        .limit(MOST_FAILURES)
        .subquery()
    )
    return sa.select(sa.func.max(failures.c.recorded_at)).where(
        failures.c.action == ACTION,
        failures.c.reason == UpstreamQuotaExhausted.code,
        failures.c.recorded_at > to_unix_microseconds(since),
    )


def _newest_first(outcome: str, *, after: int | sa.ColumnElement[int]) -> sa.Select[Any]:
    """Return the rows with this *outcome* whose seq is greater than *after*.

    Compared in pairs, as the index has them. One by one, PostgreSQL expects to meet such a row soon
    when it walks back the whole log, and that may take it past millions.
    """
    c = audit_events.c
    place = sa.tuple_(c.outcome, c.seq)
    return (
        sa.select(audit_events)
        .where(place > sa.tuple_(outcome, after), place < sa.tuple_(outcome, LAST))
        .order_by(c.outcome.desc(), c.seq.desc())
    )
