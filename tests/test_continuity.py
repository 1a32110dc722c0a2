"""A database that was set back or swapped is not written to, until that is said to be meant."""

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from app.audit import chain
from app.audit.checkpoint_file import CheckpointFile
from app.audit.checkpointing import Checkpoints
from app.audit.checkpoints import Checkpoint, LogName, Signer, audit_checkpoints
from app.audit.continuity import Continuity, Known, RolledBack
from app.audit.events import Event, audit_events
from app.audit.log import Scribe
from app.base.db import DatabaseFault
from app.base.errors import AuditUnavailable
from app.base.sqlite import SqliteDatabase
from app.housekeeping import housekeeping
from app.identity.users import User
from app.minting.profiles import Wish
from app.runtime import Runtime, database_of, installation_secret, log_in
from app.settings import Settings
from tests.clock import StandingClock
from tests.conftest import caller_for, on_sqlite, played
from tests.fakes import FakeOpenAI
from tests.installation import Installation, installation_of, lift_protection
from tests.log_lines import captured_log
from tests.log_rows import rows
from tests.waiting import until


@pytest.fixture
def owner(runtime: Runtime, clock: StandingClock) -> Installation:
    return installation_of(runtime, clock)


def an_event() -> Event:
    return Event(action="test.act", outcome="done")


async def cut_off(settings: Settings, *, behind: int) -> None:
    """Take the database back to an earlier state: as a failover or a restored backup would."""

    def cut(tx: sa.Connection) -> None:
        protection = lift_protection(tx)
        tx.execute(audit_events.delete().where(audit_events.c.seq > behind))
        tx.execute(audit_checkpoints.delete().where(audit_checkpoints.c.seq > behind))
        for statement in protection:
            tx.exec_driver_sql(statement)

    database = database_of(settings)
    await database.alter(cut)
    await database.close()


async def accept(settings: Settings, clock: StandingClock) -> None:
    """Do as the command does, from a process of its own."""
    database = database_of(settings)
    log = log_in(database, Scribe("live", clock))
    checkpoints = Checkpoints(
        signer=Signer(installation_secret(settings)),
        file=CheckpointFile(settings.checkpoint_path),
        continuity=Continuity(),
        database=database,
        log=log,
        clock=clock,
    )
    await checkpoints.accept_rollback("the disk was lost", by="operator")
    await log.close()
    await database.close()


async def drop_connections(runtime: Runtime, settings: Settings) -> None:
    """Cut every connection to PostgreSQL but the one that does it."""
    if settings.database_url is None:
        return
    database = database_of(settings)
    statement = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE pid <> pg_backend_pid() AND datname = current_database()"
    )
    await database.read(lambda tx: tx.exec_driver_sql(statement).all())
    await database.close()


async def test_a_running_service_writes_nothing_to_a_database_that_was_set_back(
    owner: Installation, settings: Settings, alice: User, openai: FakeOpenAI
) -> None:
    runtime = owner.runtime
    caller = await caller_for(runtime, alice)
    await owner.append(5)
    last = await owner.last_seq()

    await cut_off(settings, behind=last - 2)
    await drop_connections(runtime, settings)

    with pytest.raises(AuditUnavailable):
        await runtime.minter.mint(caller, Wish())
    with pytest.raises(AuditUnavailable):
        await runtime.users.disable(alice.email, by="operator")
    assert runtime.continuity.fault is not None
    assert "accept-rollback" in runtime.continuity.fault
    assert openai.requests == []
    assert await owner.last_seq() == last - 2


async def test_a_row_that_is_written_during_a_look_is_no_rollback(owner: Installation) -> None:
    await owner.append(2)
    continuity = owner.runtime.continuity
    written_meanwhile = Known(chain.Head(4711, b"w" * 32))

    def look(tx: sa.Connection) -> chain.Head:
        def write(*_: object) -> None:
            continuity.known = written_meanwhile

        sa.event.listen(tx, "after_cursor_execute", write)
        return continuity._look(tx)

    head = await owner.database.read(look)

    assert head.seq == await owner.last_seq()
    assert continuity.fault is None
    assert continuity.known == written_meanwhile


