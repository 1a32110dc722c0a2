"""What most tests need: a clock that stands still, a database of their own, a service on them."""

import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from argon2 import PasswordHasher
from pydantic import SecretStr

from app.audit.log import Log
from app.base.clock import to_unix_microseconds
from app.base.db import Database
from app.identity.callers import Caller, Origin
from app.identity.passwords import Passwords
from app.identity.users import OPERATOR, SCOPES, User
from app.minting.openai import OpenAI
from app.runtime import Runtime, open_runtime
from app.settings import Settings
from tests.clock import StandingClock
from tests.fakes import FakeOpenAI

START = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
PASSWORD = "correct horse battery staple"
CANARY_KEY = "sk-proj-canaryCANARYcanaryCANARY0123456789"

for name in Settings.model_fields:  # what the developer's shell says must not reach the tests
    os.environ.pop(name.upper(), None)


@pytest.fixture
def clock() -> StandingClock:
    return StandingClock(START)


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One migrated SQLite file; each test gets a copy, which is quicker than migrating."""
    path = tmp_path_factory.mktemp("migrated") / "service.db"
    database = Database(path)
    database.migrate(environment="live", now=to_unix_microseconds(START))
    database.close()
    return path


@pytest.fixture
def database(migrated_file: Path, tmp_path: Path) -> Iterator[Database]:
    shutil.copy(migrated_file, tmp_path / "service.db")
    database = Database(tmp_path / "service.db")
    yield database
    database.close()


@pytest.fixture
async def log(database: Database, clock: StandingClock) -> AsyncIterator[Log]:
    log = Log(database, environment="live", clock=clock)
    yield log
    await log.close()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Live settings with nothing else set; tests copy them with what they need."""
    return Settings(
        _env_file=None,
        openai_api_key=SecretStr(CANARY_KEY),
        data_dir=tmp_path,
        secret_key=SecretStr("0123456789abcdef" * 4),
    )


def cheap_passwords() -> Passwords:
    """Return the real thing at a cost that tests can bear."""
    return Passwords(hasher=PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))


@pytest.fixture
def openai(clock: StandingClock) -> FakeOpenAI:
    return FakeOpenAI(clock=clock)


@asynccontextmanager
async def played(
    settings: Settings, *, clock: StandingClock, openai: FakeOpenAI
) -> AsyncIterator[Runtime]:
    """Open the whole service below the web on a migrated database, with OpenAI played."""
    client = OpenAI(
        base_url="https://openai.test/v1",
        api_key=SecretStr(CANARY_KEY),
        transport=httpx.MockTransport(openai),
    )
    async with open_runtime(
        settings, clock=clock, openai=client, passwords=cheap_passwords()
    ) as runtime:
        yield runtime


@pytest.fixture
async def runtime(
    settings: Settings, clock: StandingClock, openai: FakeOpenAI, database: Database
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


async def caller_for(runtime: Runtime, user: User) -> Caller:
    """Sign *user* in and return them as a caller."""
    origin = Origin(request_id="req_test", ip="192.0.2.7", user_agent="pytest")
    granted = await runtime.sign_in.begin(user, SCOPES[user.role], origin)
    return await runtime.callers.authenticate(f"Bearer {granted.access_token}", origin, scope=None)


async def bearer_for(runtime: Runtime, user: User) -> dict[str, str]:
    """Sign *user* in and return the header they send from then on."""
    granted = await runtime.sign_in.begin(user, SCOPES[user.role], Origin())
    return {"Authorization": f"Bearer {granted.access_token}"}
