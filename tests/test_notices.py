"""What an admin has to know, from what the service finds in its own log."""

import httpx
import pytest

from app.audit.continuity import RolledBack
from app.audit.events import Event
from app.base.clock import to_unix_microseconds
from app.identity.users import User
from app.main import create_app
from app.minting.notices import Notice
from app.runtime import Runtime, database_of
from app.settings import Settings
from tests.clock import StandingClock
from tests.conftest import as_served, bearer_for, on_sqlite, played
from tests.fakes import FakeOpenAI


async def notice(runtime: Runtime, code: str) -> Notice | None:
    return next((one for one in await runtime.notices.all() if one.code == code), None)


async def write(runtime: Runtime) -> None:
    await runtime.log.record([Event(action="a.b", outcome="succeeded")])


async def test_the_last_checkpoint_is_named(runtime: Runtime, clock: StandingClock) -> None:
    none_yet = await notice(runtime, "checkpoint")
    assert none_yet
    assert (none_yet.at, none_yet.detail) == (None, "There is no checkpoint.")
    await write(runtime)
    await runtime.checkpoints.keep()
    signed_at = clock()
    clock.advance(hours=5)

    told = await notice(runtime, "checkpoint")

    assert told
    assert (told.severity, told.at) == ("info", signed_at)
    assert told.detail == "The last checkpoint is of row 1."


@pytest.mark.parametrize("signed", [True, False], ids=["signed before", "never signed"])
async def test_rows_without_a_checkpoint_for_an_hour_are_a_warning(
    runtime: Runtime, clock: StandingClock, *, signed: bool
) -> None:
    if signed:
        await write(runtime)
        await runtime.checkpoints.keep()
    clock.advance(hours=9)
    await write(runtime)
    clock.advance(minutes=59)
    assert await notice(runtime, "checkpoint_late") is None
    clock.advance(minutes=1)

    told = await notice(runtime, "checkpoint_late")

    assert told
    assert told.severity == "warning"
    assert "Rows have come since" in told.detail
    await runtime.checkpoints.keep()
    assert await notice(runtime, "checkpoint_late") is None


@pytest.mark.parametrize(
    ("faults", "code", "severity"),
    [
        (None, "never_verified", "warning"),
        (0, "verified", "info"),
        (1, "faults_found", "urgent"),
        (1_200, "faults_found", "urgent"),
    ],
)
async def test_how_the_last_verification_ended_is_told(
    runtime: Runtime, faults: int | None, code: str, severity: str
) -> None:
    for count in [7, faults] if faults is not None else []:
        event = Event(action="verification.finish", outcome="succeeded", count=count)
        await runtime.log.record([event])

    told = await notice(runtime, code)

    assert told
    assert told.severity == severity
    if faults:
        assert f"found {faults:,} fault" in told.detail
    assert len([one for one in await runtime.notices.all() if "verif" in one.detail]) == 1


async def test_a_database_that_was_set_back_is_urgent(runtime: Runtime) -> None:
    with pytest.raises(RolledBack):
        runtime.continuity.settle([])

    told = (await runtime.notices.all())[0]

    assert (told.code, told.severity) == ("rolled_back", "urgent")
    assert "accept-rollback" in told.detail


async def test_money_that_is_used_up_is_urgent_until_a_token_is_made(
    runtime: Runtime, clock: StandingClock
) -> None:
    action, reason = "client_secret.mint", "upstream_quota_exhausted"
    await runtime.log.record([Event(action=action, outcome="failed", reason=reason)])

    told = (await runtime.notices.all())[0]

    assert (told.code, told.subject) == ("upstream_quota_exhausted", "upstream")
    assert (told.severity, told.at) == ("urgent", clock())
    await runtime.log.record([Event(action=action, outcome="issued")])
    assert await notice(runtime, "upstream_quota_exhausted") is None


async def test_models_that_end_are_told_of_by_how_soon(
    runtime: Runtime, clock: StandingClock
) -> None:
    severities = []
    for days in (0, 80, 15):  # the transcriber of the default profile ends on 2027-02-26
        clock.advance(days=days)
        told = await notice(runtime, "model_ends")
        assert told
        assert (told.subject, "gpt-4o-mini-transcribe" in told.detail) == ("models", True)
        severities.append(told.severity)
        order = [one.severity for one in await runtime.notices.all()]
        assert order == sorted(order, key=["urgent", "warning", "info"].index)

    assert severities == ["info", "warning", "urgent"]


@pytest.mark.parametrize("environment", ["live", "sandbox"])
@on_sqlite
async def test_the_sandbox_says_so(
    settings: Settings, clock: StandingClock, openai: FakeOpenAI, environment: str
) -> None:
    if environment == "sandbox":
        settings = settings.model_copy(update={"openai_api_key": None})
        database = database_of(settings)
        await database.migrate(environment=environment, now=to_unix_microseconds(clock()))
        await database.close()

    async with played(settings, clock=clock, openai=openai) as runtime:
        told = await notice(runtime, "sandbox")

    assert (told is not None) == (environment == "sandbox")


async def test_they_are_json_too(runtime: Runtime, admin: User) -> None:
    transport = httpx.ASGITransport(as_served(create_app(runtime.settings), runtime))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        headers = await bearer_for(runtime, admin)
        answer = await client.get("/audit/notices", headers=headers)

    told = answer.json()["notices"]
    assert [one["code"] for one in told] == [one.code for one in await runtime.notices.all()]
    assert told[0] == {
        "code": "never_verified",
        "subject": "integrity",
        "severity": "warning",
        "detail": "The log has never been verified as a whole.",
    }
