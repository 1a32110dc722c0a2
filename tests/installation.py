"""A log with checkpoints, as its owner has it, and what somebody does who has the database."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from app.audit.chain import Fault
from app.audit.checkpoint_file import CheckpointFile
from app.audit.checkpoints import Checkpoint, Signer, head_of
from app.audit.events import Event, Personal
from app.audit.segments import Exporter, FileVerification
from app.audit.verification import Verification
from app.base.db import Database
from app.runtime import Runtime, installation_secret
from tests.clock import StandingClock


@dataclass
class Installation:
    """A log with checkpoints, as its owner has it."""

    runtime: Runtime
    signer: Signer
    clock: StandingClock

    @property
    def database(self) -> Database:
        return self.runtime.database

    @property
    def file(self) -> CheckpointFile:
        return CheckpointFile(self.runtime.settings.checkpoint_path)

    async def append(self, rows: int) -> None:
        for _ in range(rows):
            self.clock.advance(seconds=1)
            event = Event(action="test.act", outcome="done", personal=Personal(ip="192.0.2.1"))
            await self.runtime.log.record([event])

    async def checkpoint(self) -> None:
        self.clock.advance(seconds=60)
        await self.runtime.checkpoints.keep()

    async def last_seq(self) -> int:
        return (await self.database.read(head_of)).seq

    async def newest(self) -> Checkpoint:
        newest = await self.runtime.checkpoints.newest()
        assert newest is not None
        return newest

    async def verify(self) -> Verification:
        key = self.signer.public_key
        walk = Verification(self.database, keys=[key], file=self.file)
        await walk.run()
        return walk

    async def faults(self) -> list[Fault]:
        return (await self.verify()).findings.faults

    async def export(self, path: Path, **options: Any) -> list[bytes]:
        exporter = Exporter(self.database, signer=self.signer, clock=self.clock)
        with path.open("wb") as file:
            await exporter.write(file, **options)
        return lines_of(path)

    def faults_of_file(self, lines: list[bytes]) -> list[Fault]:
        walk = FileVerification(self.signer.public_key)
        walk.run(lines)
        return walk.findings.faults

    async def attack(self, act: Callable[[sa.Connection], object]) -> None:
        """Act on the tables past their triggers, and put these back as if nothing had been."""

        def unseen(tx: sa.Connection) -> None:
            put_back = lift_protection(tx)
            act(tx)
            for statement in put_back:
                tx.exec_driver_sql(statement)

        await self.database.alter(unseen)


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def lift_protection(tx: sa.Connection) -> list[str]:
    """Switch every trigger off; return the statements that switch them on again."""
    if tx.dialect.name == "sqlite":
        found = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
        named = {row.name: row.sql for row in tx.exec_driver_sql(found)}
        for name in named:
            tx.exec_driver_sql(f"DROP TRIGGER {name}")
        return list(named.values())
    for table in ("audit_events", "audit_personal"):
        tx.exec_driver_sql(f"ALTER TABLE {table} DISABLE TRIGGER USER")
    return [
        f"ALTER TABLE {table} ENABLE TRIGGER USER" for table in ("audit_events", "audit_personal")
    ]


def installation_of(runtime: Runtime, clock: StandingClock) -> Installation:
    """Return the owner's view of what stands in *runtime*."""
    return Installation(runtime, Signer(installation_secret(runtime.settings)), clock)
