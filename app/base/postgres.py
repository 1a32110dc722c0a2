"""PostgreSQL, for when one machine is not enough: any number of processes share one database."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar
from weakref import WeakSet

import asyncpg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from typing_extensions import override

from app.base.db import Database, DatabaseFault
from app.base.errors import AuditUnavailable

T = TypeVar("T")

OLDEST_POSTGRES = 13
"""First release whose generated columns and ``sha256`` serve us that is still maintained."""

CONNECT_SECONDS = 1.0
"""Longest wait for a connection that answers; a server that is frozen is found out by then."""

START_SECONDS = 10.0
"""Longest wait for a connection when a process starts, and no caller waits for it. A server that
has just been started itself, or a machine that is busy, takes longer than one that is at work."""

STATEMENT_SECONDS = 5.0
"""Longest wait for an answer to one statement of a read; a server that hangs must not hang us."""

LOCK_SECONDS = 1.2
"""Longest wait of a statement for a lock. The server gives up before the caller does: else one that
nobody listens to any more would go on waiting, and each that tries anew would be one more."""

MIGRATION_LOCK_SECONDS = 10
"""Longest wait for somebody else who migrates."""

CLOSE_SECONDS = 2.0

POOL = 5
"""Connections for reads and changes; the log's writer has one more of its own."""

_ABOUT_THE_QUESTION = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.SyntaxOrAccessError,
)

_LOST = (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError, sa.exc.TimeoutError)

_MIGRATION_LOCK = 7_245_000_001  # any number, the same in every release


