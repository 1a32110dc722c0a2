"""A long log, made quickly: what some hundred users and three backends leave in some months.

The rows are as the service writes them, and the chain over them is whole. They go in past the
triggers and the indexes, which are put back in the end; so a million takes a minute or two.
"""

import asyncio
import math
import random
import sqlite3
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from itertools import accumulate, islice
from typing import TYPE_CHECKING, Any, NamedTuple

from app.audit import chain
from app.audit.events import Event, Personal, write_out
from app.base.clock import to_unix_microseconds
from app.base.ids import id_of
from app.base.postgres import PostgresDatabase
from app.base.sqlite import SqliteDatabase

if TYPE_CHECKING:
    import asyncpg

ROWS_AT_ONCE = 20_000

PROFILES = ("default", "coach", "support", "survey", "sales", "reception", "tutor", "travel")
OLD_MODEL, MODEL = "gpt-realtime-mini", "gpt-realtime-2.1-mini"
FAILURES = ("upstream_unavailable", "upstream_rate_limited", "upstream_quota_exhausted")
REFUSALS = ("rate_limited", "quota_exceeded", "override_not_allowed", "profile_not_found")
BACKENDS = 3
AGENT = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0"


class Row(NamedTuple):
    """A row of the log, and what stands beside it."""

    seq: int
    recorded_at: int
    canon: str
    row_hash: bytes
    personal: tuple[str, bytes, str, int] | None


