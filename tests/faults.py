"""What may befall a running service: each fault begins on entry and is put right on exit."""

import asyncio
import fcntl
import os
import resource
import socket
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    ExitStack,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import asyncpg

from tests.postgres import PostgresServer, postgres_server
from tests.service import Service
from tests.slow_line import SlowLine, slow_line
from tests.stage import Stage, stage

OURS = "application_name = 'realtime-tokens'"
CUT_OFF = f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {OURS}"


@dataclass(frozen=True)
class Target:
    """A service, and all that is known of it."""

    stage: Stage
    service: Service

    @property
    def file(self) -> Path:
        """The database file, on SQLite."""
        return self.stage.folder / "var" / "service.db"


@dataclass(frozen=True)
class PostgresTarget(Target):
    """A service whose database is `tokens` on a server that nobody else uses."""

    server: PostgresServer

    async def sql(self, statement: str) -> object:
        """Run a statement as the server's owner; return the first value of its answer."""
        connection = await asyncpg.connect(self.server.url("postgres"))
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()


@dataclass(frozen=True)
class FarTarget(Target):
    """A service that reaches its PostgreSQL server over a line."""

    line: SlowLine


SqliteFault = Callable[[Target], AbstractAsyncContextManager[None]]
PostgresFault = Callable[[PostgresTarget], AbstractAsyncContextManager[None]]


# PostgreSQL ---------------------------------------------------------------------------------


@asynccontextmanager
async def postgres_target(folder: Path) -> AsyncIterator[PostgresTarget]:
    """Run a service in *folder* on a PostgreSQL server that nobody else uses."""
    with postgres_server() as server:
        server.sql("postgres", "CREATE ROLE tokens LOGIN")
        server.sql("postgres", "CREATE DATABASE tokens OWNER tokens")
        async with stage(folder, DATABASE_URL=server.url("tokens", role="tokens")) as one:
            with one.serving() as service:
                yield PostgresTarget(one, service, server)


@asynccontextmanager
async def far_from(target: PostgresTarget) -> AsyncIterator[FarTarget]:
    """Run another service on the same database, at the end of a `SlowLine`."""
    async with slow_line(target.server.port) as line:
        url = f"postgresql://tokens@127.0.0.1:{line.port}/tokens"
        stack = ExitStack()
        start = partial(stack.enter_context, target.stage.serving(DATABASE_URL=url))
        try:
            service = await asyncio.to_thread(start)  # meanwhile the line has to be served
            yield FarTarget(target.stage, service, line)
        finally:
            await asyncio.to_thread(stack.close)


@asynccontextmanager
async def stopped(target: PostgresTarget) -> AsyncIterator[None]:
    """The server is stopped in good order, and started again."""
    await asyncio.to_thread(target.server.stop)
    try:
        yield
    finally:
        await asyncio.to_thread(target.server.start)


@asynccontextmanager
async def crashed(target: PostgresTarget) -> AsyncIterator[None]:
    """The server is killed, and recovers when it is started again."""
    await asyncio.to_thread(target.server.crash)
    try:
        yield
    finally:
        await asyncio.to_thread(target.server.start)


@asynccontextmanager
async def frozen(target: PostgresTarget) -> AsyncIterator[None]:
    """The server hangs, with its connections open."""
    target.server.freeze()
    try:
        yield
    finally:
        target.server.thaw()


@asynccontextmanager
async def full(target: PostgresTarget) -> AsyncIterator[None]:
    """The server takes no more connections, and has lost those that there were."""
    await target.sql("ALTER ROLE tokens CONNECTION LIMIT 0")
    await target.sql(CUT_OFF)
    try:
        yield
    finally:
        await target.sql("ALTER ROLE tokens CONNECTION LIMIT -1")


@asynccontextmanager
async def stalled(target: PostgresTarget) -> AsyncIterator[None]:
    """Somebody holds the lock on the chain, and does not get on."""
    somebody = await asyncpg.connect(target.server.url("tokens"))
    await somebody.execute("SELECT pg_advisory_lock(7245, 1)")
    try:
        yield
    finally:
        await somebody.close()


@asynccontextmanager
async def slowed(target: FarTarget) -> AsyncIterator[None]:
    """The server answers, but later than anybody is willing to wait."""
    target.line.delay_seconds = 3.0
    try:
        yield
    finally:
        target.line.delay_seconds = 0.0


# SQLite -------------------------------------------------------------------------------------


@asynccontextmanager
async def locked(target: Target) -> AsyncIterator[None]:
    """Somebody has opened the file with another tool, and left a transaction open."""
    intruder = sqlite3.connect(target.file, isolation_level=None)
    intruder.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        intruder.close()


@asynccontextmanager
async def held_by_a_command(target: Target) -> AsyncIterator[None]:
    """A command has the lock file, and does not get on."""
    descriptor = os.open(target.file.with_name("service.db.lock"), os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


@asynccontextmanager
async def full_disk(target: Target) -> AsyncIterator[None]:
    """The kernel takes no more bytes from the service, neither for the database nor for its log."""
    pid = target.service.process.pid
    soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):  # it may have been told to end meanwhile
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))


# Clients ------------------------------------------------------------------------------------


@contextmanager
def stuck_clients(service: Service, bearer: bytes) -> Iterator[None]:
    """Clients that stop in the middle of everything, one of them in a mint of *bearer*."""
    head = b"POST /realtime/token HTTP/1.1\r\nHost: x\r\nAuthorization: " + bearer
    json = b"\r\nContent-Type: application/json\r\nContent-Length: "
    page = b"GET /swagger-ui/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n"
    sent = [
        head,  # half a head
        head + json + b"9\r\n\r\n{",  # half a body
        head + json + b"2\r\n\r\n{}",  # a whole mint
        page * 8,  # 10 MB, more than the kernel keeps for somebody who does not read
        b"",  # nothing at all
    ]
    clients = [_deaf(service) for _ in sent]
    try:
        for client, request in zip(clients, sent, strict=True):
            client.sendall(request)
        yield
    finally:
        for client in clients:
            client.close()


def _deaf(service: Service) -> socket.socket:
    """Connect with room for next to nothing, so that what is not read stays with the server."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", int(service.settings["PORT"])))
    return client
