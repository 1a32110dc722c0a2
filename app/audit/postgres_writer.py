"""Writes the log into PostgreSQL: one task per process, one statement for all that waits.

The append is a function in the database, so that any number of processes share one chain. It is a
statement of its own, or the last one of its transaction and sent together with the COMMIT: the lock
on the chain is never held while the server waits for a client, which may be frozen or gone.
"""

import asyncio
import json
from collections.abc import Sequence
from functools import cache
from typing import Any
from weakref import WeakSet

import asyncpg
import sqlalchemy as sa
import structlog
from typing_extensions import override

from app.audit.continuity import Continuity, Known, RolledBack
from app.audit.events import Written
from app.audit.log import (
    BATCH,
    PATIENCE_SECONDS,
    AlreadyRecorded,
    Item,
    Lookup,
    Scribe,
    Writer,
    allowed,
)
from app.base.db import reason_of
from app.base.errors import AuditUnavailable
from app.base.metrics import Metrics
from app.base.postgres import CONNECT_SECONDS, PostgresDatabase

APPEND = "SELECT audit_append($1::text[], $2::bigint[], $3::bytea[], $4::text[])"

_KNOWN = """
    SELECT (SELECT row_hash FROM audit_events WHERE seq = $1::bigint),
    $2::text IS NULL OR EXISTS (SELECT 1 FROM audit_events WHERE event_id = $2::text)
"""

_CUT = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # the server's last word came while asyncpg was not listening
)
_DOWN = (*_CUT, asyncpg.PostgresError)


