"""The daily look at OpenAI's models, and what follows from it at once, everywhere."""

from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from app.base.db import Database
from app.base.errors import AuditUnavailable, UpstreamMisconfigured, UpstreamUnavailable
from app.housekeeping import housekeeping
from app.identity.users import OPERATOR, User
from app.minting.listed_models import read_findings
from app.minting.model_watch import SERVICE, ModelWatch
from app.minting.profiles import Wish
from app.runtime import Runtime, open_runtime
from app.settings import Settings
from tests.clock import StandingClock
from tests.conftest import START, caller_for, on_sqlite, played
from tests.fakes import FakeOpenAI
from tests.log_rows import rows
from tests.test_metrics import shown
from tests.waiting import until

MINI, OLD_MINI, TRANSCRIBER = "gpt-realtime-2.1-mini", "gpt-realtime-mini", "gpt-4o-mini-transcribe"
BUILT_IN = date(2027, 2, 26)  # the end of the transcriber
SOON = date(2026, 12, 10)  # in 20 days
A_MOMENT = 0.01
HELD_BACK = {"seconds": 360}


@pytest.fixture
def models(runtime: Runtime) -> ModelWatch:
    return runtime.models


def lists(openai: FakeOpenAI, shutdowns: dict[str, date | None]) -> None:
    """Let OpenAI list these models."""
    openai.models = [
        {"id": name, "object": "model", "shutdown_date": day and day.isoformat()}
        for name, day in shutdowns.items()
    ]


async def model_rows(database: Database) -> list[tuple[Any, ...]]:
    """Return who changed what of which model, and its end before and after."""
    members = ("actor", "reason", "target", "shutdown_before", "shutdown_after")
    found = await rows(database, action="model.change")
    return [tuple(row.get(name) for name in members) for row in found]


# What follows from a look -------------------------------------------------------------------


async def test_a_new_date_decides_what_is_minted_from_then_on(
    runtime: Runtime, openai: FakeOpenAI, clock: StandingClock, alice: User
) -> None:
    lists(openai, {MINI: SOON, OLD_MINI: date(2027, 1, 20), TRANSCRIBER: BUILT_IN})
    caller = await caller_for(runtime, alice)
    before = await runtime.minter.mint(caller, Wish())

    await runtime.models.refresh(by=SERVICE)
    after = await runtime.minter.mint(caller, Wish())
    clock.advance(days=20)
    caller = await caller_for(runtime, alice)
    when_it_has_come = await runtime.minter.mint(caller, Wish())

    assert [m.plan.model for m in (before, after, when_it_has_come)] == [MINI, MINI, OLD_MINI]
    assert [n.model for n in before.notices] == [TRANSCRIBER]
    assert [(n.model, n.sunset) for n in after.notices if n.model == MINI] == [(MINI, SOON)]


async def test_what_changed_is_in_the_log_with_who_asked(
    runtime: Runtime, openai: FakeOpenAI, clock: StandingClock, admin: User
) -> None:
    lists(openai, {MINI: SOON, TRANSCRIBER: BUILT_IN})
    caller = await caller_for(runtime, admin)
    await runtime.models.refresh(by=SERVICE)
    clock.advance(hours=1)
    lists(openai, {MINI: None, TRANSCRIBER: SOON})

    await runtime.models.refresh(by=caller)

    assert await model_rows(runtime.database) == [
        (SERVICE, "date_announced", MINI, None, "2026-12-10"),
        (admin.id, "date_moved", TRANSCRIBER, "2027-02-26", "2026-12-10"),
        (admin.id, "date_withdrawn", MINI, "2026-12-10", None),
    ]
    [by_service, by_admin] = await rows(runtime.database, action="model.refresh")
    assert (by_service["actor"], by_service["outcome"]) == (SERVICE, "succeeded")
    assert (by_admin["actor"], by_admin["request_id"]) == (admin.id, "req_test")


