"""The database as everything above sees it, whichever of the two it is."""

import abc
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import sqlalchemy as sa
import structlog

from app.base.errors import AuditUnavailable

if TYPE_CHECKING:
    from alembic.config import Config

T = TypeVar("T")

_ROOT = Path(__file__).parents[2]

_log = structlog.get_logger(__name__)

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


class Database(abc.ABC):
    """One database: read here, written through `app.audit.log` alone."""

    name: str
    """What to call it in messages; never holds a password."""

    async def read(self, query: Callable[[sa.Connection], T]) -> T:
        """Run *query* inside one short read transaction.

        Raises:
            AuditUnavailable: The database is away, locked or broken; the server's log says how.
        """
        try:
            return await self._read(query)
        except Exception as error:
            if not self.is_away(error):
                raise
            _log.error("database_unavailable", error=type(error).__name__, reason=reason_of(error))
            raise AuditUnavailable(retry_after_seconds=2) from None

    @abc.abstractmethod
    async def _read(self, query: Callable[[sa.Connection], T]) -> T:
        """Do as `read` says, and raise whatever the driver does."""

    @staticmethod
    @abc.abstractmethod
    def is_away(error: Exception) -> bool:
        """Tell whether *error* is about the state of the database, and not about what was asked."""

    @abc.abstractmethod
    async def alter(self, change: Callable[[sa.Connection], None]) -> None:
        """Run a migration in one transaction that nobody else can run beside."""

    @abc.abstractmethod
    def claim_for_serving(self) -> bool:
        """Take what only one serving process may have; tell whether there is such a thing.

        Raises:
            DatabaseFault: Another process has it.
        """

    @abc.abstractmethod
    def claim_for_pruning(self) -> AbstractAsyncContextManager[bool]:
        """Be the only one of all processes who takes rows out; yields whether nobody else does.

        Raises:
            AuditUnavailable: The database is away.
        """

    @abc.abstractmethod
    async def scrub(self) -> None:
        """Take what was deleted out of the files too, as far as that can be had."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Close every connection."""

    async def migrate(self, *, environment: str, now: int, revision: str = "head") -> None:
        """Bring the tables to *revision*, making the database when it is not there.

        Args:
            environment: ``live`` or ``sandbox``; remembered for good.
            now: Unix µs.
            revision: An alembic revision to go up to.

        Raises:
            NotMigrated: It was made by a newer release.
            DatabaseFault: It cannot be reached, or something is in the way.
        """
        # Here and not above: alembic takes ten mebibytes that serving can do without.
        from alembic import command  # noqa: PLC0415 - see above
        from alembic.util import CommandError  # noqa: PLC0415 - likewise

        def upgrade(tx: sa.Connection) -> None:
            command.upgrade(_config_on(tx), revision)
            if tx.execute(sa.select(installation)).first() is None:
                row = {"environment": environment, "created_at": now}
                tx.execute(installation.insert(), row)

        try:
            await self.alter(upgrade)
        except sa.exc.DBAPIError as error:
            raise DatabaseFault(f"{self.name} cannot be migrated: {error.orig}") from error
        except CommandError:
            raise NotMigrated(f"{self.name} was made by a newer release; use that") from None
        except (OSError, TimeoutError) as error:
            raise DatabaseFault(f"{self.name} cannot be reached: {error}") from None

    async def downgrade(self, *, revision: str) -> None:
        """Take the tables back to *revision*."""
        from alembic import command  # noqa: PLC0415 - as in `migrate`

        await self.alter(lambda tx: command.downgrade(_config_on(tx), revision))

    @abc.abstractmethod
    async def reach(self) -> None:
        """Connect for the first time, with more patience than a caller has.

        Should it not come to that, `check` says why.
        """

    async def check(self, *, environment: str) -> None:
        """See that the database is there, migrated, and of this *environment*.

        Raises:
            NotMigrated: It is there, but not as this release needs it.
            DatabaseFault: It is not there, cannot be read, or is of the other environment.
        """
        try:
            present, remembered = await self._read(_revision_and_environment)
        except Exception as error:
            if not self.is_away(error):
                raise
            raise DatabaseFault(f"{self.name} cannot be read: {reason_of(error)}") from None
        known = revisions()
        if present is not None and present not in known:
            raise NotMigrated(
                f"{self.name} was made by a newer release (revision {present}); use that release"
            )
        if present != known[-1]:
            raise NotMigrated(
                f"{self.name} is at revision {present or 'none'}, this release needs {known[-1]};"
                " run: realtime-tokens migrate"
            )
        if remembered != environment:
            raise DatabaseFault(
                f"{self.name} belongs to the {remembered} environment, this is {environment};"
                " use another database"
            )


def reason_of(error: Exception) -> str:
    """Return what the driver said, in one line, without the statement."""
    said = error.orig if isinstance(error, sa.exc.DBAPIError) else error
    return " ".join(str(said).split()) or type(said).__name__


def _revision_and_environment(tx: sa.Connection) -> tuple[str | None, str | None]:
    tables = sa.inspect(tx)
    if not tables.has_table("alembic_version") or not tables.has_table(installation.name):
        return None, None
    revision = tx.scalar(sa.text("SELECT version_num FROM alembic_version"))
    return revision, tx.scalar(sa.select(installation.c.environment))


def revisions() -> list[str]:
    """Return the migrations of this release, oldest first, by the names of their files."""
    files = (_ROOT / "alembic" / "versions").glob("[0-9]*.py")
    return sorted(file.name.partition("_")[0] for file in files)


def alembic_config() -> "Config":
    """Return alembic's configuration, wherever the process was started."""
    from alembic.config import Config  # noqa: PLC0415 - as in `Database.migrate`

    config = Config(_ROOT / "alembic.ini")
    config.set_main_option("script_location", str(_ROOT / "alembic"))
    return config


def _config_on(tx: sa.Connection) -> "Config":
    config = alembic_config()
    config.attributes["connection"] = tx
    return config
