import asyncio
import hashlib
import hmac
import json
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta

import httpx
import pytest

from app.audit.events import Event
from app.base.errors import (
    AuditUnavailable,
    InsufficientScope,
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
from app.base.ids import new_id
from app.base.keys import derive_key
from app.identity.users import OPERATOR, User
from app.minting.profiles import Wish
from app.runtime import Runtime
from app.settings import Settings
from tests.clock import StandingClock
from tests.conftest import CANARY_KEY, PASSWORD, caller_for, played
from tests.fakes import FakeOpenAI
from tests.log_faults import refuse_commits, stopped
from tests.log_rows import outcomes, rows
from tests.test_users import give_role


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


@pytest.mark.impatient
async def test_no_secret_leaves_when_its_row_cannot_be_written(
    runtime: Runtime, alice: User, openai: FakeOpenAI
) -> None:
    caller = await caller_for(runtime, alice)
    async with AsyncExitStack() as stack:
        openai.meanwhile = lambda: stack.enter_async_context(stopped(runtime.database))

        with pytest.raises(AuditUnavailable):
            async with asyncio.timeout(2):
                await runtime.minter.mint(caller, Wish())

        assert len(openai.minted) == 1
        assert await outcomes(runtime.database) == ["requested"]


@pytest.mark.impatient
async def test_no_call_goes_out_when_the_intent_cannot_be_written(
    runtime: Runtime, alice: User, openai: FakeOpenAI
) -> None:
    caller = await caller_for(runtime, alice)
    async with stopped(runtime.database):
        with pytest.raises(AuditUnavailable):
            async with asyncio.timeout(2):
                await runtime.minter.mint(caller, Wish())

    assert openai.requests == []


async def test_no_secret_leaves_when_the_commit_of_its_row_fails(
    runtime: Runtime, alice: User, openai: FakeOpenAI
) -> None:
    caller = await caller_for(runtime, alice)
    await refuse_commits(runtime.database, outcome="issued")

    with pytest.raises(AuditUnavailable):
        await runtime.minter.mint(caller, Wish())

    assert len(openai.minted) == 1
    assert await outcomes(runtime.database) == ["requested"]


async def test_no_call_goes_out_when_the_commit_of_the_intent_fails(
    runtime: Runtime, alice: User, openai: FakeOpenAI
) -> None:
    caller = await caller_for(runtime, alice)
    await refuse_commits(runtime.database, outcome="requested")

    with pytest.raises(AuditUnavailable):
        await runtime.minter.mint(caller, Wish())

    assert openai.requests == []
    assert await outcomes(runtime.database) == []


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


async def test_a_client_that_hangs_up_while_the_outcome_is_written_leaves_it_as_it_is(
    runtime: Runtime, alice: User, openai: FakeOpenAI
) -> None:
    caller = await caller_for(runtime, alice)
    stopping = asyncio.get_running_loop().create_future()
    async with AsyncExitStack() as stack:

        async def stop_the_log() -> None:
            stopping.set_result(await stack.enter_async_context(stopped(runtime.database)))

        openai.meanwhile = stop_the_log
        minting = asyncio.create_task(runtime.minter.mint(caller, Wish()))
        somebody_waits = await stopping
        await somebody_waits()

        minting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await minting

    await runtime.log.record([Event(action="test.act", outcome="succeeded")])  # comes later
    assert await outcomes(runtime.database) == ["requested", "issued"]


async def test_a_mint_that_loses_the_race_with_the_sweep_drops_its_secret(
    runtime: Runtime, alice: User, openai: FakeOpenAI
) -> None:
    caller = await caller_for(runtime, alice)

    openai.meanwhile = lambda: runtime.sweep.run(patience=timedelta(0))

    with pytest.raises(AuditUnavailable):
        await runtime.minter.mint(caller, Wish())

    assert len(openai.minted) == 1
    assert await outcomes(runtime.database) == ["requested", "unknown"]


@pytest.mark.parametrize(("hours", "expires_in"), [(1, 60), (0, 60), (-1, 0)])
async def test_a_wrong_clock_upstream_neither_prolongs_the_token_nor_turns_its_time_negative(
    settings: Settings, clock: StandingClock, hours: int, expires_in: int
) -> None:
    wrong = StandingClock(clock() + timedelta(hours=hours))
    async with played(settings, clock=clock, openai=FakeOpenAI(clock=wrong)) as runtime:
        user = await runtime.users.add("a@example.com", role="user", password=PASSWORD, by=OPERATOR)

        minted = await runtime.minter.mint(await caller_for(runtime, user), Wish())

        assert minted.expires_in == expires_in
        assert minted.secret.expires_at == int(wrong().timestamp()) + 60


async def test_a_role_that_was_lowered_mints_nothing_with_an_older_token(
    runtime: Runtime, admin: User, openai: FakeOpenAI
) -> None:
    caller = await caller_for(runtime, admin)
    await give_role(runtime, admin, "user")

    with pytest.raises(InsufficientScope, match="admin"):
        await runtime.minter.mint(caller, Wish())

    assert openai.requests == []
    [row] = await rows(runtime.database, action="client_secret.mint")
    assert (row["outcome"], row["reason"]) == ("denied", "insufficient_scope")
    await runtime.minter.mint(await caller_for(runtime, replace(admin, role="user")), Wish())


async def test_the_sign_in_of_somebody_else_mints_nothing(
    runtime: Runtime, alice: User, admin: User, openai: FakeOpenAI
) -> None:
    stranger = await caller_for(runtime, admin)
    caller = await caller_for(runtime, alice)

    for sign_in_id in (stranger.sign_in_id, new_id("sgn")):
        with pytest.raises(InvalidToken):
            await runtime.minter.mint(replace(caller, sign_in_id=sign_in_id), Wish())

    assert openai.requests == []
    assert await outcomes(runtime.database) == ["denied", "denied"]


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
