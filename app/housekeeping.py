"""What a process does beside the requests, every few seconds for as long as it runs."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta

import structlog

from app.audit.continuity import RolledBack
from app.base.errors import AuditUnavailable
from app.minting.sweep import AT_ONCE
from app.runtime import Runtime

HOUSEKEEPING_SECONDS = 5.0
"""Between two rounds of what is done beside the requests."""


@asynccontextmanager
async def housekeeping(
    runtime: Runtime, *, pause_seconds: float = HOUSEKEEPING_SECONDS
) -> AsyncIterator[None]:
    """Settle what an earlier process left open, then sweep every few seconds until the end.

    Args:
        runtime: Whose attempts and refusals are looked after.
        pause_seconds: Between two rounds.

    Raises:
        DatabaseFault: Another process serves this database, and only one may.
    """
    with suppress(RolledBack, AuditUnavailable):  # it has been said, and each write finds out
        await runtime.continuity.look(runtime.database)
    if runtime.database.claim_for_serving():
        # What is open belongs to a process that is gone. A command that mints at this very moment
        # finds its outcome taken, and drops its secret.
        while await runtime.sweep.run(patience=timedelta(0)) == AT_ONCE:
            pass
    async with asyncio.TaskGroup() as tasks:
        chores = [
            tasks.create_task(_for_ever(chore, pause_seconds), name=name)
            for name, chore in (
                ("sweep", runtime.sweep.run),
                ("denials", runtime.denials.settle),
                ("sign-ins", runtime.sign_out.forget_expired),
                ("key-uses", runtime.key_ring.note_uses),
                ("key-warnings", runtime.key_ring.warn),
                ("models", runtime.models.keep_up),
                ("checkpoints", runtime.checkpoints.keep),
                ("retention", runtime.retention.run),
                ("roll-up", runtime.roll_up.catch_up),
            )
        ]
        if runtime.issuers is not None:
            fetching = _for_ever(runtime.issuers.refresh, pause_seconds, at_once=True)
            chores.append(tasks.create_task(fetching, name="issuers"))
        try:
            yield
        finally:
            for chore in chores:
                chore.cancel()
    with suppress(AuditUnavailable):  # what came last is signed too
        await runtime.checkpoints.keep(every_seconds=0)


async def _for_ever(
    chore: Callable[[], Awaitable[object]], pause_seconds: float, *, at_once: bool = False
) -> None:
    await asyncio.sleep(0 if at_once else pause_seconds)
    while True:
        try:
            await chore()
        except AuditUnavailable:
            pass  # whoever noticed has said so
        except Exception:  # noqa: BLE001 - the next round tries again; a database that is away comes back
            structlog.get_logger(__name__).exception("housekeeping_failed")
        await asyncio.sleep(pause_seconds)
