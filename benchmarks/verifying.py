"""How long a million rows take to verify: python -m benchmarks.verifying [ROWS] [postgresql].

Fills a log with rows as mints leave them, by the very function that hashes them, and verifies it as
`audit verify` does, then exports it, verifies the file and prunes some of it.

Prints times and memory.
"""

import asyncio
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

import sqlalchemy as sa

from app.audit import chain
from app.audit.checkpoint_file import CheckpointFile
from app.audit.checkpoints import LogName, Signer, audit_checkpoints, log_name
from app.audit.events import Event, Personal, audit_events, audit_personal, write_out
from app.audit.log import Scribe
from app.audit.pruning import SEGMENT_ROWS, Pruning
from app.audit.segments import Exporter, FileVerification
from app.audit.verification import Verification
from app.base.clock import system_clock, to_unix_microseconds
from app.base.db import Database
from app.base.errors import AuditUnavailable
from app.base.ids import new_id
from app.base.postgres import PostgresDatabase
from app.base.sqlite import SqliteDatabase
from app.runtime import log_in
from tests.postgres import postgres_server

AT_ONCE = 2_000
CHECKPOINT_EVERY = 1_000
SIGNER = Signer(b"a secret of the benchmark, no other")


def mints() -> Iterator[Event]:
    """Give the two rows of one mint after the other, with a caller's address and browser."""
    while True:
        attempt, actor = new_id("tok"), new_id("usr")
        common = {
            "action": "client_secret.mint",
            "attempt_id": attempt,
            "actor": actor,
            "credential": "4yQm0b7ZsXl2kKq8cVh1Tg",
            "sign_in": new_id("sgn"),
            "request_id": new_id("req"),
            "profile": "default",
            "model_asked": "mini",
            "model_used": "gpt-realtime-2.1-mini",
            "transcription_model": "gpt-4o-mini-transcribe",
            "language": "en",
            "ttl_seconds": 60,
            "config_digest": "5" * 64,
        }
        browser = (
            "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142"
        )
        personal = Personal(ip="192.0.2.17", user_agent=browser)
        yield Event(outcome="requested", personal=personal, **common)
        yield Event(
            outcome="issued",
            expires_at=1795176060,
            upstream_status=200,
            upstream_request_id="req_5f0c2d7be94c4b1aa0c6b0f8a0d6c2a1",
            upstream_ms=241,
            token_fingerprint="c" * 64,
            **common,
        )


async def fill(database: Database, rows: int) -> None:
    """Put *rows* into the log past the writer, with a checkpoint for each thousand."""
    events, head = mints(), chain.BEGINNING
    log: LogName = await database.read(log_name)
    at = to_unix_microseconds(system_clock()) - rows * 1_000
    while head.seq < rows:
        stored, personal, signed = [], [], []
        for event in (next(events) for _ in range(AT_ONCE)):
            written, at = write_out(event, environment="live"), at + 1_000
            seq = head.seq + 1
            row_hash = chain.row_hash(head.row_hash, seq=seq, recorded_at=at, canon=written.canon)
            head = chain.Head(seq, row_hash)
            stored.append(
                {"seq": seq, "recorded_at": at, "canon": written.canon, "row_hash": row_hash}
            )
            if written.personal is not None:
                personal.append(
                    {"event_id": written.event_id, "salt": written.salt, "data": written.personal}
                )
            if seq % CHECKPOINT_EVERY == 0:
                signed.append(SIGNER.sign("checkpoint", log, head, at=at).row)

        def insert(
            tx: sa.Connection,
            stored: list[dict[str, object]] = stored,
            personal: list[dict[str, object]] = personal,
            signed: list[dict[str, object]] = signed,
        ) -> None:
            if tx.dialect.name == "postgresql":
                tx.exec_driver_sql("ALTER TABLE audit_events DISABLE TRIGGER USER")
            tx.execute(audit_events.insert(), stored)
            tx.execute(audit_personal.insert(), personal)
            tx.execute(audit_checkpoints.insert(), signed)

        await database.alter(insert)
    if isinstance(database, PostgresDatabase):
        # It does so by itself, some minutes after so many rows. Until then the first who reads a
        # row finds out that it was committed, and writes that down for the next.
        connection = await database.connect(statement_seconds=None)
        await connection.execute("VACUUM ANALYZE")
        await connection.close()


