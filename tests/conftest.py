"""What most tests need: a clock that stands still, a database of their own, a service on them."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import pytest
import uvloop
from argon2 import PasswordHasher
from pydantic import SecretStr
from starlette.types import ASGIApp, Receive, Scope, Send

from app.audit.log import Log, Scribe
from app.base.clock import to_unix_microseconds
from app.base.db import Database
from app.base.postgres import PostgresDatabase
from app.base.sqlite import SqliteDatabase
from app.identity.callers import Caller, Origin
from app.identity.passwords import Passwords
from app.identity.users import OPERATOR, SCOPES, User
from app.minting.openai import OpenAI
from app.runtime import Runtime, database_of, log_in, open_runtime
from app.settings import Settings
from tests.clock import StandingClock
from tests.fakes import FakeOpenAI
from tests.postgres import PostgresServer, postgres_server

# The same inputs in every run; how long it takes to make them is no matter on a shared machine.
hypothesis.settings.register_profile(
    "fixed",
    derandomize=True,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("fixed")

START = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
PASSWORD = "correct horse battery staple"
LONG_SECONDS = 20.0  # how long tests wait that are not about waiting
CANARY_KEY = "sk-proj-canaryCANARYcanaryCANARY0123456789"

ROOM_BYTES = 4 * 10**9
"""Several times what all tests together write."""


def folder_in_memory() -> str | None:
    """Return a folder that is no disk, with room, from which programs may be started."""
    folder = "/dev/shm"  # noqa: S108 - pytest makes folders of its own in there
    try:
        there = os.statvfs(folder)
    except OSError:
        return None  # not Linux
    fits = there.f_bavail * there.f_frsize >= ROOM_BYTES and not there.f_flag & os.ST_NOEXEC
    return folder if fits and os.access(folder, os.W_OK) else None


# Tests kill processes, and do not cut the power: a sync to a disk that others use too would only
# take its time, of what callers are willing to wait.
if "TMPDIR" not in os.environ and (folder := folder_in_memory()):
    os.environ["TMPDIR"] = tempfile.tempdir = folder

for name in Settings.model_fields:  # what the developer's shell says must not reach the tests
    os.environ.pop(name.upper(), None)


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run on the loop that the service runs on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(autouse=True)
def _patience(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait longer than the service would: a machine that is busy is not what is tested.

    Tests of how long the service waits are marked ``impatient``, or start it as a process.
    """
    if request.node.get_closest_marker("impatient") is None:
        for module in ("app.audit.log", "app.audit.postgres_writer"):
            monkeypatch.setattr(f"{module}.PATIENCE_SECONDS", LONG_SECONDS)
        for module in ("app.base.postgres", "app.audit.postgres_writer"):
            monkeypatch.setattr(f"{module}.CONNECT_SECONDS", LONG_SECONDS)
        monkeypatch.setattr("app.base.postgres.LOCK_SECONDS", LONG_SECONDS)
        monkeypatch.setattr("app.audit.sqlite_writer.LOCK_SECONDS", LONG_SECONDS)


@pytest.fixture
def clock() -> StandingClock:
    return StandingClock(START)


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One migrated SQLite file; each test gets a copy, which is quicker than migrating."""
    path = tmp_path_factory.mktemp("migrated") / "service.db"
    migrate(lambda: SqliteDatabase(path))
    return path


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One server with one migrated database; each test gets a copy of that."""
    with postgres_server() as server:
        server.sql("postgres", "CREATE DATABASE migrated")
        migrate(lambda: PostgresDatabase(server.url("migrated")))
        yield server


def migrate(open_database: Callable[[], Database]) -> None:
    """Migrate in a thread with a loop of its own: the test's own loop may be running already."""

    async def run() -> None:
        database = open_database()
        await database.migrate(environment="live", now=to_unix_microseconds(START))
        await database.close()

    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, run()).result()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.outside)])
