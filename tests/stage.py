"""The service under load: what clients hold, the log says, and OpenAI saw."""

import asyncio
import hashlib
import hmac
import json
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import sqlalchemy as sa
from pydantic import SecretStr

from app.audit import chain
from app.audit.events import audit_events
from app.audit.stored import stored_rows
from app.base.keys import derive_key
from app.runtime import database_of
from app.settings import Settings
from tests.service import Service, run_command, serving
from tests.upstream import Upstream, playing_openai

T = TypeVar("T")

SECRET = "chaos-chaos-" * 4
KEY = "sk-chaos-test"
EMAIL, PASSWORD = "ada@example.com", "correct horse battery staple"
PLENTY = 1_000_000
CALLERS = 20
TOKEN = "/realtime/token"

AWAY_SECONDS = 2.0
"""Promised: the log is away, and the caller knows within this."""

BACK_SECONDS = 5.0
"""Promised: the log is back, and minting within this."""

SETTLED_SECONDS = 90.0
"""Promised: what a process left open has its outcome within this after the next start."""

DRAINED_SECONDS = 20.0
"""Promised: from SIGTERM to the end of the last process."""

TICK_SECONDS = 0.05


@dataclass
class Stage:
    """One installation, OpenAI played beside it, and everything that was ever seen of the two."""

    folder: Path
    upstream: Upstream
    settings: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)
    held: dict[str, str] = field(default_factory=dict)  # tokens that clients got, by attempt

    @property
    def on_postgresql(self) -> bool:
        return "DATABASE_URL" in self.settings

    def run(self, *arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
        """Run a command with the settings of the installation, or these in their place."""
        return run_command(self.folder, *arguments, **self.settings | settings)

    @contextmanager
    def serving(self, *, migrate: bool = True, **settings: Any) -> Iterator[Service]:
        """Run the service, with these settings in place of those of the installation.

        The first time, migrate, make an account and sign in.
        """
        migrate = migrate and not self.headers
        with serving(self.folder, migrate=migrate, **self.settings | settings) as service:
            if not self.headers:
                added = service.run("users", "add", EMAIL, "--password-stdin", stdin=PASSWORD)
                assert added.returncode == 0, added.stderr
                self.headers |= service.sign_in(EMAIL, PASSWORD)
            yield service

    async def read(self, query: Callable[[sa.Connection], T]) -> T:
        """Read the database past the service."""
        url = self.settings.get("DATABASE_URL")
        settings = Settings(
            _env_file=None,
            openai_api_key=SecretStr(KEY),
            data_dir=self.folder / "var",
            database_url=SecretStr(url) if url else None,
        )
        database = database_of(settings)
        try:
            return await database.read(query)
        finally:
            await database.close()

    async def check(self) -> set[str]:
        """See that C ⊆ I ⊆ U ⊆ R holds over all that was seen; return the attempts left open."""
        stored = await self.read(lambda tx: list(stored_rows(tx)))
        rows = [json.loads(row.canon) for row in stored]
        by_outcome: dict[str, dict[str, dict[str, Any]]] = {}
        for row in rows:
            if row["action"] == "client_secret.mint":
                attempts = by_outcome.setdefault(row["outcome"], {})
                assert attempts.setdefault(row["attempt_id"], row) is row, "two rows alike"
        requested, issued = by_outcome.get("requested", {}), by_outcome.get("issued", {})
        ended = Counter(name for attempts in by_outcome.values() for name in attempts)
        asked = set(self.upstream.asked)

        assert list(chain.faults(stored)) == []
        assert not self.held.keys() - issued.keys(), "a client holds a token without its row"
        assert not issued.keys() - asked, "a row tells of a token that OpenAI was not asked for"
        assert not asked - requested.keys(), "OpenAI was asked without a row"
        assert set(ended.values()) <= {1, 2}, "an attempt has two outcomes"
        minted = {fingerprint(value) for value in self.upstream.minted}
        assert {row["token_fingerprint"] for row in issued.values()} <= minted
        for attempt_id, value in self.held.items():
            assert issued[attempt_id]["token_fingerprint"] == fingerprint(value)
        return {name for name in requested if ended[name] == 1}

    async def outcomes(self, attempts: set[str]) -> Counter[tuple[str, str | None]]:
        """Count the outcomes of *attempts*, each with its reason."""
        c = audit_events.c
        found = sa.select(c.outcome, c.reason).where(
            c.attempt_id.in_(attempts), c.outcome != "requested"
        )
        return Counter(await self.read(lambda tx: [tuple(row) for row in tx.execute(found)]))

    async def settled(self, attempts: set[str], *, by: float) -> None:
        """Wait until each of *attempts* has its outcome, at the latest at *by* (monotonic)."""
        while (outcomes := await self.outcomes(attempts)).total() < len(attempts):
            assert time.monotonic() < by, "attempts are left without an outcome"
            await asyncio.sleep(0.5)
        may_be: set[tuple[str, str | None]] = {("unknown", "swept")}
        if self.on_postgresql:
            may_be.add(("issued", None))  # the server had it already, and wrote it after the kill
        assert outcomes.keys() <= may_be, outcomes


def fingerprint(value: str) -> str:
    key = derive_key(SECRET.encode(), "client-secret-fingerprint")
    return hmac.digest(key, value.encode(), hashlib.sha256).hex()


@asynccontextmanager
async def stage(folder: Path, **settings: Any) -> AsyncIterator[Stage]:
    """Set up an installation that nobody has started yet, with OpenAI played on loopback."""
    async with playing_openai() as upstream:
        upstream.delay_seconds = 0.02
        common = {
            "OPENAI_API_KEY": KEY,
            "OPENAI_BASE_URL": upstream.url,
            "SECRET_KEY": SECRET,
            "PUBLIC_URL": "http://tokens.test",  # one name for all, so tokens outlive a process
            "ACCESS_TOKEN_TTL_SECONDS": 3600,
            "MINTS_PER_USER_PER_MINUTE": PLENTY,
            "MINTS_PER_USER_PER_DAY": PLENTY,
            "LOG_LEVEL": "error",
        }
        yield Stage(folder, upstream, common | settings)


# Clients ------------------------------------------------------------------------------------


@dataclass
class Load:
    """Callers who ask for one token after another, and how that went."""

    stage: Stage
    answers: Counter[int] = field(default_factory=Counter)  # by status; 0: the connection was lost
    codes: set[str] = field(default_factory=set)  # of the refusals
    refusals: list[tuple[float, float]] = field(default_factory=list)  # when asked, how long
    late: list[tuple[float, float]] = field(default_factory=list)  # when we were, by how much
    over: bool = False
    _under_way: set[float] = field(default_factory=set)  # when asked
    _answered: asyncio.Event = field(default_factory=asyncio.Event)
    _minted: asyncio.Event = field(default_factory=asyncio.Event)
    _refused: asyncio.Event = field(default_factory=asyncio.Event)

    async def keep_time(self) -> None:
        """Note when this very process does not get its turn: others use the machine too."""
        while not self.over:
            due = time.monotonic() + TICK_SECONDS
            await asyncio.sleep(TICK_SECONDS)
            late = time.monotonic() - due
            if late > TICK_SECONDS:
                self.late.append((due, late))

    async def ask_on(self, service: Service) -> None:
        """Be one of the callers, until it is over."""
        url = service.url + TOKEN
        async with httpx.AsyncClient(timeout=30, headers=self.stage.headers) as client:
            while not self.over:
                began = time.monotonic()
                self._under_way.add(began)
                try:
                    answer = await client.post(url)
                except httpx.TransportError:
                    self.answers[0] += 1
                    await asyncio.sleep(0.02)
                else:
                    self._take(answer, began)
                finally:
                    self._under_way.discard(began)
                    self._answered.set()

    def _take(self, answer: httpx.Response, began: float) -> None:
        self.answers[answer.status_code] += 1
        if answer.status_code == 200:
            minted = answer.json()
            self.stage.held[minted["id"]] = minted["token"]
            self._minted.set()
        else:
            assert "Retry-After" in answer.headers, answer.text
            self.codes.add(answer.json()["code"])
            late = sum(late for due, late in self.late if due > began)
            self.refusals.append((began, time.monotonic() - began - late))
            self._refused.set()

    def slowest_refusal_seconds(self, *, since: float) -> float:
        """Return how long it took to refuse what was asked after *since*, at the longest."""
        return max((took for began, took in self.refusals if began > since), default=0.0)

    async def answered(self) -> None:
        """Wait until everything has its answer that is under way."""
        now = time.monotonic()
        async with asyncio.timeout(30):
            while any(asked < now for asked in self._under_way):
                self._answered.clear()
                await self._answered.wait()

    async def refused(self, count: int) -> None:
        """Wait until so many were refused from now on."""
        until = len(self.refusals) + count
        async with asyncio.timeout(30):
            while len(self.refusals) < until:
                self._refused.clear()
                await self._refused.wait()

    async def next_token(self, *, within: float) -> float:
        """Wait until somebody gets a token from now on; return how many seconds that took."""
        began = time.monotonic()
        self._minted.clear()
        async with asyncio.timeout(within):
            await self._minted.wait()
        return time.monotonic() - began


@asynccontextmanager
async def load(stage: Stage, *services: Service) -> AsyncIterator[Load]:
    """Let callers mint at *services*; at the end, let each finish what it has begun."""
    load = Load(stage)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(load.keep_time())
        for number in range(CALLERS):
            tasks.create_task(load.ask_on(services[number % len(services)]))
        try:
            await load.next_token(within=30)
            yield load
        finally:
            load.over = True
