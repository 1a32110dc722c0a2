import asyncio
import hashlib
import hmac
import json
import sqlite3
from datetime import timedelta

import httpx
import pytest

from app.audit.events import Event
from app.base.errors import (
    AuditUnavailable,
    InvalidToken,
    MintingOff,
    OverrideNotAllowed,
    Problem,
    ProfileNotFound,
    QuotaExceeded,
    RateLimited,
    UpstreamInvalidResponse,
    UpstreamMisconfigured,
    UpstreamQuotaExhausted,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
    UserDisabled,
)
from app.base.keys import derive_key
from app.identity.users import OPERATOR, User
from app.minting.profiles import Wish
from app.runtime import Runtime
from app.settings import Settings
from tests.clock import StandingClock
from tests.conftest import CANARY_KEY, PASSWORD, caller_for, on_sqlite, played
from tests.fakes import FakeOpenAI
from tests.log_rows import outcomes, rows


async def test_a_mint_leaves_its_intent_and_its_outcome(
    runtime: Runtime, alice: User, openai: FakeOpenAI
) -> None:
    caller = await caller_for(runtime, alice)

    minted = await runtime.minter.mint(caller, Wish(language="de"))

    requested, issued = await rows(runtime.database, attempt_id=minted.id)
    assert (requested["outcome"], issued["outcome"]) == ("requested", "issued")
    assert requested["actor"] == issued["actor"] == alice.id
    assert issued["credential"] == caller.credential
    assert issued["sign_in"] == caller.sign_in_id
    assert issued["profile"] == "default"
    assert issued["model_asked"] == "mini"
    assert issued["model_used"] == "gpt-realtime-2.1-mini"
    assert issued["transcription_model"] == "gpt-4o-mini-transcribe"
    assert issued["language"] == "de"
    assert issued["ttl_seconds"] == 60
    assert issued["expires_at"] == minted.secret.expires_at
    assert issued["config_digest"] == minted.plan.config_digest
    assert issued["upstream_request_id"] == minted.secret.upstream_request_id
    assert issued["environment"] == "live"
    assert minted.secret.value.get_secret_value() == openai.minted[0]


async def test_openai_is_asked_for_the_planned_session_and_for_an_opaque_user(
    runtime: Runtime, alice: User, openai: FakeOpenAI, settings: Settings
) -> None:
    minted = await runtime.minter.mint(await caller_for(runtime, alice), Wish(ttl_seconds=30))

    request = openai.requests[0]
    body = json.loads(request.content)
    assert body["session"] == minted.plan.session
    assert body["expires_after"] == {"anchor": "created_at", "seconds": 30}
    assert settings.secret_key is not None
    key = derive_key(settings.secret_key.get_secret_value().encode(), "safety-identifier")
    expected = hmac.digest(key, alice.id.encode(), hashlib.sha256).hex()
    assert request.headers["OpenAI-Safety-Identifier"] == expected
    assert len(expected) == 64
    assert alice.id not in str(request.headers)
    assert request.headers["X-Client-Request-Id"] == minted.id


async def test_the_log_knows_the_secret_by_its_fingerprint_alone(
    runtime: Runtime, alice: User, openai: FakeOpenAI
) -> None:
    await runtime.minter.mint(await caller_for(runtime, alice), Wish())

    value = openai.minted[0]
    [row] = await rows(runtime.database, token_fingerprint=runtime.minter.fingerprint(value))
    assert row["outcome"] == "issued"
    assert value not in str(await rows(runtime.database))


def openai_error(status: int, code: str | None, kind: str = "invalid_request_error") -> object:
    error = {"message": f"canary text {CANARY_KEY}", "type": kind, "param": None, "code": code}
    return httpx.Response(status, json={"error": error}, headers={"x-request-id": "req_up"})


