"""Whether the money at OpenAI is used up, as far as the log can tell."""

from datetime import datetime, timedelta

import sqlalchemy as sa

from app.audit.matches import Filters
from app.audit.search import newest
from app.base.errors import UpstreamQuotaExhausted
from app.minting.mint import ACTION

WITHIN = timedelta(days=1)
"""What is older is no news: nobody has asked for a token since."""


def quota_exhausted_at(tx: sa.Connection, *, now: datetime) -> datetime | None:
    """Return when OpenAI last refused a mint because the money is used up.

    None when a mint has succeeded since, of whatever instance, or when it is a day ago.

    Args:
        tx: A read transaction.
        now: The day is counted back from here.
    """
    refusals = Filters(action=ACTION, outcome="failed", reason=UpstreamQuotaExhausted.code)
    refused = newest(tx, refusals)
    if not refused or refused[0].recorded_at <= now - WITHIN:
        return None
    issued = newest(tx, Filters(action=ACTION, outcome="issued"))
    has_succeeded_since = bool(issued) and issued[0].seq > refused[0].seq
    return None if has_succeeded_since else refused[0].recorded_at