def backend(request: pytest.FixtureRequest) -> str:
    """Whatever asks for a database runs on both, unless it says `on_sqlite` or `on_postgresql`."""
    name: str = request.param
    return name


on_sqlite = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
on_postgresql = pytest.mark.parametrize(
    "backend", [pytest.param("postgresql", marks=pytest.mark.outside)], indirect=True
)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database_settings(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """What the process is told that a whole module speaks to: each such module runs on both."""
    if request.param == "sqlite":
        yield {}
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    url = server.new_database()
    yield {"DATABASE_URL": url}
    server.drop_database(url)


@pytest.fixture
def settings(request: pytest.FixtureRequest, backend: str, tmp_path: Path) -> Iterator[Settings]:
    """Live settings on a migrated database; tests copy them with what else they need."""
    settings = Settings(
        _env_file=None,
        openai_api_key=SecretStr(CANARY_KEY),
        data_dir=tmp_path,
        secret_key=SecretStr("0123456789abcdef" * 4),
    )
    if backend == "sqlite":
        shutil.copy(request.getfixturevalue("migrated_file"), tmp_path / "service.db")
        yield settings
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    url = server.new_database(template="migrated")
    yield settings.model_copy(update={"database_url": SecretStr(url)})
    server.drop_database(url)


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[SqliteDatabase | PostgresDatabase]:
    database = database_of(settings)
    yield database
    await database.close()


@pytest.fixture
async def log(
    database: SqliteDatabase | PostgresDatabase, clock: StandingClock
) -> AsyncIterator[Log]:
    log = log_in(database, Scribe("live", clock))
    yield log
    await log.close()


@pytest.fixture
def openai(clock: StandingClock) -> FakeOpenAI:
    return FakeOpenAI(clock=clock)


def cheap_passwords() -> Passwords:
    """Return the real thing at a cost that tests can bear."""
    return Passwords(hasher=PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))


@asynccontextmanager
async def played(
    settings: Settings,
    *,
    clock: StandingClock,
    openai: FakeOpenAI,
    passwords: Passwords | None = None,
) -> AsyncIterator[Runtime]:
    """Open the whole service below the web on a migrated database, with OpenAI played."""
    client = OpenAI(
        base_url="https://openai.test/v1",
        api_key=SecretStr(CANARY_KEY),
        transport=httpx.MockTransport(openai),
        clock=clock,
    )
    async with open_runtime(
        settings, clock=clock, openai=client, passwords=passwords or cheap_passwords()
    ) as runtime:
        yield runtime


@pytest.fixture
async def runtime(
    settings: Settings, clock: StandingClock, openai: FakeOpenAI
) -> AsyncIterator[Runtime]:
    async with played(settings, clock=clock, openai=openai) as runtime:
        yield runtime


@pytest.fixture
async def alice(runtime: Runtime) -> User:
    return await runtime.users.add("alice@example.com", role="user", password=PASSWORD, by=OPERATOR)


@pytest.fixture
async def admin(runtime: Runtime) -> User:
    return await runtime.users.add(
        "admin@example.com", role="admin", password=PASSWORD, by=OPERATOR
    )


def as_served(app: ASGIApp, runtime: Runtime) -> ASGIApp:
    """Return *app* as the lifespan would leave it, were *runtime* the one it had opened."""

    async def served(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "state": {"runtime": runtime}}, receive, send)

    return served


async def caller_for(runtime: Runtime, user: User) -> Caller:
    """Sign *user* in and return them as a caller."""
    origin = Origin(request_id="req_test", ip="192.0.2.7", user_agent="pytest")
    granted = await runtime.sign_in.begin(user, SCOPES[user.role], origin)
    return await runtime.callers.authenticate(f"Bearer {granted.access_token}", origin, scope=None)


async def bearer_for(runtime: Runtime, user: User) -> dict[str, str]:
    """Sign *user* in and return the header they send from then on."""
    granted = await runtime.sign_in.begin(user, SCOPES[user.role], Origin())
    return {"Authorization": f"Bearer {granted.access_token}"}