REFUSALS = [
    (openai_error(400, "unknown_parameter"), UpstreamRejected, "failed"),
    (openai_error(404, "model_not_found"), UpstreamRejected, "failed"),
    (openai_error(401, "invalid_api_key"), UpstreamMisconfigured, "failed"),
    (openai_error(403, None), UpstreamMisconfigured, "failed"),
    (openai_error(429, "rate_limit_exceeded"), UpstreamRateLimited, "failed"),
    (openai_error(429, "slow_down"), UpstreamRateLimited, "failed"),
    (openai_error(429, "insufficient_quota"), UpstreamQuotaExhausted, "failed"),
    (openai_error(503, "server_is_overloaded"), UpstreamUnavailable, "failed"),
    (httpx.Response(200, text="not json"), UpstreamInvalidResponse, "unknown"),
    (httpx.Response(502, text="<html>bad gateway</html>"), UpstreamUnavailable, "unknown"),
    (httpx.ConnectError("refused"), UpstreamUnavailable, "failed"),
    (httpx.ReadError("broken"), UpstreamUnavailable, "unknown"),
    (httpx.ReadTimeout("slow"), UpstreamTimeout, "unknown"),
]


@pytest.mark.parametrize(("reply", "problem", "outcome"), REFUSALS)
async def test_what_openai_refuses_has_its_problem_and_its_outcome_row(
    runtime: Runtime,
    alice: User,
    openai: FakeOpenAI,
    reply: httpx.Response | Exception,
    problem: type[Problem],
    outcome: str,
) -> None:
    caller = await caller_for(runtime, alice)
    openai.reply = reply

    with pytest.raises(problem) as caught:
        await runtime.minter.mint(caller, Wish())

    assert CANARY_KEY not in str(caught.value)
    requested, settled = await rows(runtime.database, action="client_secret.mint")
    assert requested["outcome"] == "requested"
    assert settled["outcome"] == outcome
    assert settled["reason"] == problem.code
    assert settled["attempt_id"] == requested["attempt_id"]
    if isinstance(reply, httpx.Response):
        assert settled["upstream_status"] == reply.status_code


async def test_a_denied_override_never_reaches_openai(
    runtime: Runtime, alice: User, openai: FakeOpenAI
) -> None:
    caller = await caller_for(runtime, alice)

    with pytest.raises(ProfileNotFound):
        await runtime.minter.mint(caller, Wish(profile="no-such-profile"))

    assert openai.requests == []
    [row] = await rows(runtime.database, action="client_secret.mint")
    assert (row["outcome"], row["reason"]) == ("denied", "profile_not_found")
    assert "no-such-profile" not in json.dumps(row)


async def test_a_voice_that_the_profile_fixes_is_denied_with_a_row(
    settings: Settings, clock: StandingClock, openai: FakeOpenAI
) -> None:
    profiles = settings.data_dir / "profiles.toml"
    profiles.write_text('[profiles.fixed]\nmodel = "mini"\nvoice = "cedar"\n')
    fixed = settings.model_copy(update={"profiles_file": profiles})
    async with played(fixed, clock=clock, openai=openai) as runtime:
        user = await runtime.users.add("a@example.com", role="user", password=PASSWORD, by=OPERATOR)
        caller = await caller_for(runtime, user)

        with pytest.raises(OverrideNotAllowed, match="voice"):
            await runtime.minter.mint(caller, Wish(profile="fixed", voice="marin"))

        assert await outcomes(runtime.database) == ["denied"]


async def test_the_minute_and_the_day_are_limited_and_come_back(
    runtime: Runtime, alice: User, openai: FakeOpenAI, clock: StandingClock
) -> None:
    caller = await caller_for(runtime, alice)
    for _ in range(10):
        await runtime.minter.mint(caller, Wish())

    with pytest.raises(RateLimited) as caught:
        await runtime.minter.mint(caller, Wish())

    assert caught.value.retry_after_seconds == 60
    assert len(openai.requests) == 10
    assert (await outcomes(runtime.database))[-1] == "denied"
    for _ in range(19):
        clock.advance(seconds=61)
        for _ in range(10):
            await runtime.minter.mint(caller, Wish())
    clock.advance(seconds=61)
    with pytest.raises(QuotaExceeded) as exhausted:
        await runtime.minter.mint(caller, Wish())
    assert exhausted.value.retry_after_seconds == 24 * 3600 - 20 * 61
    clock.advance(days=1)
    await runtime.minter.mint(caller, Wish())


