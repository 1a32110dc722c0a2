"""What most tests need: a clock that stands still and a migrated database of their own."""

import shutil
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from app.audit.log import Log
from app.base.clock import to_unix_microseconds
from app.base.db import Database
from tests.clock import StandingClock

START = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


@pytest.fixture
def clock() -> StandingClock:
    return StandingClock(START)


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One migrated SQLite file; each test gets a copy, which is quicker than migrating."""
    path = tmp_path_factory.mktemp("migrated") / "sandbox.db"
    database = Database(path)
    database.migrate(environment="sandbox", now=to_unix_microseconds(START))
    database.close()
    return path


@pytest.fixture
def database(migrated_file: Path, tmp_path: Path) -> Iterator[Database]:
    shutil.copy(migrated_file, tmp_path / "sandbox.db")
    database = Database(tmp_path / "sandbox.db")
    yield database
    database.close()


@pytest.fixture
async def log(database: Database, clock: StandingClock) -> AsyncIterator[Log]:
    log = Log(database, environment="sandbox", clock=clock)
    yield log
    await log.close()
