"""What a mint costs: this service beside the bare servers that people write.

    make bench

One of those is FastAPI and httpx, the other Express and fetch. All three take turns on one core,
the load and the upstream share the other.
Everything is on loopback and stops by itself after some minutes. Only ratios within one run mean
anything: absolute figures differ several times from machine to machine.
"""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
from argon2 import PasswordHasher
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table

from app.base.clock import system_clock, to_unix_microseconds
from app.identity.callers import Origin
from app.identity.passwords import Passwords
from app.identity.users import OPERATOR, SCOPES
from app.runtime import database_of, open_runtime
from app.settings import Settings
from tests.clients.installed import install_clients, node
from tests.postgres import postgres_server
from tests.service import free_port

HERE = Path(__file__).parent
ROUNDS = 5
SECONDS = 2.0
WARM_UP_SECONDS = 1.0
USERS = 200
CALLERS = (1, 16, 64, 256)
DELAYS_MS = (0, 50, 200)
SERVICE_CORE, LOAD_CORE = 0, 1
SECRET = "benchmark-secret-" * 3
COLUMNS = {
    "per_second": ("mints/s", ".0f"),
    "cpu_ms": ("CPU ms/mint", ".3f"),
    "p50": ("p50 ms", ".1f"),
    "p99": ("p99 ms", ".1f"),
}


@contextmanager
def running(
    command: list[str], *, core: int, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run *command* on one core until the end."""
    process = subprocess.Popen(
        command,
        cwd=HERE.parent,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.sched_setaffinity(process.pid, {core})  # before it has any thread that could escape
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=30)


def wait_for(port: int, path: str) -> None:
    """Return when a server answers on *port*."""
    for _ in range(300):
        try:
            if httpx.get(f"http://127.0.0.1:{port}{path}").status_code < 500:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise TimeoutError(f"nothing answers on port {port}")


def cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    """Return what the process has used of its core, user and system together."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mib(process: subprocess.Popen[bytes]) -> float:
    """Return the largest resident size the process has had."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def load(port: int, callers: int, seconds: float, tokens: Path) -> dict[str, Any]:
    """Let *callers* ask for tokens all the time, and return what the client saw."""
    command = [sys.executable, HERE / "client.py", port, callers, seconds, tokens]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE) as process:
        os.sched_setaffinity(process.pid, {LOAD_CORE})
        printed, _ = process.communicate(timeout=seconds + 60)
    result: dict[str, Any] = json.loads(printed)
    return result


def measure(
    process: subprocess.Popen[bytes], port: int, callers: int, tokens: Path
) -> dict[str, float]:
    """Return one run's figures of the server that *process* is."""
    before = cpu_seconds(process)
    result = load(port, callers, SECONDS, tokens)
    assert result["refused"] == 0, "a refused mint measures something else"
    return {
        "per_second": result["answered"] / result["seconds"],
        "cpu_ms": (cpu_seconds(process) - before) * 1000 / result["answered"],
        "p50": result["p50"],
        "p99": result["p99"],
    }


async def prepare(settings: Settings, tokens: Path) -> None:
    """Make the database, and sign in so many users that no cache helps with their tokens."""
    database = database_of(settings)
    await database.migrate(environment="live", now=to_unix_microseconds(system_clock()))
    await database.close()
    cheap = Passwords(hasher=PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    async with open_runtime(settings, passwords=cheap) as runtime:
        lines = []
        for number in range(USERS):
            user = await runtime.users.add(
                f"user{number}@example.com",
                role="user",
                password="a bench, and all who sit on it",
                by=OPERATOR,
            )
            granted = await runtime.sign_in.begin(user, SCOPES["user"], Origin())
            lines.append(granted.access_token)
    tokens.write_text("\n".join(lines))  # noqa: ASYNC240 - nobody else waits


def compare(folder: Path, *, database_url: str | None, delay_ms: int) -> None:
    """Measure the servers in turn and print a table."""
    port, upstream_port = free_port(), free_port()
    upstream = f"http://127.0.0.1:{upstream_port}/v1"
    environment = {
        "OPENAI_API_KEY": "sk-bench",
        "OPENAI_BASE_URL": upstream,
        "SECRET_KEY": SECRET,
        "DATA_DIR": str(folder),
        "PORT": str(port),
        "PUBLIC_URL": f"http://127.0.0.1:{port}",
        "MINTS_PER_USER_PER_MINUTE": "1000000",
        "MINTS_PER_USER_PER_DAY": "1000000",
        "ACCESS_TOKEN_TTL_SECONDS": "3600",
        **({"DATABASE_URL": database_url} if database_url else {}),
    }
    settings = Settings(
        _env_file=None,
        openai_api_key=SecretStr("sk-bench"),
        secret_key=SecretStr(SECRET),
        data_dir=folder,
        public_url=environment["PUBLIC_URL"],
        access_token_ttl_seconds=3600,
        database_url=SecretStr(database_url) if database_url else None,
    )
    tokens = folder / "tokens"
    asyncio.run(prepare(settings, tokens))
    python = sys.executable
    with ExitStack() as stack:
        start = stack.enter_context
        start(
            running(
                [python, str(HERE / "upstream.py"), str(upstream_port), str(delay_ms)],
                core=LOAD_CORE,
            )
        )
        service = start(running([python, "-m", "app", "serve"], core=SERVICE_CORE, **environment))
        wait_for(port, "/readyz")
        servers = {"this service": (service, port)}
        for name, command in {
            "FastAPI, bare": [python, str(HERE / "bare.py")],
            "Express, bare": [str(node()), str(HERE / "express.mjs")],
        }.items():
            other = {"UPSTREAM_URL": upstream, "PORT": str(free_port())}
            servers[name] = start(running(command, core=SERVICE_CORE, **other)), int(other["PORT"])
            wait_for(servers[name][1], "/docs")
        table = Table("callers", "server", *(title for title, _ in COLUMNS.values()), box=None)
        for callers in CALLERS:
            for _, its_port in servers.values():
                load(its_port, callers, WARM_UP_SECONDS, tokens)
            runs = [
                {name: measure(*server, callers, tokens) for name, server in servers.items()}
                for _ in range(ROUNDS)
            ]
            for name in servers:
                medians = [
                    f"{statistics.median(run[name][key] for run in runs):{form}}"
                    for key, (_, form) in COLUMNS.items()
                ]
                table.add_row(str(callers), name, *medians)
            for name in list(servers)[1:]:
                ratio = statistics.median(
                    run["this service"]["per_second"] / run[name]["per_second"] for run in runs
                )
                table.add_row("", f"times {name}", f"{ratio:.2f}")
        kind = "PostgreSQL" if database_url else "SQLite"
        console = Console(width=100)
        console.print(
            f"\n{kind}, upstream {delay_ms} ms, medians of {ROUNDS} runs of {SECONDS:.0f} s"
        )
        console.print(table)
        console.print(f"peak memory of the service: {peak_mib(service):.0f} MiB")


def main() -> None:
    """Compare on both databases, with each upstream; or those named, such as ``sqlite-0``."""
    only = sys.argv[1:]
    install_clients()  # Express among them
    for delay_ms in DELAYS_MS:
        if not only or f"sqlite-{delay_ms}" in only:
            with tempfile.TemporaryDirectory() as folder:
                compare(Path(folder), database_url=None, delay_ms=delay_ms)
        if not only or f"postgresql-{delay_ms}" in only:
            with tempfile.TemporaryDirectory() as folder, postgres_server(fsync="on") as server:
                compare(Path(folder), database_url=server.new_database(), delay_ms=delay_ms)


if __name__ == "__main__":
    main()