async def test_another_user_is_not_limited_by_the_first(
    runtime: Runtime, alice: User, admin: User
) -> None:
    caller = await caller_for(runtime, alice)
    for _ in range(10):
        await runtime.minter.mint(caller, Wish())

    await runtime.minter.mint(await caller_for(runtime, admin), Wish())


async def test_a_flood_of_refusals_becomes_five_rows_and_a_count(
    runtime: Runtime, alice: User, clock: StandingClock
) -> None:
    caller = await caller_for(runtime, alice)
    for _ in range(50):
        with pytest.raises(ProfileNotFound):
            await runtime.minter.mint(caller, Wish(profile="other"))
    assert await outcomes(runtime.database) == ["denied"] * 5

    clock.advance(seconds=61)
    await runtime.denials.settle()

    denied = await rows(runtime.database, outcome="denied")
    assert len(denied) == 6
    assert (denied[-1]["reason"], denied[-1]["count"]) == ("repeated", 45)


async def test_a_disabled_user_mints_nothing_from_then_on(
    runtime: Runtime, alice: User, openai: FakeOpenAI
) -> None:
    caller = await caller_for(runtime, alice)
    await runtime.minter.mint(caller, Wish())

    await runtime.users.disable(alice.email, by=OPERATOR)

    with pytest.raises(UserDisabled):
        await runtime.minter.mint(caller, Wish())
    assert len(openai.requests) == 1
    assert (await outcomes(runtime.database)) == ["requested", "issued", "denied"]


async def test_an_ended_sign_in_mints_nothing_even_when_the_user_is_back(
    runtime: Runtime, alice: User, openai: FakeOpenAI
) -> None:
    caller = await caller_for(runtime, alice)
    await runtime.users.disable(alice.email, by=OPERATOR)
    await runtime.users.enable(alice.email, by=OPERATOR)

    with pytest.raises(InvalidToken):
        await runtime.minter.mint(caller, Wish())

    assert openai.requests == []
    await runtime.minter.mint(await caller_for(runtime, alice), Wish())


@on_sqlite
async def test_no_secret_leaves_when_its_row_cannot_be_written(
    runtime: Runtime, alice: User, openai: FakeOpenAI, settings: Settings
) -> None:
    caller = await caller_for(runtime, alice)
    intruder = sqlite3.connect(settings.database_path, isolation_level=None)

    async def lock_the_log() -> None:
        intruder.execute("BEGIN IMMEDIATE")

    openai.meanwhile = lock_the_log

    with pytest.raises(AuditUnavailable):
        async with asyncio.timeout(2):
            await runtime.minter.mint(caller, Wish())

    intruder.execute("ROLLBACK")
    intruder.close()
    assert len(openai.minted) == 1
    assert await outcomes(runtime.database) == ["requested"]


@on_sqlite
async def test_no_call_goes_out_when_the_intent_cannot_be_written(
    runtime: Runtime, alice: User, openai: FakeOpenAI, settings: Settings
) -> None:
    caller = await caller_for(runtime, alice)
    intruder = sqlite3.connect(settings.database_path, isolation_level=None)
    intruder.execute("BEGIN IMMEDIATE")

    with pytest.raises(AuditUnavailable):
        async with asyncio.timeout(2):
            await runtime.minter.mint(caller, Wish())

    intruder.execute("ROLLBACK")
    intruder.close()
    assert openai.requests == []


