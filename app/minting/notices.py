"""What an admin has to know about the service as it stands: models, money, and the proof."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Literal, TypeAlias

import sqlalchemy as sa

from app.audit import checkpoints
from app.audit.checkpoints import Checkpoint
from app.audit.continuity import Continuity
from app.audit.events import audit_events
from app.audit.verifications import Verdict, Verifications
from app.base.clock import Clock, from_unix_microseconds
from app.base.db import Database
from app.minting import model_notices
from app.minting.model_notices import Severity
from app.minting.model_watch import ModelWatch
from app.minting.upstream_quota import quota_exhausted_at

LATE_AFTER = timedelta(hours=1)
"""A row for which no checkpoint was made within this time; it takes a minute otherwise."""

Subject: TypeAlias = Literal["service", "upstream", "models", "integrity"]
Code: TypeAlias = (
    model_notices.Code
    | Literal[
        "sandbox",
        "upstream_quota_exhausted",
        "rolled_back",
        "checkpoint",
        "checkpoint_late",
        "verified",
        "never_verified",
        "faults_found",
    ]
)

_IN_ORDER: tuple[Severity, ...] = ("urgent", "warning", "info")


@dataclass(frozen=True, slots=True)
class Notice:
    """Something to know, in a sentence or two."""

    code: Code
    subject: Subject
    severity: Severity
    detail: str
    at: datetime | None = None
    """When it happened, where that is the news."""


class Notices:
    """Gathers what an admin has to know.

    Args:
        in_sandbox: Whether there is no real OpenAI behind this service.
        key: Signs the checkpoints that count.
    """

    def __init__(
        self,
        *,
        in_sandbox: bool,
        key: checkpoints.PublicKey,
        models: ModelWatch,
        verifications: Verifications,
        continuity: Continuity,
        database: Database,
        clock: Clock,
    ) -> None:
        self._in_sandbox = in_sandbox
        self._key = key
        self._models = models
        self._verifications = verifications
        self._continuity = continuity
        self._database = database
        self._clock = clock

    async def all(self) -> list[Notice]:
        """Return what is to be known now: what is urgent first, what is as it should be last.

        Raises:
            AuditUnavailable: The database is away.
        """
        now = self._clock()
        verdict = await self._verifications.last()
        found = [
            *self._of_the_service(),
            *await self._database.read(partial(self._of_the_log, now=now)),
            _of_the_verification(verdict),
            *[
                Notice(told.code, "models", told.severity, told.detail, told.at)
                for told in await self._models.notices()
            ],
        ]
        return sorted(found, key=lambda notice: _IN_ORDER.index(notice.severity))

    def _of_the_service(self) -> Iterator[Notice]:
        if self._continuity.fault:
            fault = self._continuity.fault
            sentence = f"No token is given and nothing is written: {fault}."
            yield Notice("rolled_back", "integrity", "urgent", sentence)
        if self._in_sandbox:
            yield Notice(
                "sandbox",
                "service",
                "info",
                "This is the sandbox: a stand-in answers in place of OpenAI, and its tokens are"
                " good here alone. Set OPENAI_API_KEY for real ones.",
            )

    def _of_the_log(self, tx: sa.Connection, *, now: datetime) -> list[Notice]:
        found = [_of_the_checkpoint(tx, checkpoints.newest(tx, self._key), now=now)]
        refused_at = quota_exhausted_at(tx, now=now)
        if refused_at:
            found.append(
                Notice(
                    "upstream_quota_exhausted",
                    "upstream",
                    "urgent",
                    "OpenAI refuses to make tokens because the money is used up. Add credit, or"
                    " raise the project's limit there.",
                    refused_at,
                )
            )
        return found


def _of_the_checkpoint(tx: sa.Connection, newest: Checkpoint | None, *, now: datetime) -> Notice:
    signed_at = from_unix_microseconds(newest.at) if newest else None
    last = f"The last checkpoint is of row {newest.seq:,}." if newest else "There is no checkpoint."
    c = audit_events.c
    following = sa.select(c.recorded_at).where(c.seq > (newest.seq if newest else 0))
    written_at = tx.scalar(following.order_by(c.seq).limit(1))
    if written_at is not None and from_unix_microseconds(written_at) <= now - LATE_AFTER:
        what_to_do = "Rows have come since, for more than an hour: see what the service's log says."
        detail = f"{last} {what_to_do}"
        return Notice("checkpoint_late", "integrity", "warning", detail, signed_at)
    return Notice("checkpoint", "integrity", "info", last, signed_at)


def _of_the_verification(verdict: Verdict | None) -> Notice:
    if verdict is None:
        detail = "The log has never been verified as a whole."
        return Notice("never_verified", "integrity", "warning", detail)
    if not verdict.ok:
        faults = "1 fault" if verdict.faults == 1 else f"{verdict.faults:,} faults"
        detail = f"The log is not as it was written: the last verification found {faults}."
        return Notice("faults_found", "integrity", "urgent", detail, verdict.at)
    detail = "The last verification found every row as it was written."
    return Notice("verified", "integrity", "info", detail, verdict.at)