async def test_it_goes_on_when_the_operator_says_that_it_is_meant(
    owner: Installation, settings: Settings, clock: StandingClock
) -> None:
    await owner.append(5)
    await owner.checkpoint()
    await cut_off(settings, behind=3)
    await drop_connections(owner.runtime, settings)
    with pytest.raises(AuditUnavailable):
        await owner.runtime.log.record([an_event()])
    clock.advance(seconds=1)

    await accept(settings, clock)

    await owner.runtime.log.record([an_event()])
    assert owner.runtime.continuity.fault is None
    [row] = await rows(owner.database, action="audit_log.accept_rollback")
    assert (row["reason"], row["boundary_seq"]) == ("the disk was lost", 3)
    await owner.checkpoint()
    assert await owner.faults() == []
    kinds = [
        one.kind for _, one in owner.file.lines(size=owner.file.size) if isinstance(one, Checkpoint)
    ]
    assert kinds == ["checkpoint", "accepted", "checkpoint"]


async def test_what_was_accepted_once_does_not_excuse_the_next_rollback(
    owner: Installation, settings: Settings, clock: StandingClock
) -> None:
    await owner.append(5)
    await owner.checkpoint()
    await cut_off(settings, behind=3)
    clock.advance(seconds=1)
    await accept(settings, clock)
    await owner.append(5)
    await owner.checkpoint()

    await cut_off(settings, behind=6)
    await drop_connections(owner.runtime, settings)

    with pytest.raises(AuditUnavailable):
        await owner.runtime.log.record([an_event()])


async def test_after_a_failover_that_comes_right_it_goes_on_by_itself(
    owner: Installation, settings: Settings
) -> None:
    await owner.append(5)
    missing = await owner.database.read(
        lambda tx: (
            tx.execute(
                sa.select(
                    audit_events.c.seq,
                    audit_events.c.recorded_at,
                    audit_events.c.canon,
                    audit_events.c.row_hash,
                ).where(audit_events.c.seq > 3)
            )
            .mappings()
            .all()
        )
    )
    await cut_off(settings, behind=3)
    await drop_connections(owner.runtime, settings)
    with pytest.raises(AuditUnavailable):
        await owner.runtime.log.record([an_event()])

    database = database_of(settings)
    await database.alter(
        lambda tx: tx.execute(audit_events.insert(), [dict(row) for row in missing]).close()
    )
    await database.close()

    await owner.runtime.log.record([an_event()])
    assert owner.runtime.continuity.fault is None


@asynccontextmanager
async def restarted(
    settings: Settings, clock: StandingClock, openai: FakeOpenAI
) -> AsyncIterator[Runtime]:
    async with played(settings, clock=clock, openai=openai) as runtime:
        yield runtime


async def test_a_start_on_a_database_that_was_set_back_serves_and_writes_nothing(
    owner: Installation, settings: Settings, clock: StandingClock, openai: FakeOpenAI
) -> None:
    await owner.append(5)
    await owner.checkpoint()
    await cut_off(settings, behind=3)

    async with restarted(settings, clock, openai) as runtime:
        with captured_log() as lines:
            async with housekeeping(runtime, pause_seconds=60):
                assert runtime.continuity.fault is not None
                with pytest.raises(AuditUnavailable):
                    await runtime.log.record([an_event()])

    assert "audit_log_rolled_back" in lines.text


async def test_a_start_on_another_database_writes_nothing(
    owner: Installation, settings: Settings, clock: StandingClock, openai: FakeOpenAI
) -> None:
    await owner.append(5)
    await owner.checkpoint()

    def rewrite(tx: sa.Connection) -> None:
        protection = lift_protection(tx)
        tx.execute(audit_events.update().values(row_hash=bytes(32)))
        for statement in protection:
            tx.exec_driver_sql(statement)

    await owner.database.alter(rewrite)

    async with restarted(settings, clock, openai) as runtime:
        with pytest.raises(AuditUnavailable):
            await runtime.log.record([an_event()])


