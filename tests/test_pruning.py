"""Rows that are taken out on purpose leave a file and a mark, and the proof goes on behind them."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import SecretStr
from structlog.testing import capture_logs

from app.audit import chain
from app.audit.checkpoints import Signer, audit_checkpoints
from app.audit.continuity import Continuity
from app.audit.events import Event, Personal, audit_events, audit_personal
from app.audit.pruning import BeingPruned, CannotPrune, Pruning
from app.audit.retention import Retention, Terms
from app.audit.segments import CannotExport, Exporter
from app.base.clock import to_unix_microseconds
from app.base.db import Database
from app.base.postgres import PostgresDatabase
from app.runtime import Runtime
from app.settings import Settings
from tests.clock import StandingClock
from tests.conftest import migrate, on_postgresql, on_sqlite, played
from tests.fakes import FakeOpenAI
from tests.installation import Installation, installation_of, lines_of
from tests.log_rows import rows
from tests.postgres import postgres_server
from tests.service import environment
from tests.test_migrations import TRIGGERS, triggers
from tests.waiting import until

OLD = 30
"""Rows that are old enough to go."""


@pytest.fixture
async def owner(runtime: Runtime, clock: StandingClock) -> Installation:
    owner = installation_of(runtime, clock)
    for _ in range(3):
        await owner.append(10)
        await owner.checkpoint()
    clock.advance(days=2)
    await owner.append(5)
    await owner.checkpoint()
    return owner


async def prune(owner: Installation, up_to: int, folder: Path) -> list[Path]:
    segments = await owner.runtime.pruning.run(up_to, folder, by="operator")
    return [segment.path for segment in segments]


async def seqs(database: Database) -> list[int]:
    wanted = sa.select(audit_events.c.seq).order_by(audit_events.c.seq)
    return list(await database.read(lambda tx: tx.scalars(wanted).all()))


async def counts(database: Database) -> tuple[int, int]:
    def count(tx: sa.Connection) -> tuple[int, int]:
        return tuple(  # type: ignore[return-value]  # two tables, two numbers
            tx.scalar(sa.select(sa.func.count()).select_from(table))
            for table in (audit_events, audit_personal)
        )

    return await database.read(count)


async def test_what_is_taken_out_proves_itself_and_the_rest_goes_on(
    owner: Installation, backend: str, tmp_path: Path
) -> None:
    [path] = await prune(owner, 25, tmp_path / "archive")

    lines = lines_of(path)
    assert owner.faults_of_file(lines) == []
    kept = [json.loads(line) for line in lines]
    assert [row["seq"] for row in kept if "seq" in row] == list(range(1, 26))
    assert path.name == "audit-000000000001-000000000025.jsonl"
    assert b"192.0.2.1" not in path.read_bytes()  # so that whoever is erased is not in there
    assert (await seqs(owner.database))[0] == 26
    assert await counts(owner.database) == (11, 10)  # the row about the pruning names nobody
    [row] = await rows(owner.database, action="audit_log.prune")
    assert (row["count"], row["boundary_seq"], row["actor"]) == (25, 25, "operator")
    assert await triggers(owner.database) == TRIGGERS[backend]
    assert (await owner.verify()).rows_checked == 11
    assert await owner.faults() == []
    await owner.append(1)
    await owner.checkpoint()
    assert await owner.faults() == []


async def test_a_second_pruning_goes_on_where_the_first_ended(
    owner: Installation, tmp_path: Path
) -> None:
    await prune(owner, 12, tmp_path)

    [path] = await prune(owner, 25, tmp_path)

    assert path.name == "audit-000000000013-000000000025.jsonl"
    assert owner.faults_of_file(lines_of(path)) == []
    assert await prune(owner, 25, tmp_path) == []
    assert await owner.faults() == []


async def test_many_rows_go_segment_by_segment(owner: Installation, tmp_path: Path) -> None:
    pruning = Pruning(
        database=owner.database,
        log=owner.runtime.log,
        signer=owner.signer,
        clock=owner.clock,
        segment_rows=10,
    )

    segments = await pruning.run(25, tmp_path, by="operator")

    assert [segment.path.name[6:31] for segment in segments] == [
        "000000000001-000000000010",
        "000000000011-000000000020",
        "000000000021-000000000025",
    ]
    assert await owner.faults() == []


IS_MARK = audit_checkpoints.c.kind == "pruned"


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        (sa.update(audit_events).where(audit_events.c.seq == 28).values(recorded_at=1), 28),
        (sa.delete(audit_events).where(audit_events.c.seq == 26), 26),
        (sa.delete(audit_events).where(audit_events.c.seq > 30), 31),
        (sa.delete(audit_events).where(audit_events.c.seq <= 27), 26),
        (sa.delete(audit_checkpoints).where(IS_MARK), 1),
        (sa.update(audit_checkpoints).where(IS_MARK).values(seq=26), 1),
        (sa.update(audit_checkpoints).where(IS_MARK).values(signature=bytes(64)), 1),
    ],
    ids=[
        "edited",
        "first one deleted",
        "cut off",
        "more taken out",
        "the mark deleted",
        "the mark moved",
        "the mark forged",
    ],
)
async def test_tampering_after_a_pruning_is_found(
    owner: Installation, tmp_path: Path, statement: sa.Executable, named: int
) -> None:
    await prune(owner, 25, tmp_path)
    await owner.append(1)
    await owner.checkpoint()

    await owner.attack(lambda tx: tx.execute(statement))

    assert named in {fault.seq for fault in await owner.faults()}


async def test_a_log_that_was_tampered_with_is_not_pruned(
    owner: Installation, tmp_path: Path
) -> None:
    edit = sa.update(audit_events).where(audit_events.c.seq == 14).values(recorded_at=1)
    await owner.attack(lambda tx: tx.execute(edit))

    with pytest.raises(CannotPrune, match="row 14: changed"):
        await prune(owner, 25, tmp_path / "archive")

    assert (await seqs(owner.database))[0] == 1
    assert await asyncio.to_thread(os.listdir, tmp_path / "archive") == []


async def test_a_file_with_other_rows_is_not_replaced(owner: Installation, tmp_path: Path) -> None:
    path = tmp_path / "audit-000000000001-000000000025.jsonl"
    path.write_text("what somebody keeps here")

    with pytest.raises(CannotPrune, match="move it away"):
        await prune(owner, 25, tmp_path)

    assert path.read_text() == "what somebody keeps here"
    assert (await seqs(owner.database))[0] == 1


async def test_young_rows_stay(owner: Installation, clock: StandingClock, tmp_path: Path) -> None:
    with pytest.raises(CannotPrune, match="24 hours"):
        await prune(owner, OLD + 1, tmp_path)

    assert (
        await owner.runtime.pruning.last_before(to_unix_microseconds(clock()) - 86_400_000_000)
        == OLD
    )


async def test_another_secret_key_goes_on_behind_what_was_pruned(
    owner: Installation,
    settings: Settings,
    clock: StandingClock,
    openai: FakeOpenAI,
    tmp_path: Path,
) -> None:
    await prune(owner, 12, tmp_path)
    await owner.append(1)
    await owner.checkpoint()
    other = settings.model_copy(update={"secret_key": SecretStr("another secret of ours " * 2)})
    async with played(other, clock=clock, openai=openai) as runtime:
        after = installation_of(runtime, clock)
        with pytest.raises(CannotPrune, match=r"rows up to 12 .* not signed .* accept-rollback"):
            await prune(after, 25, tmp_path)

        accepted = await runtime.checkpoints.accept_rollback("new key", by="operator")

        assert accepted.pruned == 12
        assert await after.faults() == []
        assert after.faults_of_file(await after.export(tmp_path / "all.jsonl")) == []
        [path] = await prune(after, 25, tmp_path)
        assert path.name == "audit-000000000013-000000000025.jsonl"
        await after.append(1)
        await after.checkpoint()
        assert await after.faults() == []


async def test_a_mark_that_the_first_row_does_not_go_on_from_is_not_accepted(
    owner: Installation, tmp_path: Path
) -> None:
    await prune(owner, 12, tmp_path)
    [mark] = [one for one in await owner.runtime.checkpoints.page(limit=9) if one.kind == "pruned"]
    stranger = Signer(b"a secret of somebody who has the database").sign(
        "pruned", mark.log, chain.Head(14, bytes(32)), at=mark.at + 1_000
    )

    def take_out_more(tx: sa.Connection) -> None:
        tx.execute(audit_events.delete().where(audit_events.c.seq <= 14))
        tx.execute(audit_checkpoints.insert(), stranger.row)

    await owner.attack(take_out_more)

    accepted = await owner.runtime.checkpoints.accept_rollback("who knows", by="operator")

    assert accepted.pruned == 0
    assert (await owner.faults())[0].seq == 13


async def test_the_last_row_stays_however_old_it_is(owner: Installation, tmp_path: Path) -> None:
    owner.clock.advance(days=2)

    [path] = await prune(owner, 35, tmp_path)

    assert path.name == "audit-000000000001-000000000034.jsonl"
    assert await seqs(owner.database) == [35, 36]
    assert await owner.faults() == []
    owner.clock.advance(days=2)
    [path] = await prune(owner, 36, tmp_path)
    assert path.name == "audit-000000000035-000000000035.jsonl"
    assert await seqs(owner.database) == [36, 37]
    assert await owner.faults() == []


async def test_a_process_that_knows_a_row_which_was_pruned_goes_on(
    owner: Installation, tmp_path: Path
) -> None:
    asleep = Continuity(owner.signer.public_key, owner.file.last())
    asleep.known = asleep.known._replace(
        head=(await owner.database.read(partial(_head_at, seq=20))), at=0
    )

    await prune(owner, 25, tmp_path)

    await asleep.look(owner.database)
    assert asleep.fault is None


def _head_at(tx: sa.Connection, *, seq: int) -> chain.Head:
    c = audit_events.c
    return chain.Head(seq, tx.scalar(sa.select(c.row_hash).where(c.seq == seq)) or b"")


async def test_others_append_while_rows_are_taken_out(owner: Installation, tmp_path: Path) -> None:
    async def append() -> None:
        for _ in range(50):
            await owner.runtime.log.record([Event(action="test.act", outcome="done")])

    await asyncio.gather(append(), prune(owner, 12, tmp_path), append())
    await prune(owner, 25, tmp_path)

    assert await owner.faults() == []


@on_postgresql
async def test_autovacuum_gives_way(
    settings: Settings, clock: StandingClock, openai: FakeOpenAI, tmp_path: Path
) -> None:
    slow_and_soon = (
        "ALTER TABLE audit_events SET (autovacuum_vacuum_insert_threshold = 20,"
        " autovacuum_vacuum_insert_scale_factor = 0,"
        " autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1)"
    )

    def is_under_way(tx: sa.Connection) -> bool:
        vacuumed = (
            "SELECT relid FROM pg_stat_progress_vacuum WHERE relid = 'audit_events'::regclass"
        )
        return tx.exec_driver_sql(vacuumed).first() is not None

    # So long a vacuum goes on while somebody waits for it: longer than who appends may wait.
    with postgres_server(autovacuum_naptime="1s", deadlock_timeout="2s") as server:
        url = server.new_database()
        migrate(lambda: PostgresDatabase(url))
        server.sql(url.rpartition("/")[2], slow_and_soon)
        settings = settings.model_copy(update={"database_url": SecretStr(url)})
        async with played(settings, clock=clock, openai=openai) as runtime:
            owner = installation_of(runtime, clock)
            await owner.append(300)
            clock.advance(days=2)
            await until(partial(runtime.database.read, is_under_way), seconds=60)
            server.sql("postgres", "ALTER SYSTEM SET autovacuum_naptime = '1h'")  # no second one
            server.sql("postgres", "SELECT pg_reload_conf()")

            [path] = await prune(owner, 299, tmp_path)
            remaining = await seqs(runtime.database)

    assert path.exists()
    assert remaining == [300, 301]


KILLED = """
import asyncio, os, signal, sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
import sqlalchemy as sa
from app.runtime import open_runtime
from app.settings import Settings

