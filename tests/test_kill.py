"""Promises 1 and 2: what clients hold ⊆ issued rows ⊆ calls made ⊆ requested rows."""

import asyncio
import hashlib
import hmac
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.audit import chain
from app.audit.search import stored_rows
from app.base.keys import derive_key
from app.base.sqlite import SqliteDatabase
from tests.service import Service, serving
from tests.upstream import Upstream, playing_openai

pytestmark = pytest.mark.outside

SECRET = "kill-test-" * 4
EMAIL, PASSWORD = "ada@example.com", "correct horse battery staple"
SETTINGS: dict[str, Any] = {
    "OPENAI_API_KEY": "sk-kill-test",
    "SECRET_KEY": SECRET,
    "MINTS_PER_USER_PER_MINUTE": 1_000_000,
    "MINTS_PER_USER_PER_DAY": 1_000_000,
    "LOG_LEVEL": "error",
}


def fingerprint(value: str) -> str:
    key = derive_key(SECRET.encode(), "client-secret-fingerprint")
    return hmac.digest(key, value.encode(), hashlib.sha256).hex()


async def log_of(folder: Path) -> tuple[list[dict[str, Any]], list[chain.Fault]]:
    """Read the whole log past the service."""
    database = SqliteDatabase(folder / "var" / "service.db")
    stored = await database.read(lambda tx: list(stored_rows(tx)))
    await database.close()
    return [json.loads(row.canon) for row in stored], list(chain.faults(stored))


@dataclass
class Held:
    """What the clients have got, by attempt; and whether that is enough to make a kill count."""

    tokens: dict[str, str] = field(default_factory=dict)
    enough: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, minted: dict[str, Any]) -> None:
        self.tokens[minted["id"]] = minted["token"]
        if len(self.tokens) >= 200:
            self.enough.set()


async def mint_for_ever(service: Service, headers: dict[str, str], held: Held) -> None:
    """Ask for one token after another until the service is gone."""
    async with httpx.AsyncClient(timeout=5) as client:
        while True:
            try:
                answer = await client.post(f"{service.url}/realtime/token", headers=headers)
            except httpx.TransportError:
                return
            if answer.status_code == 200:
                held.add(answer.json())


async def kill_under_load(folder: Path, upstream: Upstream) -> dict[str, str]:
    """Let 20 callers mint, cut the power in the middle, and return what they hold."""
    settings = SETTINGS | {"OPENAI_BASE_URL": upstream.url}
    with serving(folder, **settings) as service:
        added = service.run("users", "add", EMAIL, "--password-stdin", stdin=PASSWORD)
        assert added.returncode == 0, added.stderr
        headers = service.sign_in(EMAIL, PASSWORD)
        held = Held()
        callers = [asyncio.create_task(mint_for_ever(service, headers, held)) for _ in range(20)]
        await asyncio.wait_for(held.enough.wait(), timeout=60)
        service.kill()
        await asyncio.gather(*callers)
    return held.tokens


async def test_a_kill_under_load_keeps_the_invariant(tmp_path: Path) -> None:
    async with playing_openai() as upstream:
        upstream.delay_seconds = 0.02
        held = await kill_under_load(tmp_path, upstream)

        rows, faults = await log_of(tmp_path)
        requested = {r["attempt_id"] for r in rows if r["outcome"] == "requested"}
        issued = {r["attempt_id"]: r for r in rows if r["outcome"] == "issued"}
        assert faults == []
        assert len(held) >= 200
        assert held.keys() <= issued.keys()
        assert issued.keys() <= set(upstream.asked)
        assert set(upstream.asked) <= requested
        for attempt_id, value in held.items():
            assert issued[attempt_id]["token_fingerprint"] == fingerprint(value)
        known = {fingerprint(value) for value in upstream.minted}
        assert {row["token_fingerprint"] for row in issued.values()} <= known
        open_attempts = requested - {
            r.get("attempt_id") for r in rows if r["outcome"] != "requested"
        }
        assert open_attempts, "the kill hit nothing: it proves nothing"

        with serving(tmp_path, **SETTINGS, OPENAI_BASE_URL=upstream.url) as again:
            verified = again.run("audit", "verify")
            assert verified.returncode == 0, verified.stdout
        rows, faults = await log_of(tmp_path)
        outcomes = {r["attempt_id"]: r for r in rows if r["outcome"] == "unknown"}
        assert open_attempts <= outcomes.keys()
        assert {outcomes[name]["reason"] for name in open_attempts} == {"swept"}
        assert faults == []
