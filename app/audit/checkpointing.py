"""Making checkpoints while rows arrive: into the database, and into the file outside of it."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import sqlalchemy as sa
import structlog

from app.audit import chain, checkpoints
from app.audit.checkpoint_file import CheckpointFile
from app.audit.checkpoints import Authority, Checkpoint, Signer, audit_checkpoints
from app.audit.continuity import Continuity, RolledBack
from app.audit.events import Event
from app.audit.log import Log
from app.audit.stored import read_chunk
from app.base.clock import Clock, to_unix_microseconds
from app.base.db import Database

EVERY_ROWS = 1_000
"""Rows after which there is a checkpoint, however little time has passed."""

EVERY_SECONDS = 60
"""Time after which there is one, however few rows have come."""

FILED_AT_ONCE = 1_000


class _NothingNew(Exception):
    """Another process has done it meanwhile."""


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What became of a log that was accepted as it is."""

    head: chain.Head  # the last row that it has
    known: int  # the last row that anybody knew of
    pruned: int  # rows up to here are gone, as another key had signed; 0 for none


class Checkpoints:
    """The checkpoints of one installation.

    Args:
        signer: Holds the installation's key.
        file: Where they stand outside of the database.
        continuity: What this process knows of the log.
    """

    def __init__(
        self,
        *,
        signer: Signer,
        file: CheckpointFile,
        continuity: Continuity,
        database: Database,
        log: Log,
        clock: Clock,
    ) -> None:
        self._signer = signer
        self._file = file
        self._continuity = continuity
        self._database = database
        self._log = log
        self._clock = clock
        self._in_file = 0  # when the newest of the file was signed, Unix µs
        self._logger = structlog.get_logger(__name__)

    async def keep(self, *, every_seconds: int = EVERY_SECONDS) -> None:
        """Look whether the log goes on as we know it, and sign where it stands, if that is due.

        Args:
            every_seconds: A checkpoint is due when there are new rows, and none for so long.

        Raises:
            AuditUnavailable: The database is away.
        """
        try:
            head = await self._continuity.look(self._database)
        except RolledBack:
            return  # it has been said
        newest = await self.newest()
        now = to_unix_microseconds(self._clock())
        new = head.seq - newest.seq if newest else head.seq
        # A mark speaks of a row that is gone, so what the file ends with is not left to be one; and
        # a clock that was ahead, and was put right, keeps nothing from being signed.
        waited = (
            newest is None
            or newest.kind == "pruned"
            or not 0 <= now - newest.at < every_seconds * 1_000_000
        )
        if new >= EVERY_ROWS or (new > 0 and waited):
            # Where the moment is taken, somebody else has signed, or a round that was cut short and
            # went on; what is new since then is signed for in the next.
            with suppress(_NothingNew, sa.exc.IntegrityError):
                await self._log.record([], partial(self._sign_head, now=now))
        await self._file_them()

    def _sign_head(self, tx: sa.Connection, *, now: int) -> None:
        head, newest = checkpoints.head_of(tx), checkpoints.newest(tx, self.public_key)
        if newest is not None:
            if newest.seq >= head.seq:
                raise _NothingNew
            now = max(now, newest.at + 1)
        self._insert(tx, self._signer.sign("checkpoint", checkpoints.log_name(tx), head, at=now))

    @staticmethod
    def _insert(tx: sa.Connection, checkpoint: Checkpoint) -> None:
        tx.execute(audit_checkpoints.insert(), checkpoint.row)

    async def _file_them(self) -> None:
        """Add to the file what the database has and it has not."""
        newest = await self.newest()
        if newest is None or newest.at <= self._in_file:
            return
        authority = Authority(self.public_key, log=newest.log)
        try:
            last = await asyncio.to_thread(self._file.last)
            if last is None and self._in_file:
                self._logger.error("checkpoint_file_missing", path=str(self._file.path))
            after = last.at if last else newest.at - 1  # a file that is new begins with the newest
            while some := await self._database.read(partial(_since, after=after)):
                # What somebody else has put into the database does not get out of it.
                ours = [one for one in checkpoints.readable(some) if authority.fault(one) is None]
                await asyncio.to_thread(self._file.append, partial(_missing, ours))
                after = some[-1].at
        except (OSError, checkpoints.Unreadable) as error:
            self._logger.error("checkpoint_file_unavailable", reason=str(error))  # noqa: TRY400 - one line a round
        else:
            self._in_file = newest.at

    async def accept_rollback(self, reason: str, *, by: str) -> Acceptance:
        """Say in the log that it is meant as it is, though rows that were known are gone.

        Where only another key has signed that the log begins behind rows that were pruned, ours
        does so from then on; else they would be missing after another ``SECRET_KEY``.

        The log of this process must not know of the rollback itself, or nothing is written.

        Args:
            reason: Why, in a sentence.
            by: Who says so.

        Raises:
            AuditUnavailable: It cannot be written.
            OSError: The file cannot be written; then no process believes it.
            Unreadable: The last line of the file is no checkpoint.
        """
        last = await asyncio.to_thread(self._file.last)
        head, log = await self._database.read(
            lambda tx: (checkpoints.head_of(tx), checkpoints.log_name(tx))
        )
        newest = await self.newest()
        earlier = [one.at + 2 for one in (last, newest) if one is not None]
        at = max([to_unix_microseconds(self._clock()), *earlier])
        accepted = self._signer.sign("accepted", log, head, at=at)
        event = Event(
            action="audit_log.accept_rollback",
            outcome="succeeded",
            actor=by,
            reason=reason,
            boundary_seq=head.seq,
            boundary_hash=head.row_hash.hex(),
        )

        def sign(tx: sa.Connection) -> Sequence[Checkpoint]:
            signed = [accepted]
            if pruned := _pruned_by_others(tx, self.public_key):
                # Before the acceptance, for the last line of the file should tell of a row that is.
                signed.insert(0, self._signer.sign("pruned", log, pruned, at=at - 1))
            for one in signed:
                self._insert(tx, one)
            return signed

        signed = await self._log.record([event], sign)
        await asyncio.to_thread(self._file.append, partial(_missing, signed))
        pruned = signed[0].seq if len(signed) > 1 else 0
        return Acceptance(head, last.seq if last else head.seq, pruned)

    async def newest(self) -> Checkpoint | None:
        """Return the checkpoint that was signed last, if there is one.

        Raises:
            AuditUnavailable: The database is away.
        """
        return await self._database.read(partial(checkpoints.newest, key=self.public_key))

    async def page(self, *, limit: int, before: int | None = None) -> list[Checkpoint]:
        """Return up to *limit* checkpoints, newest first.

        Args:
            limit: At the most.
            before: Only those signed earlier, in Unix µs.

        Raises:
            AuditUnavailable: The database is away.
        """
        wanted = partial(checkpoints.page, limit=limit, before=before)
        return list(await self._database.read(wanted))

    @property
    def public_key(self) -> checkpoints.PublicKey:
        """By which anybody can tell that a checkpoint is ours."""
        return self._signer.public_key


