"""What only PostgreSQL is asked: its pool, callers who leave early, and tables put before ours."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa

from app.audit.postgres_writer import APPEND
from app.base.postgres import POOL, PostgresDatabase
from tests.conftest import on_postgresql

pytestmark = on_postgresql


async def read(database: PostgresDatabase) -> int:
    answer: int = await database.read(lambda tx: tx.execute(sa.text("SELECT 1")).scalar_one())
    return answer


async def change(database: PostgresDatabase) -> None:
    async with database.changing() as connection:
        await connection.exec_driver_sql("COMMIT")


@pytest.mark.parametrize("ask", [read, change])
async def test_whoever_is_cancelled_as_they_get_a_connection_gives_it_back(
    database: PostgresDatabase, ask: Callable[[PostgresDatabase], Awaitable[object]]
) -> None:
    for _ in range(POOL):
        asking = asyncio.ensure_future(ask(database))
        with on_checkout(asking.cancel):
            await asyncio.wait({asking})
        assert asking.cancelled()

    assert await asyncio.gather(*(read(database) for _ in range(POOL))) == [1] * POOL


@contextmanager
def on_checkout(call: Callable[[], object]) -> Iterator[None]:
    """Have *call* made at the moment the pool hands a connection over."""

    def listener(*_: object) -> None:
        call()

    sa.event.listen(sa.pool.Pool, "checkout", listener)
    try:
        yield
    finally:
        sa.event.remove(sa.pool.Pool, "checkout", listener)


async def test_a_temporary_table_does_not_take_the_place_of_the_log(
    database: PostgresDatabase,
) -> None:
    connection = await database.connect()
    await connection.execute("CREATE TEMPORARY TABLE audit_events (LIKE public.audit_events)")

    canon = '{"event_id":"evt_1","action":"test.act","outcome":"done"}'
    await connection.fetchval(APPEND, [canon], [1], [None], [None])

    assert await connection.fetchval("SELECT count(*) FROM pg_temp.audit_events") == 0
    assert await connection.fetchval("SELECT count(*) FROM public.audit_events") == 1
    await connection.close()
