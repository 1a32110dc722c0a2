"""The database: one SQLite file, any number of readers, one writer at a time across processes.

SQLite's WAL mode can corrupt a file when two connections of releases before 3.51.3 write and
checkpoint at the same instant, and the SQLite that comes with Python is often older. Commands run
beside the service, so whoever writes, checkpoints or closes a connection holds a lock file.
"""

import asyncio
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

T = TypeVar("T")

OLDEST_SQLITE = (3, 38, 0)
"""First release in which the JSON functions of our generated columns are always there."""

READERS = 4

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

installation = sa.Table(
    "installation",
    metadata,
    sa.Column("environment", sa.String(16), primary_key=True),  # live or sandbox; one row, ever
    sa.Column("created_at", sa.BigInteger, nullable=False),  # Unix µs
)


class DatabaseFault(Exception):
    """The database cannot be used as it is; the message says what to do."""


class NotMigrated(DatabaseFault):
    """The tables are not those of this release."""


class Database:
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
        self._lock_path = path.with_name(path.name + ".lock")
        self._serve_lock: int | None = None
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="db-reader")
        self._engine = sa.create_engine(
            "sqlite+pysqlite://",
            creator=self._connect_reader,
            poolclass=sa.QueuePool,
            pool_size=READERS,
            max_overflow=0,
        )

    def connect(self) -> sqlite3.Connection:
        """Open a connection that may write; its owner begins and ends transactions itself."""
        connection = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode=rw",  # never makes a file by mistake
            uri=True,
            timeout=1.0,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # an answered write survives a power cut
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA recursive_triggers = ON")  # REPLACE meets the DELETE trigger
        return connection

    def _connect_reader(self) -> sqlite3.Connection:
        connection = self.connect()
        connection.execute("PRAGMA query_only = ON")
        return connection

    async def read(self, query: Callable[[sa.Connection], T]) -> T:
        """Run *query* in a reader thread, inside one short read transaction.

        Raises:
            sqlalchemy.exc.OperationalError: The file cannot be read.
        """
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, query)

    def _read(self, query: Callable[[sa.Connection], T]) -> T:
        with self._engine.connect() as tx:
            tx.exec_driver_sql("BEGIN")
            try:
                return query(tx)
            finally:
                tx.exec_driver_sql("ROLLBACK")

    @contextmanager
    def writing(self, *, timeout_seconds: float) -> Iterator[None]:
        """Hold the lock file; of all processes on this file, one is inside.

        Raises:
            TimeoutError: Another process held it for all of *timeout_seconds*.
        """
        descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            deadline = time.monotonic() + timeout_seconds
            while not _try_lock(descriptor):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{self._lock_path.name} is held by another process")
                time.sleep(0.002)
            yield
        finally:
            os.close(descriptor)  # gives the lock back

    def claim_for_serving(self) -> None:
        """Make this process the only ``serve`` on the file, until it ends.

        Raises:
            DatabaseFault: Another one runs.
        """
        path = self.path.with_name(self.path.name + ".serve")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not _try_lock(descriptor):
            os.close(descriptor)
            raise DatabaseFault(
                f"another service already runs on {self.path}; stop it, or set another DATA_DIR"
            )
        self._serve_lock = descriptor

    def close(self) -> None:
        """Close every reader."""
        self._readers.shutdown()
        with self.writing(timeout_seconds=5):  # closing the last connection is a checkpoint
            self._engine.dispose()
        if self._serve_lock is not None:
            os.close(self._serve_lock)

    # Migrations -----------------------------------------------------------------------------

    def migrate(self, *, environment: str, now: int, revision: str = "head") -> None:
        """Bring the file to *revision*, making it when it is not there.

        Args:
            environment: ``live`` or ``sandbox``; remembered for good.
            now: Unix µs.
            revision: An alembic revision to go up to.
        """
        if not self.path.exists():
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        with self.writing(timeout_seconds=10), self._migrating() as config:
            command.upgrade(config, revision)
            tx: sa.Connection = config.attributes["connection"]
            if tx.execute(sa.select(installation)).first() is None:
                row = {"environment": environment, "created_at": now}
                tx.execute(installation.insert(), row)

    def downgrade(self, *, revision: str) -> None:
        """Take the file back to *revision*."""
        with self.writing(timeout_seconds=10), self._migrating() as config:
            command.downgrade(config, revision)

    @contextmanager
    def _migrating(self) -> Iterator[Config]:
        engine = sa.create_engine(
            "sqlite+pysqlite://", creator=self.connect, poolclass=sa.pool.NullPool
        )
        with engine.connect() as tx:
            # One transaction for all of it: SQLite can take back CREATE TABLE too.
            tx.exec_driver_sql("BEGIN IMMEDIATE")
            config = alembic_config()
            config.attributes["connection"] = tx
            try:
                yield config
            except BaseException:
                tx.exec_driver_sql("ROLLBACK")
                raise
            tx.exec_driver_sql("COMMIT")

    async def check(self, *, environment: str) -> None:
        """See that the file is there, migrated, and of this *environment*.

        Raises:
            NotMigrated: It is there, but not as this release needs it.
            DatabaseFault: It is not there, cannot be read, or is of the other environment.
        """
        if not self.path.exists():
            raise DatabaseFault(f"{self.path} does not exist yet; run: realtime-tokens migrate")
        try:
            present, remembered = await self.read(_revision_and_environment)
        except sa.exc.DatabaseError as error:
            raise DatabaseFault(f"{self.path} cannot be read: {error.orig}") from None
        head = head_revision()
        if present != head:
            raise NotMigrated(
                f"{self.path} is at revision {present or 'none'}, this release needs {head};"
                " run: realtime-tokens migrate"
            )
        if remembered != environment:
            raise DatabaseFault(
                f"{self.path} belongs to the {remembered} environment, this is {environment};"
                " set another DATA_DIR"
            )


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _revision_and_environment(tx: sa.Connection) -> tuple[str | None, str | None]:
    revision = MigrationContext.configure(tx).get_current_revision()
    if not sa.inspect(tx).has_table(installation.name):
        return revision, None
    return revision, tx.scalar(sa.select(installation.c.environment))


def alembic_config() -> Config:
    """Return alembic's configuration, wherever the process was started."""
    root = Path(__file__).parents[2]
    config = Config(root / "alembic.ini")
    config.set_main_option("script_location", str(root / "alembic"))
    return config


@cache
def head_revision() -> str:
    """Return the newest revision among the migrations of this release."""
    head: Any = ScriptDirectory.from_config(alembic_config()).get_current_head()
    return str(head)