def _pruned_by_others(tx: sa.Connection, key: checkpoints.PublicKey) -> chain.Head | None:
    """Return the row behind which the log begins, where keys other than *key* alone have said so.

    What they say is taken for true where the first row goes on from it.
    """
    first = read_chunk(tx).rows[:1]
    ours = checkpoints.newest(tx, key, "pruned")
    if not first or first[0].seq == 1 or (ours and ours.seq == first[0].seq - 1):
        return None
    c = audit_checkpoints.c
    wanted = audit_checkpoints.select().where(c.kind == "pruned", c.seq == first[0].seq - 1)
    log = checkpoints.log_name(tx)
    for one in checkpoints.readable(tx.execute(wanted.order_by(c.at.desc())).all()):
        if one.log == log and not list(chain.Walk(one.head).feed(first)):
            return one.head
    return None


def _since(tx: sa.Connection, *, after: int) -> Sequence[sa.Row[Any]]:
    """Return some of what was signed after that, oldest first."""
    c = audit_checkpoints.c
    wanted = audit_checkpoints.select().where(c.at > after).order_by(c.at).limit(FILED_AT_ONCE)
    return tx.execute(wanted).all()


def _missing(ours: Iterable[Checkpoint], last: Checkpoint | None) -> Iterator[Checkpoint]:
    """Give those of *ours* that come after the *last* of the file, to which others add too."""
    return (one for one in ours if last is None or one.at > last.at)