async def test_a_client_that_hangs_up_leaves_its_outcome(
    runtime: Runtime, alice: User, openai: FakeOpenAI
) -> None:
    caller = await caller_for(runtime, alice)
    asked = asyncio.Event()

    async def wait_for_ever() -> None:
        asked.set()
        await asyncio.Event().wait()

    openai.meanwhile = wait_for_ever
    minting = asyncio.create_task(runtime.minter.mint(caller, Wish()))
    await asked.wait()

    minting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await minting

    settled = (await rows(runtime.database, action="client_secret.mint"))[-1]
    assert (settled["outcome"], settled["reason"]) == ("unknown", "cancelled")


async def test_the_sweep_settles_what_stays_open(
    runtime: Runtime, alice: User, clock: StandingClock
) -> None:
    lost = Event(action="client_secret.mint", outcome="requested", attempt_id="tok_lost")
    await runtime.log.record([lost])
    await runtime.minter.mint(await caller_for(runtime, alice), Wish())

    assert await runtime.sweep.run() == 0
    clock.advance(seconds=91)
    assert await runtime.sweep.run() == 1
    assert await runtime.sweep.run() == 0

    [requested, swept] = await rows(runtime.database, attempt_id="tok_lost")
    assert (requested["outcome"], swept["outcome"], swept["reason"]) == (
        "requested",
        "unknown",
        "swept",
    )


async def test_the_sweep_sees_an_attempt_that_began_before_one_it_has_settled(
    runtime: Runtime, clock: StandingClock
) -> None:
    for name in ("tok_first", "tok_second", "tok_third"):
        event = Event(action="client_secret.mint", outcome="requested", attempt_id=name)
        await runtime.log.record([event])
        clock.advance(seconds=60)

    assert await runtime.sweep.run() == 2
    clock.advance(seconds=60)
    assert await runtime.sweep.run() == 1


async def test_a_mint_that_loses_the_race_with_the_sweep_drops_its_secret(
    runtime: Runtime, alice: User, openai: FakeOpenAI
) -> None:
    caller = await caller_for(runtime, alice)

    openai.meanwhile = lambda: runtime.sweep.run(patience=timedelta(0))

    with pytest.raises(AuditUnavailable):
        await runtime.minter.mint(caller, Wish())

    assert len(openai.minted) == 1
    assert await outcomes(runtime.database) == ["requested", "unknown"]


async def test_the_panic_switch_stops_minting(
    settings: Settings, clock: StandingClock, openai: FakeOpenAI
) -> None:
    off = settings.model_copy(update={"minting": "off"})
    async with played(off, clock=clock, openai=openai) as runtime:
        user = await runtime.users.add("a@example.com", role="user", password=PASSWORD, by=OPERATOR)

        with pytest.raises(MintingOff):
            await runtime.minter.mint(await caller_for(runtime, user), Wish())

        assert openai.requests == []


@pytest.mark.parametrize(
    "configured", ["gpt-realtime-mini-2025-10-06", "gpt-4o-mini-realtime-preview-2024-12-17"]
)
async def test_a_model_that_is_gone_is_replaced_and_said_so(
    settings: Settings,
    clock: StandingClock,
    openai: FakeOpenAI,
    configured: str,
) -> None:
    old = settings.model_copy(update={"openai_realtime_model": configured})
    async with played(old, clock=clock, openai=openai) as runtime:
        user = await runtime.users.add("a@example.com", role="user", password=PASSWORD, by=OPERATOR)

        minted = await runtime.minter.mint(await caller_for(runtime, user), Wish())

        assert minted.plan.model == "gpt-realtime-2.1-mini"
        assert json.loads(openai.requests[0].content)["session"]["model"] == minted.plan.model
        [notice] = [n.to_json() for n in minted.notices if n.code == "model_replaced"]
        assert (notice["requested"], notice["used"]) == (configured, "gpt-realtime-2.1-mini")
        [issued] = await rows(runtime.database, outcome="issued")
        assert issued["model_asked"] == configured
        assert issued["model_used"] == "gpt-realtime-2.1-mini"
