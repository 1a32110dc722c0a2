"""SQLite: one file, any number of readers, one writer at a time across processes.

SQLite's WAL mode can corrupt a file when two connections of releases before 3.51.3 write and
checkpoint at the same instant, and the SQLite that comes with Python is often older. Commands run
beside the service, so whoever writes, checkpoints or closes a connection holds a lock file.
"""

import asyncio
import fcntl
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TypeVar

import sqlalchemy as sa
from typing_extensions import override

from app.base.db import Database, DatabaseFault

T = TypeVar("T")

OLDEST_SQLITE = (3, 38, 0)
"""First release in which the JSON functions of our generated columns are always there."""

READERS = 4

CLOSE_SECONDS = 1.0  # part of the 20 s in which the service stops

SCRUB_SECONDS = 5.0

BUSY_SECONDS = 0.5
"""Longest wait for somebody who writes without the lock file; shorter than a caller's patience."""

_AWAY = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_READONLY,
    }
)


class SqliteDatabase(Database):
    """One SQLite file, with its lock file and its readers.

    Args:
        path: The file; the folder must exist.
    """

    def __init__(self, path: Path) -> None:
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            raise DatabaseFault(
                f"SQLite {sqlite3.sqlite_version} is too old; use a Python built with 3.38 or later"
            )
        self.path = path
        self.name = str(path)
        self._lock_path = path.with_name(path.name + ".lock")
        self._turn_path = path.with_name(path.name + ".turn")
        self._serve_lock: int | None = None
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="db-reader")
        self._engine = sa.create_engine(
            "sqlite+pysqlite://",
            creator=self._connect_reader,
            poolclass=sa.QueuePool,
            pool_size=READERS,
            max_overflow=0,
            hide_parameters=True,  # they are addresses and hashes, and errors go to the log
        )
        sa.event.listen(self._engine, "connect", self._note_file)
        sa.event.listen(self._engine, "checkout", self._see_that_it_is_the_file)

    @property
    def identity(self) -> tuple[int, int] | None:
        """Which file now has our name: another one if somebody put it in place of ours."""
        try:
            stat = os.stat(self.path)  # noqa: PTH116 - asked for each batch of rows
        except FileNotFoundError:
            return None
        return stat.st_dev, stat.st_ino

    def _note_file(self, _: object, record: sa.pool.ConnectionPoolEntry) -> None:
        record.info["identity"] = self.identity

    def _see_that_it_is_the_file(
        self, _: object, record: sa.pool.ConnectionPoolEntry, _proxy: object
    ) -> None:
        if record.info["identity"] != self.identity:
            raise sa.exc.DisconnectionError  # SQLAlchemy connects anew

    def connect(self) -> sqlite3.Connection:
        """Open a connection that may write; its owner begins and ends transactions itself."""
        connection = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode=rw",  # never makes a file by mistake
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # an answered write survives a power cut
        # In pages of 4 KiB. Rows of a busy minute share pages, so rarer checkpoints copy less.
        connection.execute("PRAGMA wal_autocheckpoint = 4000")
        # What was erased, or pruned, is overwritten in the file. Always: a page that was freed
        # without it would keep what a later deletion cannot reach.
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA recursive_triggers = ON")  # REPLACE meets the DELETE trigger
        return connection

    def _connect_reader(self) -> sqlite3.Connection:
        connection = self.connect()
        connection.execute("PRAGMA query_only = ON")
        return connection

    @override
    async def _read(self, query: Callable[[sa.Connection], T]) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, self._read_in_thread, query)

    def _read_in_thread(self, query: Callable[[sa.Connection], T]) -> T:
        with self._engine.connect() as tx:
            tx.exec_driver_sql("BEGIN")
            try:
                return query(tx)
            finally:
                tx.exec_driver_sql("ROLLBACK")

    @staticmethod
    @override
    def is_away(error: Exception) -> bool:
        cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
        if isinstance(cause, sqlite3.Error):  # the low byte of its code is the kind
            return getattr(cause, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF in _AWAY
        return isinstance(cause, OSError)

    @override
    async def reach(self) -> None:
        """Do nothing: a file is there or is not."""

    @override
    async def check(self, *, environment: str) -> None:
        if not self.path.exists():
            raise DatabaseFault(f"{self.path} does not exist yet; run: realtime-tokens migrate")
        await super().check(environment=environment)

    @contextmanager
    def writing(self, *, timeout_seconds: float) -> Iterator[None]:
        """Hold the lock file; of all processes on this file, one is inside.

        A busy service gives the lock back for microseconds only. So whoever wants it takes a turn
        first, and whoever has just had it queues up behind them.

        Raises:
            TimeoutError: Other processes held it for all of *timeout_seconds*.
        """
        deadline = time.monotonic() + timeout_seconds
        with _opened(self._lock_path) as lock:
            with _opened(self._turn_path) as turn:
                for descriptor in (turn, lock):
                    while not _try_lock(descriptor):
                        if time.monotonic() > deadline:
                            raise TimeoutError(f"{self.path.name} is locked by another process")
                        time.sleep(0.002)
            yield

    @override
    def claim_for_serving(self) -> bool:
        """Make this process the only ``serve`` on the file, until it ends."""
        path = self.path.with_name(self.path.name + ".serve")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not _try_lock(descriptor):
            os.close(descriptor)
            raise DatabaseFault(
                f"another service already runs on {self.path}; stop it, or set another DATA_DIR"
            )
        self._serve_lock = descriptor
        return True

    @override
    @asynccontextmanager
    async def claim_for_pruning(self) -> AsyncIterator[bool]:
        with _opened(self.path.with_name(self.path.name + ".prune")) as descriptor:
            yield _try_lock(descriptor)

    @override
    async def scrub(self) -> None:
        """Empty the write-ahead log into the file: it may hold pages as they were before.

        A reader that is still at an older state keeps it from being emptied; the next commits
        overwrite it then.
        """
        await asyncio.to_thread(self._empty_wal)

    def _empty_wal(self) -> None:
        with self.writing(timeout_seconds=SCRUB_SECONDS):
            connection = self.connect()
            try:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                connection.close()

    @override
    async def close(self) -> None:
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._readers.shutdown()
        try:
            with self.writing(timeout_seconds=CLOSE_SECONDS):  # the last to close checkpoints
                self._engine.dispose()
        except OSError:  # or there was no turn in time
            pass  # the process ends, and SQLite copes with connections that are not closed
        if self._serve_lock is not None:
            os.close(self._serve_lock)

    @override
    async def alter(self, change: Callable[[sa.Connection], None]) -> None:
        await asyncio.to_thread(self._alter, change)

    def _alter(self, change: Callable[[sa.Connection], None]) -> None:
        if not self.path.exists():
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        engine = sa.create_engine(
            "sqlite+pysqlite://",
            creator=self.connect,
            poolclass=sa.pool.NullPool,
            hide_parameters=True,
        )
        with self.writing(timeout_seconds=10), engine.connect() as tx:
            # One transaction for all of it: SQLite can take back CREATE TABLE too.
            tx.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                change(tx)
            except BaseException:
                tx.exec_driver_sql("ROLLBACK")
                raise
            tx.exec_driver_sql("COMMIT")


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)  # gives a lock on it back


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