class Story:
    """Tells what happened, the same each time.

    Args:
        users: How many there are; a few of them do most.
        start: When it begins.
        days: How long it goes on.
        environment: In which one the service runs.
    """

    def __init__(
        self, *, users: int, start: datetime, days: float, environment: str = "live"
    ) -> None:
        self._random = random.Random(4711)  # noqa: S311 - the same each time is what is wanted
        self._days = days
        self._environment = environment
        self._start = start
        self.users = [self._id("usr") for _ in range(users)]
        self.end_users = [self._id("eus") for _ in range(users // 2)]
        self.keys = [self._id("key") for _ in range(BACKENDS)]
        self.addresses = {user: f"198.51.{n // 250}.{n % 250}" for n, user in enumerate(self.users)}
        self._sign_ins = {user: self._id("sgn") for user in self.users}
        self._weights = list(accumulate(1 / (n + 10) for n in range(users)))

    def rows(self, count: int) -> Iterator[Row]:
        """Give the first *count* rows, which fill all the days."""
        previous, step = chain.GENESIS, timedelta(days=self._days) / count
        for seq, event in enumerate(islice(self._events(count), count), start=1):
            # More by day than by night: the clock runs faster or slower.
            days = seq * step / timedelta(days=1)
            at = self._start + timedelta(days=days + 0.09 * math.sin(days * math.tau))
            recorded_at = to_unix_microseconds(at)
            written = write_out(event, environment=self._environment)
            previous = chain.row_hash(
                previous, seq=seq, recorded_at=recorded_at, canon=written.canon
            )
            beside = None
            if written.salt is not None and written.personal is not None:
                beside = (written.event_id, written.salt, written.personal, seq)
            yield Row(seq, recorded_at, written.canon, previous, beside)

    def _events(self, count: int) -> Iterator[Event]:
        told = 0
        while True:
            chance = self._random.random()
            model = OLD_MODEL if told < count / 2 else MODEL
            events = list(self._sign_in(chance) if chance < 0.08 else self._mint(model))
            told += len(events)
            yield from events

    def _sign_in(self, chance: float) -> Iterator[Event]:
        user = self._somebody()
        common: dict[str, Any] = {
            "event_id": self._id("evt"),
            "request_id": self._id("req"),
            "personal": Personal(ip=self.addresses[user], user_agent=AGENT),
        }
        if chance < 0.01:
            yield Event(
                action="user.sign_in",
                outcome="denied",
                reason="wrong_password",
                actor=user,
                **common,
            )
        elif chance < 0.011:
            yield Event(
                action="request.deny", outcome="denied", reason="repeated", count=17, **common
            )
        else:
            self._sign_ins[user] = self._id("sgn")
            yield Event(
                action="user.sign_in",
                outcome="succeeded",
                actor=user,
                sign_in=self._sign_ins[user],
                **common,
            )

    def _mint(self, model: str) -> Iterator[Event]:
        chance = self._random.random()
        attempt: dict[str, Any] = {
            "action": "client_secret.mint",
            "attempt_id": self._id("tok"),
            "request_id": self._id("req"),
            "profile": self._random.choice(PROFILES),
        }
        if chance < 0.3:
            number = 0 if chance < 0.25 else 1
            attempt["actor"] = self._random.choice(self.end_users)
            attempt["credential"] = self.keys[number]
            address = f"203.0.113.{number}"
            attempt["profile"] = PROFILES[number]
        else:
            user = self._somebody()
            attempt["actor"] = user
            attempt["credential"] = self._id("jti")
            attempt["sign_in"] = self._sign_ins[user]
            address = self.addresses[user]
        personal = Personal(ip=address, user_agent=AGENT)
        chance = self._random.random()
        if chance < 0.06:
            yield Event(
                outcome="denied",
                reason=self._random.choice(REFUSALS),
                event_id=self._id("evt"),
                personal=personal,
                **attempt,
            )
            return
        attempt |= {
            "model_asked": "mini",
            "model_used": model,
            "transcription_model": "gpt-4o-mini-transcribe",
            "ttl_seconds": 60,
            "config_digest": "5f" * 32,
        }
        yield Event(outcome="requested", event_id=self._id("evt"), personal=personal, **attempt)
        if chance < 0.09:
            yield Event(
                outcome="failed" if chance < 0.085 else "unknown",
                reason=self._random.choice(FAILURES),
                upstream_status=503,
                event_id=self._id("evt"),
                **attempt,
            )
            return
        yield Event(
            outcome="issued",
            expires_at=1_795_176_060,
            upstream_status=200,
            upstream_request_id=f"req_{self._random.getrandbits(128):032x}",
            upstream_session_id="sess_Dx7Qm2pLr9Tz1aVbC3nE5",
            upstream_ms=int(self._random.lognormvariate(5.4, 0.5)),
            token_fingerprint=f"{self._random.getrandbits(256):064x}",
            event_id=self._id("evt"),
            **attempt,
        )

    def _somebody(self) -> str:
        [user] = self._random.choices(self.users, cum_weights=self._weights)
        return user

    def _id(self, prefix: str) -> str:
        return id_of(prefix, self._random.randbytes(26))


async def fill(database: SqliteDatabase | PostgresDatabase, story: Story, count: int) -> None:
    """Put the first *count* rows of a *story* into the log of an empty database."""
    rows = story.rows(count)
    if isinstance(database, SqliteDatabase):
        await asyncio.to_thread(_fill_sqlite, database, rows)
    else:
        await _fill_postgres(database, rows)


def _fill_sqlite(database: SqliteDatabase, rows: Iterator[Row]) -> None:
    connection = database.connect()
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("PRAGMA cache_size = -400000")
    aside = "type IN ('index', 'trigger') AND tbl_name LIKE 'audit_%' AND sql IS NOT NULL"
    found = connection.execute(
        f"SELECT type, name, sql FROM sqlite_master WHERE {aside}"
    ).fetchall()
    for kind, name, _ in found:
        connection.execute(f"DROP {kind} {name}")
    while some := list(islice(rows, ROWS_AT_ONCE)):
        connection.execute("BEGIN IMMEDIATE")
        _insert(connection, some)
        connection.execute("COMMIT")
    for _, _, statement in found:
        connection.execute(statement)
    connection.close()


def _insert(connection: sqlite3.Connection, rows: Sequence[Row]) -> None:
    connection.executemany(
        "INSERT INTO audit_events (seq, recorded_at, canon, row_hash) VALUES (?, ?, ?, ?)",
        [row[:4] for row in rows],
    )
    connection.executemany(
        "INSERT INTO audit_personal (event_id, salt, data, seq) VALUES (?, ?, ?, ?)",
        [row.personal for row in rows if row.personal is not None],
    )


async def _fill_postgres(database: PostgresDatabase, rows: Iterator[Row]) -> None:
    connection = await database.connect(statement_seconds=None)
    async with connection.transaction():
        await connection.execute("SET LOCAL session_replication_role = replica")  # no triggers
        await connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        await connection.execute("SET LOCAL maintenance_work_mem = '512MB'")
        indexes = await connection.fetch(
            "SELECT indexname, indexdef FROM pg_indexes"
            " WHERE tablename IN ('audit_events', 'audit_personal') AND indexname NOT LIKE 'pk_%'"
        )
        for index in indexes:
            await connection.execute(f"DROP INDEX {index['indexname']}")
        while some := list(islice(rows, ROWS_AT_ONCE)):
            await _copy(connection, some)
        for index in indexes:
            await connection.execute(index["indexdef"])
    await connection.execute("VACUUM ANALYZE")  # as the server does by itself after a while
    await connection.close()


async def _copy(connection: "asyncpg.Connection[asyncpg.Record]", rows: Sequence[Row]) -> None:
    await connection.copy_records_to_table(
        "audit_events",
        records=[row[:4] for row in rows],
        columns=["seq", "recorded_at", "canon", "row_hash"],
    )
    await connection.copy_records_to_table(
        "audit_personal",
        records=[row.personal for row in rows if row.personal is not None],
        columns=["event_id", "salt", "data", "seq"],
    )