async def test_an_upstream_that_fails_leaves_everything_as_it_was(
    runtime: Runtime, models: ModelWatch, openai: FakeOpenAI, clock: StandingClock
) -> None:
    lists(openai, {MINI: SOON})
    await models.refresh(by=SERVICE)
    clock.advance(hours=1)
    openai.reply = httpx.Response(
        401, headers={"x-request-id": "req_1"}, json={"error": {"code": "invalid_api_key"}}
    )

    with pytest.raises(UpstreamMisconfigured):
        await models.refresh(by=OPERATOR)

    look = models.overview().look
    assert (look.tried_at, look.succeeded_at) == (clock(), clock() - timedelta(hours=1))
    assert look.problem == "upstream_misconfigured"
    assert models.days_left()[MINI] == 20
    [row] = await rows(runtime.database, action="model.refresh", outcome="failed")
    assert (row["actor"], row["reason"]) == (OPERATOR, "upstream_misconfigured")
    assert (row["upstream_status"], row["upstream_code"]) == (401, "invalid_api_key")
    [notice] = [n for n in await models.notices() if n.code == "models_not_refreshed"]
    assert "Let the API key list models." in notice.detail
    assert "2026-11-20 12:00 UTC" in notice.detail
    clock.advance(hours=1)
    openai.reply = None
    await models.refresh(by=OPERATOR)
    assert [n.code for n in await models.notices() if n.code == "models_not_refreshed"] == []


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, text="<html>"),
        httpx.Response(200, json={"data": {}}),
        httpx.Response(200, content=b'{"data":' + b"[" * 100_000),
        httpx.Response(200, json={"data": [{"id": MINI}] * 100_000}),  # more than a mebibyte
        httpx.Response(500, text="canary"),
        httpx.ConnectError("canary"),
    ],
    ids=["html", "no list", "deep", "huge", "broken", "away"],
)
@on_sqlite
async def test_whatever_comes_in_place_of_a_list_minting_goes_on(
    runtime: Runtime,
    models: ModelWatch,
    openai: FakeOpenAI,
    clock: StandingClock,
    alice: User,
    answer: httpx.Response | Exception,
) -> None:
    openai.reply = answer
    async with housekeeping(runtime, pause_seconds=A_MOMENT):
        await looked(runtime, clock, lambda: models.overview().look.problem is not None)
    openai.reply = None

    minted = await runtime.minter.mint(await caller_for(runtime, alice), Wish())

    assert minted.plan.model == MINI
    assert "canary" not in str(await rows(runtime.database))


async def test_nothing_holds_that_could_not_be_written_down(
    runtime: Runtime, models: ModelWatch, openai: FakeOpenAI
) -> None:
    lists(openai, {MINI: SOON})
    lose = sa.text("ALTER TABLE audit_events RENAME TO lost")
    await runtime.database.alter(lambda tx: tx.execute(lose).close())

    with pytest.raises(AuditUnavailable):
        await models.refresh(by=SERVICE)

    assert MINI not in models.days_left()
    assert models.overview().look.tried_at is None


# Several instances --------------------------------------------------------------------------


async def test_what_one_instance_finds_the_others_read(
    runtime: Runtime, settings: Settings, clock: StandingClock, openai: FakeOpenAI
) -> None:
    lists(openai, {MINI: SOON})
    async with played(settings, clock=clock, openai=openai) as other:
        assert MINI not in other.models.days_left()
        await runtime.models.refresh(by=SERVICE)

        await other.models.read()

        assert other.models.days_left()[MINI] == 20
        assert other.profiles.bindings(clock().date())[0].notices[0].model == MINI
    async with played(settings, clock=clock, openai=openai) as started_later:
        assert started_later.models.days_left()[MINI] == 20


