"""What /audit says of the proof, and walks that somebody asks for over HTTP."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
import sqlalchemy as sa

from app.audit.checkpoints import Checkpoint, PublicKey
from app.audit.events import audit_events
from app.audit.verifications import Run
from app.base.errors import Conflict
from app.identity.users import User
from app.main import create_app
from app.runtime import Runtime
from tests.clock import StandingClock
from tests.conftest import as_served, bearer_for
from tests.installation import Installation, installation_of
from tests.log_rows import rows
from tests.waiting import until


@pytest.fixture
async def client(runtime: Runtime, admin: User) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(
        as_served(create_app(runtime.settings), runtime), client=("192.0.2.7", 1)
    )
    headers = await bearer_for(runtime, admin)
    async with httpx.AsyncClient(
        transport=transport, base_url=runtime.settings.public_url, headers=headers
    ) as client:
        yield client


@pytest.fixture
def owner(runtime: Runtime, clock: StandingClock) -> Installation:
    return installation_of(runtime, clock)


async def verified(client: httpx.AsyncClient) -> dict[str, object]:
    """Ask for a walk, and return what is said when it is over."""
    started = await client.post("/audit/verification")
    assert started.status_code == 200
    answer: dict[str, object] = {}

    async def finished() -> bool:
        answer.update((await client.get("/audit/verification")).json())
        return "last" in answer

    await until(finished)
    return answer


async def test_a_walk_is_asked_for_and_its_end_is_in_the_log(
    owner: Installation, client: httpx.AsyncClient, admin: User
) -> None:
    await owner.append(5)
    await owner.checkpoint()
    total = await owner.last_seq()

    answer = await verified(client)

    current = answer["current"]
    assert isinstance(current, dict)
    assert (current["ok"], current["faultCount"], current["faults"]) == (True, 0, [])
    assert current["rowsChecked"] == current["total"] >= total
    assert current["checkpointsChecked"] == 2  # in the database, and in the file
    assert answer["last"] == {"at": current["finishedAt"], "ok": True, "faultCount": 0}
    for action in ("verification.start", "verification.finish"):
        [row] = await rows(owner.database, action=action)
        assert row["actor"] == admin.id


async def test_what_a_walk_finds_is_named(owner: Installation, client: httpx.AsyncClient) -> None:
    await owner.append(5)
    edit = sa.update(audit_events).where(audit_events.c.seq == 4).values(recorded_at=1)
    await owner.attack(lambda tx: tx.execute(edit))

    answer = await verified(client)

    current = answer["current"]
    assert isinstance(current, dict)
    assert current["ok"] is False
    assert [fault["seq"] for fault in current["faults"]] == [4]
    [row] = await rows(owner.database, action="verification.finish")
    assert (row["reason"], row["count"]) == ("faults_found", 1)
    last = await owner.runtime.verifications.last()
    assert last is not None
    assert not last.ok


async def test_one_walk_at_a_time(owner: Installation) -> None:
    by = {"actor": "operator"}
    start = owner.runtime.verifications.start

    both = await asyncio.gather(start(by), start(by), return_exceptions=True)

    assert [type(outcome) for outcome in both] == [Run, Conflict]


async def test_a_walk_ends_with_the_service(owner: Installation) -> None:
    await owner.append(1)
    run = await owner.runtime.verifications.start({"actor": "operator"})

    await owner.runtime.verifications.close()

    assert run.ok is None


async def test_the_newest_checkpoint_is_verified_by_the_key_that_is_shown(
    owner: Installation, client: httpx.AsyncClient
) -> None:
    await owner.append(3)
    await owner.checkpoint()

    line = await client.get("/audit/checkpoints/latest")
    shown = (await client.get("/audit/public-key")).json()

    checkpoint = Checkpoint.read_line(line.content)
    assert checkpoint.seq == await owner.last_seq()
    assert (
        line.headers["Content-Disposition"]
        == f'attachment; filename="checkpoint-{checkpoint.seq}.json"'
    )
    key = PublicKey.read(shown["pem"].encode())
    assert key.signed(checkpoint)
    assert shown["jwk"]["kid"] == key.id == checkpoint.key


async def test_the_history_is_paged(owner: Installation, client: httpx.AsyncClient) -> None:
    for _ in range(5):
        await owner.append(1)
        await owner.checkpoint()

    seen: list[int] = []
    before: dict[str, str] = {}
    while True:
        page = (await client.get("/audit/checkpoints", params={"limit": "2", **before})).json()
        seen += [one["seq"] for one in page["checkpoints"]]
        if page["nextBefore"] is None:
            break
        before = {"before": page["nextBefore"]}

    last = await owner.last_seq()
    assert seen == list(range(last, last - 5, -1))


async def test_readiness_says_that_rows_are_missing(
    owner: Installation, client: httpx.AsyncClient
) -> None:
    await owner.append(3)
    await owner.runtime.continuity.look(owner.database)
    cut = sa.delete(audit_events).where(audit_events.c.seq > 2)
    await owner.attack(lambda tx: tx.execute(cut))
    assert (await client.get("/readyz")).status_code == 200  # nobody has looked yet

    await owner.runtime.checkpoints.keep()

    answer = await client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json() == {
        "status": "not_ready",
        "database": "ok",
        "migration": "ok",
        "writer": "ok",
        "log": "failing",
    }
