"""How fast the log can be searched, added up and exported when it is long.

    python -m benchmarks.view [sqlite] [postgresql] [ROWS]

A log of two million rows, 500 users and three backends in 90 days, is made for each database; then
a real service answers every question some times over HTTP. It takes half an hour and 6 GB of disk.
"""

import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
from argon2 import PasswordHasher
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table

from app.audit.rollup import rolled_up_to
from app.base.clock import system_clock, to_unix_microseconds
from app.identity.callers import Origin
from app.identity.passwords import Passwords
from app.identity.users import OPERATOR, SCOPES
from app.runtime import database_of, open_runtime
from app.settings import Settings
from benchmarks.bench import peak_mib, wait_for
from tests.filled_log import MODEL, OLD_MODEL, PROFILES, Story, fill
from tests.postgres import postgres_server
from tests.service import free_port

DAYS = 90
TIMES = 9
SECRET = "benchmark-secret-" * 3

console = Console(width=110)


def questions(story: Story) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give what is asked, with a name."""
    busy, idle, key = story.users[0], story.users[-1], story.keys[0]
    day = (system_clock() - timedelta(days=40)).isoformat()
    next_day = (system_clock() - timedelta(days=39)).isoformat()
    yield "everything", {}
    for span in ("1h", "today", "24h", "7d", "30d"):
        yield f"span {span}", {"span": span}
    yield "a day in the middle", {"from": day, "to": next_day}
    yield "actor, who does most", {"actor": busy}
    yield "actor, who does least", {"actor": idle}
    yield "actor, not there", {"actor": "usr_nobody"}
    yield "action", {"action": "client_secret.mint"}
    for outcome in ("issued", "denied", "failed", "unknown", "nothing"):
        yield f"outcome {outcome}", {"outcome": outcome}
    yield "reason", {"reason": "quota_exceeded"}
    yield "profile", {"profile": PROFILES[3]}
    yield "model", {"model": MODEL}
    yield "model that ended 45 days ago", {"model": OLD_MODEL}
    yield "that model, last 7 days: none", {"model": OLD_MODEL, "span": "7d"}
    yield "address of a backend", {"address": "203.0.113.0"}
    yield "address of a user", {"address": story.addresses[busy]}
    yield "address, not there", {"address": "192.0.2.1"}
    yield "credential, a service key", {"credential": key}
    yield "target, not there", {"target": "usr_nobody"}
    for place in ("usr", "eus", "key", "sgn", "req", "tok", "evt"):
        yield f"id {place}_…, not there", {"id": f"{place}_nobody"}
    yield "id of a user", {"id": busy}
    yield "id of a service key", {"id": key}
    yield "actor, outcome, span", {"actor": busy, "outcome": "issued", "span": "30d"}
    yield "actor, reason", {"actor": busy, "reason": "upstream_rate_limited"}
    yield "key, outcome failed", {"credential": key, "outcome": "failed"}
    yield "key, profile it never used", {"credential": key, "profile": PROFILES[6]}
    yield "key, address it never had", {"credential": key, "address": "203.0.113.1"}
    yield "address, outcome denied", {"address": "203.0.113.0", "outcome": "denied"}
    yield "address, profile never used", {"address": "203.0.113.0", "profile": PROFILES[6]}
    yield (
        "outcome, profile, day",
        {
            "outcome": "failed",
            "profile": PROFILES[3],
            "from": day,
            "to": next_day,
        },
    )


def timed(client: httpx.Client, path: str, params: dict[str, Any]) -> tuple[float, float, Any]:
    """Return the median and the longest time of some answers in ms, and the last of them."""
    took = []
    for _ in range(TIMES):
        began = time.perf_counter()
        answer = client.get(path, params=params)
        took.append((time.perf_counter() - began) * 1000)
        assert answer.status_code == 200, answer.text
    return statistics.median(took), max(took), answer.json()


def measure(client: httpx.Client, story: Story) -> None:
    """Ask everything, and print how long it took."""
    table = Table("question", "median ms", "longest ms", "matches", box=None)
    for name, params in questions(story):
        median, longest, body = timed(client, "/audit/events", params)
        more = "+" if body["moreMatches"] else ""
        table.add_row(name, f"{median:.0f}", f"{longest:.0f}", f"{body['matches']}{more}")
        if body["nextCursor"]:
            after = params | {"cursor": body["nextCursor"]}
            median, longest, _ = timed(client, "/audit/events", after)
            table.add_row("  its second page", f"{median:.0f}", f"{longest:.0f}", "")
    for span in ("1h", "today", "24h", "7d", "30d", None):
        median, longest, body = timed(client, "/audit/overview", {"span": span} if span else {})
        issued = str(body["totals"]["issued"])
        table.add_row(f"overview {span or 'of all'}", f"{median:.0f}", f"{longest:.0f}", issued)
    console.print(table)


def export(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    """Export everything, and print how long it took and what it cost."""
    for form in ("csv", "jsonl"):
        before, began, size, lines = peak_mib(process), time.perf_counter(), 0, 0
        with client.stream("GET", "/audit/export", params={"format": form}, timeout=900) as answer:
            for part in answer.iter_bytes():
                size, lines = size + len(part), lines + part.count(b"\n")
        seconds = time.perf_counter() - began
        console.print(
            f"export as {form}: {lines} lines, {size / 1e6:.0f} MB, {seconds:.0f} s;"
            f" peak memory {before:.0f} MiB before, {peak_mib(process):.0f} MiB after"
        )


@contextmanager
def serving(folder: Path, settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """Run the service until the end."""
    environment = {
        "OPENAI_API_KEY": "sk-bench",
        "SECRET_KEY": SECRET,
        "DATA_DIR": str(folder),
        "PORT": str(settings.port),
        "LOG_LEVEL": "error",
    }
    if settings.database_url:
        environment["DATABASE_URL"] = settings.database_url.get_secret_value()
    command = [sys.executable, "-m", "app", "serve"]
    with subprocess.Popen(command, env=environment, cwd=Path(__file__).parents[1]) as process:
        try:
            began = time.perf_counter()
            wait_for(settings.port, "/readyz")
            console.print(f"ready after {time.perf_counter() - began:.1f} s")
            yield process
        finally:
            process.terminate()


async def prepare(settings: Settings, story: Story, rows: int) -> str:
    """Make the database and the log; return the access token of an auditor."""
    database = database_of(settings)
    await database.migrate(environment="live", now=to_unix_microseconds(system_clock()))
    began = time.perf_counter()
    await fill(database, story, rows)
    console.print(f"{rows} rows made in {time.perf_counter() - began:.0f} s")
    await database.close()
    cheap = Passwords(hasher=PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    async with open_runtime(settings, passwords=cheap) as runtime:
        user = await runtime.users.add(
            "auditor@example.com",
            role="auditor",
            password="a bench, and all who sit on it",
            by=OPERATOR,
        )
        granted = await runtime.sign_in.begin(user, SCOPES["auditor"], Origin())
    return granted.access_token


async def added_up(settings: Settings, rows: int) -> None:
    """Wait until the service has added the whole log up."""
    database = database_of(settings)
    began = time.perf_counter()
    while await database.read(rolled_up_to) < rows:  # noqa: ASYNC110 - another process does it
        await asyncio.sleep(0.5)
    console.print(f"added up {time.perf_counter() - began:.0f} s later")
    await database.close()


def compare(folder: Path, database_url: str | None, rows: int) -> None:
    """Measure one database."""
    port = free_port()
    settings = Settings(
        _env_file=None,
        openai_api_key=SecretStr("sk-bench"),
        secret_key=SecretStr(SECRET),
        data_dir=folder,
        port=port,
        access_token_ttl_seconds=3600,
        database_url=SecretStr(database_url) if database_url else None,
    )
    console.print(f"\n{'PostgreSQL' if database_url else 'SQLite'}")
    start = system_clock() - timedelta(days=DAYS)
    story = Story(users=500, start=start, days=DAYS)
    token = asyncio.run(prepare(settings, story, rows))
    client = httpx.Client(
        base_url=settings.public_url, headers={"Authorization": f"Bearer {token}"}, timeout=60
    )
    with serving(folder, settings) as process, client:
        asyncio.run(added_up(settings, rows))
        measure(client, story)
        export(client, process)


def main() -> None:
    """Measure both databases, or the one that is named."""
    rows = next((int(word) for word in sys.argv[1:] if word.isdigit()), 2_000_000)
    only = {word for word in sys.argv[1:] if not word.isdigit()} or {"sqlite", "postgresql"}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if "sqlite" in only:
            compare(folder, None, rows)
        if "postgresql" in only:
            server = stack.enter_context(postgres_server(fsync="on", shared_buffers="256MB"))
            compare(folder, server.new_database(), rows)


if __name__ == "__main__":
    main()