async def test_a_stranger_cannot_accept(
    owner: Installation, settings: Settings, clock: StandingClock
) -> None:
    await owner.append(5)
    await owner.checkpoint()
    await cut_off(settings, behind=3)
    await drop_connections(owner.runtime, settings)
    with pytest.raises(RolledBack):
        await owner.runtime.continuity.look(owner.database)

    stranger = settings.model_copy(
        update={
            "secret_key": SecretStr("somebody else's secret, not ours"),
            "checkpoint_file": settings.data_dir / "strangers.jsonl",
        }
    )
    clock.advance(seconds=1)
    await accept(stranger, clock)

    with pytest.raises(RolledBack):
        await owner.runtime.continuity.look(owner.database)


@pytest.mark.parametrize("kind", ["accepted", "pruned"])
async def test_a_checkpoint_that_is_dressed_as_an_excuse_is_none(
    owner: Installation, settings: Settings, kind: str
) -> None:
    await owner.append(3)
    await owner.checkpoint()
    old = await owner.newest()
    await owner.append(5)
    await owner.checkpoint()
    await cut_off(settings, behind=3)
    await drop_connections(owner.runtime, settings)

    dressed = {**old.row, "kind": kind, "seq": 100, "at": old.at + 10**12}
    await owner.attack(lambda tx: tx.execute(audit_checkpoints.insert(), dressed))

    with pytest.raises(RolledBack):
        await owner.runtime.continuity.look(owner.database)


async def test_a_new_secret_key_needs_no_acceptance(
    owner: Installation, settings: Settings, clock: StandingClock, openai: FakeOpenAI
) -> None:
    await owner.append(5)
    await owner.checkpoint()
    changed = settings.model_copy(update={"secret_key": SecretStr("another secret of ours " * 2)})

    async with restarted(changed, clock, openai) as runtime:
        await runtime.log.record([an_event()])
        clock.advance(seconds=60)
        await runtime.checkpoints.keep()
        newest = await runtime.checkpoints.newest()

    assert newest is not None
    assert newest.seq == 6


async def test_rows_or_time_make_a_checkpoint_due(
    owner: Installation, clock: StandingClock
) -> None:
    async def signed() -> list[int]:
        return [one.seq for one in await owner.runtime.checkpoints.page(limit=10)]

    await owner.runtime.checkpoints.keep()
    assert await signed() == []  # of nothing
    await owner.append(1)
    await owner.runtime.checkpoints.keep()
    assert await signed() == [1]
    await owner.append(1)
    await owner.runtime.checkpoints.keep()
    assert await signed() == [1]  # too soon
    await owner.runtime.log.record([an_event() for _ in range(1_000)])
    await owner.runtime.checkpoints.keep()
    assert await signed() == [1_002, 1]
    clock.advance(seconds=120)
    await owner.runtime.checkpoints.keep()
    assert await signed() == [1_002, 1]  # nothing new
    last = owner.file.last()
    assert last is not None
    assert last.seq == 1_002


async def test_housekeeping_signs_what_came_last_when_it_ends(owner: Installation) -> None:
    async def one_there() -> bool:
        return owner.file.last() is not None

    await owner.append(1)
    async with housekeeping(owner.runtime, pause_seconds=0.01):
        await until(one_there)
        await owner.append(1)

    last = owner.file.last()
    assert last is not None
    assert last.seq == 2


# SQLite: a file in place of the file ------------------------------------------------------------


