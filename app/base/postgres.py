"""PostgreSQL, for when one machine is not enough: any number of processes share one database."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

import asyncpg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from typing_extensions import override

from app.base.db import Database, DatabaseFault

T = TypeVar("T")

OLDEST_POSTGRES = 13
"""First release whose generated columns and ``sha256`` serve us that is still maintained."""

CONNECT_SECONDS = 1.0
STATEMENT_SECONDS = 5.0
"""Longest wait for an answer to one statement of a read; a server that hangs must not hang us."""

CHECKOUT_SECONDS = 1.5
"""Longest wait for a connection that answers; a server that is frozen is found out by then."""

CLOSE_SECONDS = 2.0

POOL = 5
"""Connections for reads and changes; the log's writer has one more of its own."""

_ABOUT_THE_QUESTION = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.SyntaxOrAccessError,
)

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
        self._engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=self.connect,
            pool_size=POOL,
            max_overflow=0,
            pool_timeout=CONNECT_SECONDS,
            hide_parameters=True,  # they are addresses and hashes, and errors go to the log
            pool_pre_ping=True,  # a connection that a restart has cut is replaced unnoticed
        )

    async def connect(self) -> "asyncpg.Connection[asyncpg.Record]":
        """Open a connection that may write; its owner begins and ends transactions itself."""
        return await asyncpg.connect(
            self._dsn,
            timeout=CONNECT_SECONDS,
            command_timeout=STATEMENT_SECONDS,
            server_settings={
                "application_name": "realtime-tokens",
                # Whatever the server's defaults are: an answered write survives a power cut, and
                # the append sees what was committed before it got the lock.
                "synchronous_commit": "on",
                "default_transaction_isolation": "read committed",
                # A client that froze inside a change must not hold its rows for ever.
                "idle_in_transaction_session_timeout": "5000",
            },
        )

    @asynccontextmanager
    async def changing(self) -> AsyncIterator[AsyncConnection]:
        """Open a transaction for a change. Whoever asked for it commits it, in its own words."""
        engine = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        async with _checked_out(engine) as connection:
            await connection.exec_driver_sql("BEGIN")
            try:
                yield connection
            except Exception:
                await connection.exec_driver_sql("ROLLBACK")
                raise
            except BaseException:
                await connection.invalidate()  # cancelled: no time for goodbyes
                raise

    @override
    async def _read(self, query: Callable[[sa.Connection], T]) -> T:
        async with _checked_out(self._engine) as connection:
            return await connection.run_sync(query)

    @staticmethod
    @override
    def is_away(error: Exception) -> bool:
        cause = error.driver_exception if isinstance(error, sa.exc.DBAPIError) else error
        if isinstance(cause, asyncpg.PostgresError):
            return not isinstance(cause, _ABOUT_THE_QUESTION)
        return isinstance(cause, (OSError, asyncpg.InterfaceError, sa.exc.TimeoutError))

    @override
    async def check(self, *, environment: str) -> None:
        await super().check(environment=environment)
        version = await self.read(lambda tx: tx.dialect.server_version_info)
        if version is None or version < (OLDEST_POSTGRES,):
            raise DatabaseFault(f"{self.name} is too old; PostgreSQL {OLDEST_POSTGRES} is needed")

    @override
    async def alter(self, change: Callable[[sa.Connection], None]) -> None:
        async with self._engine.begin() as connection:
            await connection.execute(
                sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK}
            )
            await connection.run_sync(change)

    @override
    def claim_for_serving(self) -> bool:
        """Any number of processes may serve one PostgreSQL database."""
        return False

    @override
    async def close(self) -> None:
        with suppress(TimeoutError):  # a frozen server answers no goodbye, and the process ends
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._engine.dispose()


@asynccontextmanager
async def _checked_out(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Take a connection that answers from the pool of *engine*.

    Raises:
        TimeoutError: There was none within `CHECKOUT_SECONDS`.
    """
    connection = engine.connect()
    checkout = asyncio.ensure_future(connection.start())
    try:
        # No `asyncio.timeout`: it would wait while SQLAlchemy takes its leave of a frozen server.
        done, _ = await asyncio.wait({checkout}, timeout=CHECKOUT_SECONDS)
    finally:
        checkout.cancel()  # does nothing to what is done
    if not done:
        raise TimeoutError("the server does not answer")
    await checkout
    try:
        yield connection
    finally:
        await connection.close()