@sa.event.listens_for(sa.Engine, "before_cursor_execute")
def die(connection, cursor, statement, *_):
    if statement.strip().startswith(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

async def prune():
    clock = lambda: datetime(2026, 11, 30, tzinfo=UTC)
    async with open_runtime(Settings(_env_file=None), clock=clock) as runtime:
        await runtime.pruning.run(25, Path(sys.argv[1]), by="operator")

asyncio.run(prune())
"""


@pytest.mark.outside
@pytest.mark.parametrize(
    "moment",
    [
        ("DELETE FROM audit_personal", "DELETE FROM audit_personal"),
        ("CREATE TRIGGER", "ALTER TABLE audit_events ENABLE TRIGGER"),
        ("INSERT INTO audit_checkpoints", "INSERT INTO audit_checkpoints"),
    ],
    ids=["before", "while a trigger is gone", "at the end"],
)
async def test_a_kill_in_the_middle_leaves_everything(
    owner: Installation, backend: str, tmp_path: Path, moment: tuple[str, str]
) -> None:
    settings = owner.runtime.settings
    secrets = {
        name.upper(): value.get_secret_value()
        for name in ("openai_api_key", "secret_key", "database_url")
        if (value := getattr(settings, name)) is not None
    }
    at = moment[0] if backend == "sqlite" else moment[1]
    archive = tmp_path / "archive"

    killed = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", KILLED, str(archive), at],
        env=environment(DATA_DIR=settings.data_dir, **secrets),
        cwd=Path(__file__).parents[1],
        check=False,
        capture_output=True,
        text=True,
    )

    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert await seqs(owner.database) == list(range(1, 36))
    assert await triggers(owner.database) == TRIGGERS[backend]
    assert await owner.faults() == []
    assert len(await prune(owner, 25, archive)) == 1  # the file that lies there is in no one's way
    assert await owner.faults() == []


# Days -------------------------------------------------------------------------------------------


def retention_of(owner: Installation, terms: Terms) -> Retention:
    runtime = owner.runtime
    return Retention(
        terms,
        pruning=runtime.pruning,
        database=runtime.database,
        log=runtime.log,
        clock=runtime.clock,
    )


async def test_personal_data_go_after_their_days(
    owner: Installation, clock: StandingClock, tmp_path: Path
) -> None:
    retention = retention_of(owner, Terms(personal_days=1, days=None, archive=tmp_path))

    await retention.run()

    assert await counts(owner.database) == (36, 5)
    [row] = await rows(owner.database, action="personal_data.expire")
    assert (row["actor"], row["boundary_seq"]) == ("service", OLD)
    assert await owner.faults() == []
    await retention.run()
    clock.advance(days=1, seconds=1)
    await retention.run()
    assert len(await rows(owner.database, action="personal_data.expire")) == 2
    assert await counts(owner.database) == (37, 0)


async def test_rows_go_after_their_days(owner: Installation, tmp_path: Path) -> None:
    terms = Terms(personal_days=None, days=1, archive=tmp_path / "archive")
    retention = retention_of(owner, terms)

    await retention.run()

    assert (await seqs(owner.database))[0] == OLD + 1
    assert len(list((tmp_path / "archive").iterdir())) == 1
    assert await owner.faults() == []


async def test_of_several_instances_one_takes_rows_out_and_none_complains(
    owner: Installation, tmp_path: Path
) -> None:
    terms = Terms(personal_days=None, days=1, archive=tmp_path / "archive")

    with capture_logs() as said:
        await asyncio.gather(*(retention_of(owner, terms).run() for _ in range(4)))

    assert [line["event"] for line in said] == ["audit_log_pruned"]
    assert (await seqs(owner.database))[0] == OLD + 1
    assert len(await rows(owner.database, action="audit_log.prune")) == 1
    with pytest.raises(BeingPruned):
        async with owner.database.claim_for_pruning():
            await prune(owner, OLD, tmp_path)


async def test_nothing_goes_unless_days_are_set(owner: Installation) -> None:
    await owner.runtime.retention.run()

    assert await counts(owner.database) == (35, 35)


async def test_rows_about_nobody_are_no_trouble(owner: Installation) -> None:
    await owner.runtime.log.record([Event(action="test.act", outcome="done", personal=Personal())])

    assert await owner.faults() == []


async def test_a_clock_that_was_behind_for_a_while_makes_no_row_older(
    owner: Installation, clock: StandingClock, tmp_path: Path
) -> None:
    clock.advance(days=-2_000)
    await owner.append(20)
    clock.advance(days=2_000)
    await owner.append(60)

    for terms in (
        Terms(personal_days=1, days=None, archive=tmp_path),
        Terms(personal_days=None, days=1, archive=tmp_path),
    ):
        await retention_of(owner, terms).run()

    assert (await seqs(owner.database))[0] == OLD + 1
    assert (await counts(owner.database))[1] == 85


async def test_a_row_of_the_future_keeps_nothing_from_going(
    owner: Installation, clock: StandingClock, tmp_path: Path
) -> None:
    clock.advance(days=365)
    await owner.append(1)
    clock.advance(days=-360)
    await owner.append(1)

    await retention_of(owner, Terms(personal_days=None, days=1, archive=tmp_path)).run()

    assert (await seqs(owner.database))[0] == 37


async def test_retention_goes_on_after_a_clock_was_put_right(
    owner: Installation, clock: StandingClock, tmp_path: Path
) -> None:
    retention = retention_of(owner, Terms(personal_days=None, days=1, archive=tmp_path))
    clock.advance(days=3_650)
    await retention.run()
    clock.advance(days=-3_640)
    await owner.append(1)
    clock.advance(days=2)
    await owner.append(1)

    await retention.run()

    assert await seqs(owner.database) == [38, 39]


@on_sqlite
async def test_nothing_of_what_was_pruned_is_left_in_the_file(
    owner: Installation, tmp_path: Path
) -> None:
    secret = Personal(ip="198.51.100.77")
    for _ in range(60):
        await owner.runtime.log.record([Event(action="test.act", outcome="done", personal=secret)])
    owner.clock.advance(days=2)
    await owner.append(1)

    await prune(owner, 95, tmp_path)

    folder = owner.runtime.settings.data_dir
    written = b"".join(path.read_bytes() for path in folder.glob("service.db*"))
    assert b"192.0.2.1" in written
    assert b"198.51.100.77" not in written


async def test_the_file_of_checkpoints_does_not_end_with_what_is_gone(
    owner: Installation, tmp_path: Path
) -> None:
    await prune(owner, 12, tmp_path)

    await owner.runtime.checkpoints.keep()

    last = owner.file.last()
    assert last is not None
    assert (last.kind, last.seq) == ("checkpoint", 36)


async def test_an_export_that_a_pruning_overtakes_says_so(
    owner: Installation, tmp_path: Path
) -> None:
    exporter = Exporter(owner.database, signer=owner.signer, clock=owner.clock)
    real = owner.database.read

    async def read(query: Callable[[sa.Connection], Any]) -> Any:
        patch.undo()
        found = await real(query)  # where to begin and end
        await prune(owner, 20, tmp_path)
        return found

    with pytest.MonkeyPatch.context() as patch, (tmp_path / "out.jsonl").open("wb") as file:
        patch.setattr(owner.database, "read", read)
        with pytest.raises(CannotExport, match="rows up to 20 were pruned meanwhile"):
            await exporter.write(file)