async def test_two_that_look_at_once_write_each_change_down_once(
    runtime: Runtime, settings: Settings, clock: StandingClock, openai: FakeOpenAI
) -> None:
    lists(openai, {MINI: SOON})
    async with played(settings, clock=clock, openai=openai) as other:

        async def meanwhile() -> None:
            openai.meanwhile = None
            await other.models.refresh(by=OPERATOR)
            clock.advance(seconds=1)

        openai.meanwhile = meanwhile
        changed = await runtime.models.refresh(by=SERVICE)

    assert changed == []
    assert [row[:3] for row in await model_rows(runtime.database)] == [
        (OPERATOR, "date_announced", MINI)
    ]
    found = await runtime.database.read(
        lambda tx: read_findings(tx, unless=runtime.models._found.look)
    )
    assert found is None, "what it believes is not what stands in the database"


@on_sqlite
async def test_a_process_that_starts_while_the_database_is_away_knows_the_built_in_dates(
    settings: Settings, clock: StandingClock, openai: FakeOpenAI
) -> None:
    away = settings.model_copy(update={"data_dir": settings.data_dir / "nothing"})

    async with open_runtime(away, clock=clock, checked=True) as runtime:
        assert runtime.models.days_left() == {TRANSCRIBER: 98}


# When ---------------------------------------------------------------------------------------


async def looked(runtime: Runtime, clock: StandingClock, condition: Callable[[], bool]) -> None:
    """Wait until a look that is due has been held back, and then until *condition* holds."""

    async def is_held_back() -> bool:
        return runtime.models._look_at is not None

    async def holds() -> bool:
        return condition()

    await until(is_held_back)
    clock.advance(**HELD_BACK)
    await until(holds)


async def test_a_look_is_made_soon_after_the_start_and_then_once_a_day(
    runtime: Runtime, models: ModelWatch, openai: FakeOpenAI, clock: StandingClock
) -> None:
    async def looks_after(**later: float) -> int:
        clock.advance(**later)
        await models.keep_up()
        return len(openai.requests)

    assert await looks_after(seconds=0) == 0  # it is due, and held back
    assert await looks_after(seconds=179) == 0
    assert await looks_after(seconds=181) == 1
    assert await looks_after(hours=23, minutes=59) == 1
    assert await looks_after(minutes=1) == 1  # it is due again
    assert await looks_after(seconds=179) == 1
    assert await looks_after(seconds=181) == 2


@pytest.mark.parametrize(
    ("answer", "again_after"),
    [
        (httpx.Response(503), timedelta(hours=1)),
        (httpx.Response(403), timedelta(days=1)),
    ],
    ids=["away", "may not"],
)
@on_sqlite
async def test_after_a_failure_it_looks_again_when_that_makes_sense(
    models: ModelWatch,
    openai: FakeOpenAI,
    clock: StandingClock,
    answer: httpx.Response,
    again_after: timedelta,
) -> None:
    openai.reply = answer
    with pytest.raises((UpstreamUnavailable, UpstreamMisconfigured)):
        await models.refresh(by=OPERATOR)

    clock.advance(seconds=again_after.total_seconds() - 1)
    await models.keep_up()
    assert models._look_at is None
    clock.advance(seconds=1)
    await models.keep_up()
    assert models._look_at is not None


@on_sqlite
async def test_a_look_of_another_instance_takes_the_place_of_ones_own(
    runtime: Runtime, settings: Settings, clock: StandingClock, openai: FakeOpenAI
) -> None:
    await runtime.models.keep_up()  # is due, and held back
    async with played(settings, clock=clock, openai=openai) as other:
        await other.models.refresh(by=SERVICE)
    clock.advance(**HELD_BACK)

    await runtime.models.keep_up()

    assert len(openai.requests) == 1


@on_sqlite
async def test_a_look_from_the_future_is_none(
    models: ModelWatch, openai: FakeOpenAI, clock: StandingClock
) -> None:
    """A clock that was years ahead for a moment does not end the watch for years."""
    clock.advance(days=3650)
    await models.refresh(by=OPERATOR)
    clock.advance(days=-3650)

    await models.keep_up()

    assert models._look_at is not None