class PostgresWriter(Writer):
    """The task that writes, and one more for each change under way.

    Args:
        database: Migrated.
        scribe: Puts events into words.
        metrics: Where the appends are timed.
        continuity: What has to be in the database.
    """

    def __init__(
        self,
        database: PostgresDatabase,
        scribe: Scribe,
        metrics: Metrics,
        continuity: Continuity,
    ) -> None:
        self._database = database
        self._scribe = scribe
        self._metrics = metrics
        self._continuity = continuity
        self._waiting: asyncio.Queue[Item | None] = asyncio.Queue()
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None
        self._changes: set[asyncio.Task[None]] = set()
        self._looked_over: WeakSet[asyncpg.Connection[asyncpg.Record]] = WeakSet()
        self._logger = structlog.get_logger(__name__)
        self._task = asyncio.create_task(self._write_for_ever(), name="audit-log-writer")

    @override
    def put(self, item: Item) -> None:
        if item.change is None and len(item.events) == 1:
            self._waiting.put_nowait(item)
        else:
            task = asyncio.create_task(self._write_change(item))
            self._changes.add(task)
            task.add_done_callback(self._changes.discard)

    @property
    @override
    def alive(self) -> bool:
        return not self._task.done()

    @override
    async def close(self) -> None:
        if self._changes:
            await asyncio.wait(self._changes)
        self._waiting.put_nowait(None)
        await self._task
        await self._disconnect()

    # What the mint path writes: single events ---------------------------------------------------

    async def _write_for_ever(self) -> None:
        open_for_more = True
        while open_for_more:
            taken = [await self._waiting.get()]
            while len(taken) < BATCH and not self._waiting.empty():
                taken.append(self._waiting.get_nowait())
            open_for_more = None not in taken
            batch = [item for item in taken if item is not None and not item.abandoned]
            if batch:
                with self._metrics.log_append.time():
                    await self._write(batch)
                for item in batch:
                    item.release()

    async def _write(self, batch: Sequence[Item]) -> None:
        """Append the whole *batch*; on return every item has its result."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                try:
                    await self._append(batch)
                except _CUT:
                    # A restart of the server has cut the connection. Events have ids, and the
                    # function takes none twice, so asking again cannot write anything again.
                    await self._disconnect()
                    await self._append(batch)
        except (*_DOWN, RolledBack) as error:
            self._unavailable(error, batch)
            await self._disconnect()
        except Exception as error:
            self._logger.exception("audit_log_writer_failed")
            self._unavailable(error, batch)
            await self._disconnect()

    async def _append(self, batch: Sequence[Item]) -> None:
        connection = await self._connected()
        batch = await self._judge(connection, batch)
        if not batch:
            return
        rows = [self._scribe.write_out(item.events[0]) for item in batch]
        appended = await connection.fetchval(
            APPEND,
            [written.canon for written, _ in rows],
            [recorded_at for _, recorded_at in rows],
            [written.salt for written, _ in rows],
            [written.personal for written, _ in rows],
        )
        last = None
        for item, row, was_appended in zip(batch, rows, appended, strict=True):
            if was_appended:
                last = row
            else:
                item.fault = AlreadyRecorded("the attempt has its outcome already")
        if last is not None:
            self._remember(*last)

    async def _judge(
        self, connection: "asyncpg.Connection[asyncpg.Record]", batch: Sequence[Item]
    ) -> list[Item]:
        """Return the items whose guards let them pass; the others get their refusal."""
        guards = [item.guard for item in batch if item.guard is not None]
        found: dict[str, Sequence[Any]] = {}
        for lookup in {guard.lookup for guard in guards}:
            keys = [guard.key for guard in guards if guard.lookup is lookup]
            rows = await connection.fetch(_statement(lookup), keys)
            found |= {row[0]: tuple(row) for row in rows}
        return allowed(batch, found)

    # Changes of other tables --------------------------------------------------------------------

    async def _write_change(self, item: Item) -> None:
        changing = False  # only then is a fault not one of the log
        try:
            async with asyncio.timeout(PATIENCE_SECONDS), self._database.changing() as core:
                driver = (await core.get_raw_connection()).driver_connection
                assert isinstance(driver, asyncpg.Connection)  # noqa: S101 - SQLAlchemy says Any
                if driver not in self._looked_over or self._continuity.fault is not None:
                    await self._see_that_all_is_there(driver)  # the pool has connected anew
                    self._looked_over.add(driver)
                changing = True
                item.result = await core.run_sync(item.change) if item.change else None
                changing = False
                rows = [self._scribe.write_out(event) for event in item.events]
                await core.execute(
                    sa.text("SELECT set_config('audit.pending', :rows, true)"),
                    {"rows": json.dumps([_pending(written, at) for written, at in rows])},
                )
                # One message: between the append and the commit the server waits for nobody.
                with self._metrics.log_append.time():
                    await driver.execute("SELECT audit_append_pending(); COMMIT")
            if rows:
                self._remember(*rows[-1])
        except asyncpg.UniqueViolationError:
            item.fault = AlreadyRecorded("the attempt has its outcome already")
        except Exception as error:  # noqa: BLE001 - what the change raised is the caller's
            if not changing or self._database.is_away(error):
                self._unavailable(error, [item])
            else:
                item.fault = error
        item.release()

    # The connection -----------------------------------------------------------------------------

    def _unavailable(self, error: Exception, batch: Sequence[Item]) -> None:
        self._logger.error(
            "audit_log_unavailable", error=type(error).__name__, reason=reason_of(error)
        )
        for item in batch:
            item.fault = AuditUnavailable(retry_after_seconds=2)

    async def _connected(self) -> "asyncpg.Connection[asyncpg.Record]":
        if self._continuity.fault is not None:
            await self._disconnect()  # by now our address may lead to the right database
        if self._connection is None or self._connection.is_closed():
            connection = await self._database.connect(connect_seconds=CONNECT_SECONDS)
            self._connection = connection
            await self._see_that_all_is_there(connection)
        return self._connection

    async def _see_that_all_is_there(
        self, connection: "asyncpg.Connection[asyncpg.Record]"
    ) -> None:
        """See that the database has what is known to be in it.

        Raises:
            RolledBack: It is another one, or was set back, as by a failover to a late replica.
        """
        known = self._continuity.known
        [(row_hash, has_event)] = await connection.fetch(_KNOWN, known.head.seq, known.event_id)
        if not self._continuity.confirm(known.head, row_hash, has_event=has_event):
            self._continuity.settle(await connection.fetch(self._continuity.explanations))

    def _remember(self, written: Written, recorded_at: int) -> None:
        known = self._continuity.known
        self._continuity.known = Known(known.head, written.event_id, recorded_at)

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()  # at once: a server that hangs answers no goodbye


@cache
def _statement(lookup: Lookup) -> str:
    columns = ", ".join(lookup.columns)
    return f"SELECT {columns} FROM {lookup.source} WHERE {lookup.columns[0]} = ANY($1)"  # noqa: S608 - constants of ours


def _pending(written: Written, recorded_at: int) -> dict[str, Any]:
    return {
        "canon": written.canon,
        "recorded_at": recorded_at,
        "salt": written.salt.hex() if written.salt else None,
        "personal": written.personal,
    }