def put_in_place(backup: Path, path: Path) -> None:
    """Restore a backup as operators do: the files of the old one away, the new one in."""
    for suffix in ("", "-wal", "-shm"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(part.with_name(f"old-{part.name}"))
    shutil.copy(backup, path)


@on_sqlite
async def test_a_backup_that_is_put_in_place_while_it_runs_gets_no_row(
    owner: Installation, settings: Settings, tmp_path: Path
) -> None:
    await owner.append(3)
    source = sqlite3.connect(settings.database_path)
    backup = sqlite3.connect(tmp_path / "backup.db")
    source.backup(backup)
    source.close()
    backup.close()
    await owner.append(3)

    put_in_place(tmp_path / "backup.db", settings.database_path)

    with pytest.raises(AuditUnavailable):
        await owner.runtime.log.record([an_event()])
    assert await owner.last_seq() == 3  # readers see the new file too


@on_sqlite
async def test_a_copy_with_every_row_is_as_good_as_the_file(
    owner: Installation, settings: Settings, tmp_path: Path
) -> None:
    await owner.append(3)
    source = sqlite3.connect(settings.database_path)
    backup = sqlite3.connect(tmp_path / "backup.db")
    source.backup(backup)
    source.close()
    backup.close()

    put_in_place(tmp_path / "backup.db", settings.database_path)

    await owner.append(1)
    fresh = SqliteDatabase(settings.database_path)
    assert len(await rows(fresh)) == 4
    await fresh.close()


# The file of checkpoints ------------------------------------------------------------------------


@on_sqlite
async def test_half_a_line_that_a_power_cut_left_is_taken_out(owner: Installation) -> None:
    await owner.append(1)
    await owner.checkpoint()
    with owner.file.path.open("ab") as file:
        file.write(b'{"checkpoint":"half')

    assert (last := owner.file.last()) is not None
    assert last.seq == 1
    await owner.append(1)
    await owner.checkpoint()

    assert await owner.faults() == []
    assert len(owner.file.path.read_text().splitlines()) == 2


@on_sqlite
async def test_a_file_that_could_not_be_written_catches_up(owner: Installation) -> None:
    await owner.append(1)
    owner.file.path.mkdir()
    with captured_log() as lines:
        await owner.checkpoint()
    assert "checkpoint_file_unavailable" in lines.text
    await owner.append(1)
    owner.file.path.rmdir()

    await owner.checkpoint()
    await owner.append(1)
    await owner.checkpoint()

    found = [
        one.seq for _, one in owner.file.lines(size=owner.file.size) if isinstance(one, Checkpoint)
    ]
    assert found == [2, 3]


@on_sqlite
async def test_a_file_that_somebody_took_away_is_missed_and_begun_anew(
    owner: Installation, capsys: pytest.CaptureFixture[str]
) -> None:
    await owner.append(1)
    await owner.checkpoint()
    assert "checkpoint_file_missing" not in capsys.readouterr().out
    owner.file.path.unlink()

    await owner.append(1)
    await owner.checkpoint()

    assert "checkpoint_file_missing" in capsys.readouterr().out
    assert owner.file.last() == await owner.newest()


async def test_several_processes_share_the_file(owner: Installation, clock: StandingClock) -> None:
    other = installation_of(owner.runtime, clock)
    for _ in range(3):
        await owner.append(1)
        await owner.checkpoint()
        await other.runtime.checkpoints.keep()

    assert len(owner.file.path.read_text().splitlines()) == 3


@on_sqlite
async def test_a_file_that_does_not_end_with_a_checkpoint_stops_the_start(
    settings: Settings, clock: StandingClock, openai: FakeOpenAI
) -> None:
    settings.checkpoint_path.write_text("{}\n")

    with pytest.raises(DatabaseFault, match=r"service-checkpoints\.jsonl cannot be used"):
        async with restarted(settings, clock, openai):
            pass


@pytest.mark.parametrize("later", [1, 2**52], ids=["a moment later", "far in the future"])
async def test_forged_checkpoints_do_not_get_into_the_file_and_keep_none_out(
    owner: Installation, later: int
) -> None:
    await owner.append(1)
    await owner.checkpoint()
    newest = await owner.newest()
    stranger = Signer(b"of somebody else")
    forged = [
        stranger.sign("checkpoint", newest.log, newest.head, at=later + newest.at + n).row
        for n in range(150)
    ]
    await owner.attack(lambda tx: tx.execute(audit_checkpoints.insert(), forged))

    for _ in range(2):
        await owner.append(1)
        await owner.checkpoint()

    lines = owner.file.lines(size=owner.file.size)
    found = [one for _, one in lines if isinstance(one, Checkpoint)]
    assert [one.seq for one in found] == [1, 2, 3]
    assert {one.key for one in found} == {owner.signer.public_key.id}
    assert len(await owner.faults()) >= 100


async def test_an_old_acceptance_does_not_excuse_who_has_written_nothing_yet(
    owner: Installation, settings: Settings, clock: StandingClock, openai: FakeOpenAI
) -> None:
    await owner.append(5)
    await owner.checkpoint()
    await cut_off(settings, behind=3)
    await drop_connections(owner.runtime, settings)
    clock.advance(seconds=1)
    await accept(settings, clock)
    await owner.append(5)
    clock.advance(seconds=60)
    await owner.checkpoint()

    async with restarted(settings, clock, openai) as runtime:
        await runtime.log.record([])  # a batch without a row
        await cut_off(settings, behind=6)
        await drop_connections(runtime, settings)
        with pytest.raises(AuditUnavailable):
            await runtime.log.record([an_event()])


async def test_what_was_amiss_before_an_acceptance_is_no_fault_any_more(
    owner: Installation, settings: Settings, clock: StandingClock
) -> None:
    await owner.append(5)
    await owner.checkpoint()

    def rewrite(tx: sa.Connection) -> None:
        of_row = audit_events.c.seq == 5
        row = tx.execute(audit_events.select().where(of_row)).one()
        before = tx.scalar(sa.select(audit_events.c.row_hash).where(audit_events.c.seq == 4))
        row_hash = chain.row_hash(before or b"", seq=5, recorded_at=1, canon=row.canon)
        changed = audit_events.update().where(of_row)
        tx.execute(changed.values(recorded_at=1, row_hash=row_hash))

    await owner.attack(rewrite)
    assert [fault.seq for fault in await owner.faults()] == [5]
    clock.advance(seconds=1)

    await accept(settings, clock)

    assert await owner.faults() == []


async def test_a_checkpoint_of_another_log_is_none_of_this_one(owner: Installation) -> None:
    await owner.append(2)
    await owner.checkpoint()
    newest = await owner.newest()
    other = owner.signer.sign("checkpoint", LogName("live", 7), newest.head, at=newest.at + 1)

    await owner.attack(lambda tx: tx.execute(audit_checkpoints.insert(), other.row))

    [fault] = await owner.faults()
    assert "of the log of another installation" in fault.what


async def test_a_clock_that_was_ahead_keeps_nothing_from_being_signed(
    owner: Installation, clock: StandingClock
) -> None:
    clock.advance(days=365)
    await owner.append(1)
    await owner.checkpoint()
    clock.advance(days=-365)
    await owner.append(1)

    await owner.runtime.checkpoints.keep()

    last = owner.file.last()
    assert last is not None
    assert last.seq == 2


@pytest.mark.parametrize(
    "line",
    [
        '{"checkpoint":"x","signature":"é"}',
        '{"checkpoint":' + "9" * 5_000 + "}",
        '{"checkpoint":"x","signature":"AA"}',
        "[" * 100_000,
        "",
    ],
    ids=["signature", "number", "no Base64", "nested", "blank"],
)
async def test_an_odd_line_of_the_file_is_named_and_ends_no_verification(
    owner: Installation, line: str
) -> None:
    await owner.append(1)
    await owner.checkpoint()
    path = owner.file.path
    path.write_text(line + "\n" + path.read_text(), encoding="utf-8")

    assert "line 1 of" in (await owner.faults())[0].what


async def test_a_line_that_was_never_finished_is_no_fault(owner: Installation) -> None:
    await owner.append(1)
    await owner.checkpoint()
    with owner.file.path.open("ab") as file:
        file.write(b'{"checkpoint":"{')

    assert await owner.faults() == []
    assert owner.file.last() == await owner.newest()


async def test_a_blank_line_at_the_end_of_the_file_hides_nothing(owner: Installation) -> None:
    await owner.append(1)
    await owner.checkpoint()
    with owner.file.path.open("ab") as file:
        file.write(b"\n")

    assert owner.file.last() == await owner.newest()


async def test_of_those_who_sign_at_the_same_moment_one_does(owner: Installation) -> None:
    for _ in range(10):
        await owner.append(1)
        await asyncio.gather(*(owner.runtime.checkpoints.keep(every_seconds=0) for _ in range(4)))

    assert [one.seq for one in await owner.runtime.checkpoints.page(limit=20)] == [
        *range(10, 0, -1)
    ]
    assert await owner.faults() == []