async def test_housekeeping_looks(
    runtime: Runtime, models: ModelWatch, openai: FakeOpenAI, clock: StandingClock
) -> None:
    lists(openai, {MINI: SOON})

    async with housekeeping(runtime, pause_seconds=A_MOMENT):
        await looked(runtime, clock, lambda: MINI in models.days_left())

    [row] = await rows(runtime.database, action="model.refresh")
    assert row["actor"] == SERVICE


# What an admin is told ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("days", "logged"),
    [(31, []), (30, ["warning"]), (8, ["warning"]), (7, ["urgent"]), (1, ["urgent"])],
)
@on_sqlite
async def test_the_log_warns_from_30_days_before_the_end_of_a_model_in_use_once_a_day(
    models: ModelWatch,
    openai: FakeOpenAI,
    clock: StandingClock,
    days: int,
    logged: list[str],
) -> None:
    end = (START + timedelta(days=40)).date()
    # The flagship ends too, and nobody uses it.
    lists(openai, {MINI: end, TRANSCRIBER: None, "gpt-realtime-2.1": end})
    await models.refresh(by=OPERATOR)
    clock.advance(days=40 - days - 1)
    await models.keep_up()  # the day before

    clock.advance(days=1)
    with capture_logs() as lines:
        await models.keep_up()
        await models.keep_up()

    told = [line for line in lines if line["event"] == "model_ends"]
    assert [line["severity"] for line in told] == logged
    for line in told:
        assert f"{MINI} down on {end}; {OLD_MINI} will take its place" in line["note"]
        assert f"Days left: {days}. Used by: default." in line["note"]


@on_sqlite
async def test_a_model_in_use_that_is_not_listed_is_told_of_and_used(
    runtime: Runtime, models: ModelWatch, openai: FakeOpenAI, alice: User
) -> None:
    lists(openai, {TRANSCRIBER: BUILT_IN, "gpt-4o": None})
    await models.refresh(by=OPERATOR)

    notices = await models.notices()
    minted = await runtime.minter.mint(await caller_for(runtime, alice), Wish())

    assert [(n.code, n.model) for n in notices] == [
        ("model_not_listed", MINI),
        ("model_ends", TRANSCRIBER),
    ]
    assert minted.plan.model == MINI


@on_sqlite
async def test_notices_say_what_is_urgent_first_and_end_with_the_news_of_a_week(
    settings: Settings, clock: StandingClock, openai: FakeOpenAI
) -> None:
    gone = {"openai_realtime_model": "gpt-realtime-mini-2025-10-06", "model_policy": "refuse"}
    lists(openai, {TRANSCRIBER: date(2027, 3, 31), "gpt-realtime-3": None})
    changed = settings.model_copy(update=gone)
    async with played(changed, clock=clock, openai=openai) as runtime:
        await runtime.models.refresh(by=OPERATOR)
        now = await runtime.models.notices()
        clock.advance(days=8)
        later = await runtime.models.notices()

    assert [(n.code, n.severity, n.model) for n in now] == [
        ("profile_mints_nothing", "urgent", None),
        ("model_changed", "info", "gpt-realtime-3"),
        ("model_changed", "info", TRANSCRIBER),
    ]
    assert now[1].detail == "gpt-realtime-3: OpenAI lists it now."
    assert now[2].detail == (
        f"{TRANSCRIBER}: its end was moved. It was 2027-02-26, and is 2027-03-31."
    )
    assert [n.code for n in later] == ["profile_mints_nothing"]


@on_sqlite
async def test_an_end_that_cannot_be_is_told_of(
    models: ModelWatch, openai: FakeOpenAI, clock: StandingClock
) -> None:
    lists(openai, {MINI: date(1970, 1, 1), TRANSCRIBER: None})
    await models.refresh(by=OPERATOR)

    assert [n.code for n in models._standing_notices()] == ["date_doubted", "model_ends"]