class PostgresDatabase(Database):
    """A PostgreSQL database.

    Args:
        url: ``postgresql://user:password@host:port/name?sslmode=…``, as libpq has it.
    """

    def __init__(self, url: str) -> None:
        self._dsn = url
        parsed = sa.make_url(url)
        self.name = f"PostgreSQL database {parsed.database} at {parsed.host or 'a local socket'}"
        self._connections: WeakSet[asyncpg.Connection[asyncpg.Record]] = WeakSet()
        self._engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=self.connect,  # `_checked_out` says how long it may take
            pool_size=POOL,
            max_overflow=0,
            pool_timeout=CONNECT_SECONDS,
            hide_parameters=True,  # they are addresses and hashes, and errors go to the log
            pool_pre_ping=True,  # a connection that a restart has cut is replaced unnoticed
        )

    async def connect(
        self,
        *,
        connect_seconds: float = START_SECONDS,
        statement_seconds: float | None = STATEMENT_SECONDS,
    ) -> "asyncpg.Connection[asyncpg.Record]":
        """Open a connection that may write; its owner begins and ends transactions itself.

        Args:
            connect_seconds: Longest wait for it.
            statement_seconds: Longest wait for an answer to one statement; None for any time.
        """
        connection = await asyncpg.connect(
            self._dsn,
            timeout=connect_seconds,
            command_timeout=statement_seconds,
            server_settings={
                "application_name": "realtime-tokens",
                # Whatever the server's defaults are: an answered write survives a power cut, and
                # the append sees what was committed before it got the lock.
                "synchronous_commit": "on",
                "default_transaction_isolation": "read committed",
                "lock_timeout": f"{LOCK_SECONDS * 1000:.0f}",  # ms
                # A client that froze inside a change must not hold its rows for ever.
                "idle_in_transaction_session_timeout": "5000",
            },
        )
        self._connections.add(connection)
        return connection

    @asynccontextmanager
    async def changing(self) -> AsyncIterator[AsyncConnection]:
        """Open a transaction for a change. Whoever asked for it commits it, in its own words."""
        engine = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        async with _checked_out(engine, seconds=CONNECT_SECONDS) as connection:
            await connection.exec_driver_sql("BEGIN")
            try:
                yield connection
            except Exception:
                try:
                    await connection.exec_driver_sql("ROLLBACK")
                except Exception:  # noqa: BLE001 - why the change failed is what matters
                    await connection.invalidate()  # cut off: the server has taken it back itself
                raise
            except BaseException:
                await connection.invalidate()  # cancelled: no time for goodbyes
                raise

    @override
    async def _read(self, query: Callable[[sa.Connection], T]) -> T:
        async with _checked_out(self._engine, seconds=CONNECT_SECONDS) as connection:
            return await connection.run_sync(query)

    @staticmethod
    @override
    def is_away(error: Exception) -> bool:
        cause = error.driver_exception if isinstance(error, sa.exc.DBAPIError) else error
        if isinstance(cause, asyncpg.PostgresError):
            return not isinstance(cause, _ABOUT_THE_QUESTION)
        return isinstance(cause, _LOST)

    @override
    async def reach(self) -> None:
        try:
            async with _checked_out(self._engine, seconds=START_SECONDS):
                pass  # it stays in the pool, for `check` to begin with
        except Exception as error:
            if not self.is_away(error):
                raise

    @override
    async def check(self, *, environment: str) -> None:
        await super().check(environment=environment)
        version = await self.read(lambda tx: tx.dialect.server_version_info)
        if version is None or version < (OLDEST_POSTGRES,):
            raise DatabaseFault(f"{self.name} is too old; PostgreSQL {OLDEST_POSTGRES} is needed")

    @override
    async def alter(self, change: Callable[[sa.Connection], None]) -> None:
        # A migration may compute every row of the log anew, however many there are.
        engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=partial(self.connect, statement_seconds=None),
            poolclass=sa.NullPool,
            hide_parameters=True,
        )
        async with engine.begin() as connection:
            await connection.execute(
                sa.text(f"SET LOCAL lock_timeout = '{MIGRATION_LOCK_SECONDS}s'")
            )
            await connection.execute(
                sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK}
            )
            # For a table it waits no longer than others do: whoever comes next waits behind it.
            await connection.execute(sa.text("SET LOCAL lock_timeout TO DEFAULT"))
            await connection.run_sync(change)

    @override
    def claim_for_serving(self) -> bool:
        """Any number of processes may serve one PostgreSQL database."""
        return False

    @override
    @asynccontextmanager
    async def claim_for_pruning(self) -> AsyncIterator[bool]:
        try:
            connection = await self.connect(connect_seconds=CONNECT_SECONDS)
            # Of the connection, not of a transaction: it is let go of when that ends.
            alone = await connection.fetchval("SELECT pg_try_advisory_lock(7245, 3)")
        except Exception as error:
            if not self.is_away(error):
                raise
            raise AuditUnavailable(retry_after_seconds=2) from None
        try:
            yield alone
        finally:
            connection.terminate()

    @override
    async def scrub(self) -> None:
        """Do nothing: what is dead is overwritten after the server's next vacuum of the table."""

    @override
    async def close(self) -> None:
        goodbye = asyncio.ensure_future(self._engine.dispose())
        await asyncio.wait({goodbye}, timeout=CLOSE_SECONDS)
        for connection in self._connections:
            connection.terminate()  # a frozen server answers no goodbye
        await goodbye


@asynccontextmanager
async def _checked_out(engine: AsyncEngine, *, seconds: float) -> AsyncIterator[AsyncConnection]:
    """Take a connection that answers from the pool of *engine*.

    Raises:
        TimeoutError: There was none within *seconds*.
    """
    connection = engine.connect()
    checkout = asyncio.ensure_future(connection.start())
    try:
        # No `asyncio.timeout`: it would wait while SQLAlchemy takes its leave of a frozen server.
        done, _ = await asyncio.wait({checkout}, timeout=seconds)
        if not done:
            raise TimeoutError("the server does not answer")
        await checkout
        yield connection
    finally:
        checkout.cancel()  # does nothing to what is done
        # Asked of the connection, not of how far this came: the pool may have handed it over just
        # when the caller was cancelled.
        if connection.sync_connection is not None:
            await connection.close()
