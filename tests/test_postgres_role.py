"""docs/postgresql.md: the role that serves can append to the log and read it, and nothing more."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import httpx
import pytest

from tests.postgres import PostgresServer, postgres_server
from tests.service import Service
from tests.stage import TOKEN, Stage, stage

pytestmark = pytest.mark.outside

PAGE = Path(__file__).parents[1] / "docs" / "postgresql.md"
COLUMNS = "INTO audit_events (seq, recorded_at, canon, row_hash)"
REFUSED = {
    "an update": "UPDATE audit_events SET canon = '{}'",
    "a delete": "DELETE FROM audit_events",
    "an insert": f"INSERT {COLUMNS} SELECT max(seq) + 1, 0, '{{}}', '' FROM audit_events",
    "a truncation": "TRUNCATE audit_events",
    "personal data altered": "UPDATE audit_personal SET data = '{}'",
    "personal data deleted": "DELETE FROM audit_personal",
    "personal data added": "INSERT INTO audit_personal (event_id, salt, data) VALUES ('e', '', '')",
    "triggers off": "ALTER TABLE audit_events DISABLE TRIGGER ALL",
    "one trigger off": "ALTER TABLE audit_events DISABLE TRIGGER audit_events_no_update",
    "a trigger dropped": "DROP TRIGGER audit_events_no_update ON audit_events",
    "triggers passed over": "SET session_replication_role = replica",
    "the table dropped": "DROP TABLE audit_events",
    "an index dropped": "DROP INDEX uq_audit_events_outcome",
    "the function replaced": "CREATE OR REPLACE FUNCTION audit_refuse() RETURNS trigger"
    " LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
    "the function altered": "ALTER FUNCTION audit_refuse() RENAME TO audit_allow",
    "a table put before": "CREATE TEMPORARY TABLE audit_events (seq bigint)",
    "the owner's role": "SET ROLE tokens_owner",
    "the environment altered": "UPDATE installation SET environment = 'sandbox'",
}


def statements() -> tuple[list[str], list[str]]:
    """Return what the page tells to run: first as the server's owner, then as the tables'."""
    blocks = re.findall(r"^```sql\n(.*?)^```", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    first, second = (
        [part.strip() for part in block.split(";") if part.strip()] for block in blocks
    )
    return first, second


@contextmanager
def as_the_page_says(server: PostgresServer, stage: Stage) -> Iterator[Service]:
    """Set up the roles, migrate as one and serve as the other."""
    first, second = statements()
    for statement in first:
        server.sql("postgres", statement)
    owner = server.url("tokens", role="tokens_owner")
    migrated = stage.run("migrate", DATABASE_URL=owner)
    assert migrated.returncode == 0, migrated.stderr
    for statement in second:
        server.sql("tokens", statement, role="tokens_owner")
    with stage.serving(migrate=False) as service:
        yield service


async def runs(connection: "asyncpg.Connection[asyncpg.Record]", statement: str) -> bool:
    """Tell whether the role of *connection* has the right to run *statement*."""
    try:
        await connection.execute(statement)
    except asyncpg.InsufficientPrivilegeError:
        return False
    return True


async def test_the_role_that_serves_can_mint_and_cannot_touch_the_log(tmp_path: Path) -> None:
    with postgres_server() as server:
        url = server.url("tokens", role="tokens")
        async with stage(tmp_path, DATABASE_URL=url) as one:
            with as_the_page_says(server, one) as service:
                async with httpx.AsyncClient(headers=one.headers) as client:
                    minted = await client.post(service.url + TOKEN)
                assert minted.status_code == 200
                assert service.run("users", "disable", "ada@example.com").returncode == 0
                connection = await asyncpg.connect(url)
                allowed = {what for what, said in REFUSED.items() if await runs(connection, said)}
                await connection.close()
                assert allowed == set()
                assert await one.check() == set()