async def test_the_overview_says_who_names_an_end_and_who_uses_the_model(
    runtime: Runtime, models: ModelWatch, openai: FakeOpenAI, clock: StandingClock
) -> None:
    before = {s.model.id: s for s in models.overview().models}
    lists(openai, {MINI: SOON, OLD_MINI: None, "gpt-realtime-3": SOON})
    await models.refresh(by=OPERATOR)

    overview = models.overview()

    after = {s.model.id: s for s in overview.models}
    assert (before[MINI].source, before[MINI].listed) == (None, None)
    mini, old, transcriber = after[MINI], after[OLD_MINI], after[TRANSCRIBER]
    assert (mini.source, mini.said_at, mini.days_left) == ("openai", clock(), 20)
    assert (mini.status, mini.listed, mini.profiles) == ("deprecated", True, ("default",))
    assert (old.source, old.said_at, old.listed, old.profiles) == ("built_in", None, True, ())
    assert (transcriber.source, transcriber.listed) == ("built_in", False)
    assert after["gpt-realtime-mini-2025-10-06"].days_left is None
    assert [(m.id, m.shutdown) for m in overview.unknown] == [("gpt-realtime-3", SOON)]
    [binding] = overview.bindings
    assert [(use.asked, use.used) for use in binding.models] == [
        ("mini", MINI),
        ("transcribe", TRANSCRIBER),
    ]
    assert binding.session is not None
    assert binding.session["model"] == MINI


@on_sqlite
async def test_metrics_count_looks_changes_and_days(
    runtime: Runtime, models: ModelWatch, openai: FakeOpenAI, clock: StandingClock
) -> None:
    at_first = shown(runtime.metrics)
    lists(openai, {MINI: SOON})
    await models.refresh(by=OPERATOR)
    openai.reply = httpx.Response(503)
    with pytest.raises(UpstreamUnavailable):
        await models.refresh(by=OPERATOR)

    assert set(at_first["model_changes_total"].values()) == {0}
    assert shown(runtime.metrics)["model_looks_total"] == {("ok",): 1, ("failed",): 1}
    assert shown(runtime.metrics)["model_changes_total"][("date_announced",)] == 1
    assert shown(runtime.metrics)["model_end_days"] == {(MINI,): 20, (TRANSCRIBER,): 98}


@on_sqlite
async def test_what_comes_after_a_model_is_said_for_each_profile_that_it_is_different_for(
    settings: Settings, clock: StandingClock, openai: FakeOpenAI
) -> None:
    file = settings.data_dir / "profiles.toml"
    file.write_text(
        '[profiles.second]\n[profiles.dictation]\ntype = "transcription"\n'
        '[profiles.silent]\ntranscription = "none"\n'
    )
    changed = settings.model_copy(update={"profiles_file": file})
    async with played(changed, clock=clock, openai=openai) as runtime:
        told = await runtime.models.notices()

    end = f"OpenAI shuts {TRANSCRIBER} down on 2027-02-26"
    assert [n.detail for n in told] == [
        f"{end}; nothing that fits will take its place. Days left: 98. Used by: default, second.",
        f"{end}; gpt-transcribe will take its place. Days left: 98. Used by: dictation.",
    ]
    assert [n.profiles for n in told] == [("default", "second"), ("dictation",)]


@on_sqlite
async def test_an_unknown_model_that_a_profile_names_is_counted_down_too(
    settings: Settings, clock: StandingClock, openai: FakeOpenAI
) -> None:
    allowed = {"openai_realtime_model": "our-own", "allow_unknown_models": True}
    lists(openai, {"our-own": SOON, TRANSCRIBER: None})
    async with played(settings.model_copy(update=allowed), clock=clock, openai=openai) as runtime:
        await runtime.models.refresh(by=OPERATOR)
        told = await runtime.models.notices()

        assert runtime.models.days_left()["our-own"] == 20
        assert [m.id for m in runtime.models.overview().unknown] == ["our-own"]
    assert (told[0].detail, told[0].severity) == (
        "OpenAI shuts our-own down on 2026-12-10. Days left: 20. Used by: default.",
        "warning",
    )