def peak() -> str:
    """Return the largest memory of this process so far."""
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB"


async def measure(database: SqliteDatabase | PostgresDatabase, folder: Path, rows: int) -> None:
    """Fill, verify, export, verify the file."""
    await database.migrate(environment="live", now=1)
    began = time.perf_counter()
    await fill(database, rows)
    print(f"filled with {rows} rows in {time.perf_counter() - began:.1f} s, peak {peak()}")

    began, cpu = time.perf_counter(), time.process_time()
    file = CheckpointFile(folder / "checkpoints.jsonl")
    walk = Verification(database, keys=[SIGNER.public_key], file=file)
    await walk.run()
    took, used = time.perf_counter() - began, time.process_time() - cpu
    assert walk.findings.count == 0, walk.findings.faults
    assert walk.rows_checked == rows
    print(
        f"verified in {took:.1f} s, {used:.1f} s of our processor time,"
        f" {walk.checkpoints_checked} checkpoints, peak {peak()}"
    )

    path = folder / "log.jsonl"
    began = time.perf_counter()
    with path.open("wb") as out:
        await Exporter(database, signer=SIGNER, clock=system_clock).write(out)
    print(
        f"exported in {time.perf_counter() - began:.1f} s,"
        f" {path.stat().st_size / 1e6:.0f} MB, peak {peak()}"
    )
    began = time.perf_counter()
    offline = FileVerification(SIGNER.public_key)
    with path.open("rb") as lines:
        offline.run(lines)
    assert offline.findings.count == 0, offline.findings.faults
    print(f"verified the file in {time.perf_counter() - began:.1f} s, peak {peak()}")
    await prune(database, folder)
    await database.close()


async def prune(database: SqliteDatabase | PostgresDatabase, folder: Path) -> None:
    """Take fifteen segments out, beside somebody who appends, and time how long that one waits."""
    log = log_in(database, Scribe("live", in_two_days))
    pruning = Pruning(database=database, log=log, signer=SIGNER, clock=in_two_days)
    beside, waits = log_in(database, Scribe("live", system_clock)), [0.0]

    async def append() -> None:
        while True:
            began = time.perf_counter()
            with suppress(AuditUnavailable):
                await beside.record([Event(action="benchmark.act", outcome="done")])
            waits.append(time.perf_counter() - began)
            await asyncio.sleep(0.01)

    appending = asyncio.create_task(append())
    began = time.perf_counter()
    await pruning.run(15 * SEGMENT_ROWS, folder, by="operator")
    took = time.perf_counter() - began
    appending.cancel()
    print(
        f"pruned fifteen segments in {took:.1f} s; who appended waited {max(waits):.2f} s at most"
    )
    await beside.close()
    await log.close()


def in_two_days() -> datetime:
    """Return a moment at which every row is old enough to go."""
    return system_clock() + timedelta(days=2)


def main() -> None:
    """Measure with as many rows as asked for, a million unless told otherwise."""
    rows = int(next((text for text in sys.argv[1:] if text.isdigit()), "1000000"))
    print(json.dumps({"rows": rows, "on": "postgresql" if "postgresql" in sys.argv else "sqlite"}))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "postgresql" in sys.argv:
            with postgres_server() as server:
                asyncio.run(measure(PostgresDatabase(server.new_database()), folder, rows))
        else:
            asyncio.run(measure(SqliteDatabase(folder / "service.db"), folder, rows))


if __name__ == "__main__":
    main()
