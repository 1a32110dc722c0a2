"""Models over HTTP: what admins see, and the look they ask for."""

from collections.abc import AsyncIterator

import httpx
import pytest

from app.identity.users import User
from app.main import create_app
from app.runtime import Runtime
from tests.conftest import as_served, bearer_for, on_sqlite
from tests.fakes import FakeOpenAI
from tests.log_rows import rows

MINI, TRANSCRIBER = "gpt-realtime-2.1-mini", "gpt-4o-mini-transcribe"
MODELS, REFRESH = "/admin/api/models", "/admin/api/models/refresh"

pytestmark = on_sqlite


@pytest.fixture
async def client(runtime: Runtime, admin: User) -> AsyncIterator[httpx.AsyncClient]:
    """An admin, signed in."""
    transport = httpx.ASGITransport(as_served(create_app(runtime.settings), runtime))
    headers = await bearer_for(runtime, admin)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://x", headers=headers
    ) as client:
        yield client


async def test_before_the_first_look_the_catalogue_is_shown_as_it_was_shipped(
    client: httpx.AsyncClient,
) -> None:
    shown = (await client.get(MODELS)).json()

    by_id = {model["id"]: model for model in shown["models"]}
    assert shown["look"] == {"triedAt": None, "succeededAt": None, "problem": None}
    assert shown["unknown"] == []
    transcriber = by_id[TRANSCRIBER]
    assert (transcriber["source"], transcriber["sunset"]) == ("built_in", "2027-02-26")
    assert (transcriber["listed"], transcriber["profiles"]) == (None, ["default"])
    assert by_id[MINI]["source"] is None
    [profile] = shown["profiles"]
    assert profile["session"]["audio"]["input"]["transcription"] == {"model": TRANSCRIBER}
    assert [notice["code"] for notice in shown["notices"]] == ["model_ends"]


async def test_a_look_that_an_admin_asks_for_is_theirs_and_holds_at_once(
    client: httpx.AsyncClient, runtime: Runtime, openai: FakeOpenAI, admin: User
) -> None:
    openai.models = [
        {"id": MINI, "shutdown_date": "2026-12-10"},
        {"id": TRANSCRIBER, "shutdown_date": "2027-02-26"},
        {"id": "gpt-realtime-3-mini", "shutdown_date": None},
    ]

    looked = await client.post(REFRESH)
    offered = (await client.get("/realtime/models")).json()["models"]
    minted = (await client.post("/realtime/token")).json()
    shown = (await client.get(MODELS)).json()

    assert looked.json() == {
        "changes": [
            {"change": "date_announced", "model": MINI, "before": None, "after": "2026-12-10"},
            {"change": "appeared", "model": "gpt-realtime-3-mini", "before": None, "after": None},
        ]
    }
    ends = {model["id"]: (model["status"], model["sunset"]) for model in offered}
    assert ends[MINI] == ("deprecated", "2026-12-10")
    assert "gpt-realtime-3-mini" not in ends
    assert MINI in {notice["model"] for notice in minted["notices"]}
    assert shown["unknown"] == [{"id": "gpt-realtime-3-mini", "sunset": None}]
    assert [notice["code"] for notice in shown["notices"]] == [
        "model_ends",  # in 20 days
        "model_ends",  # in 98 days
        "model_changed",
        "model_changed",
    ]
    written = await rows(runtime.database, actor=admin.id)
    about_models = [row["action"] for row in written if row["action"].startswith("model.")]
    assert about_models == ["model.refresh", "model.change", "model.change"]


async def test_a_change_can_be_read_in_the_log(
    client: httpx.AsyncClient, openai: FakeOpenAI
) -> None:
    openai.models = [{"id": TRANSCRIBER, "shutdown_date": "2027-05-26"}]
    await client.post(REFRESH)

    found = await client.get("/audit/events", params={"action": "model.change"})

    [row] = found.json()["events"]
    assert (row["target"], row["reason"]) == (TRANSCRIBER, "date_moved")
    assert (row["shutdownBefore"], row["shutdownAfter"]) == ("2027-02-26", "2027-05-26")


async def test_a_look_that_fails_says_why_and_nothing_of_openais_words(
    client: httpx.AsyncClient, openai: FakeOpenAI
) -> None:
    openai.reply = httpx.Response(403, json={"error": {"code": "canary_code", "message": "canary"}})

    refused = await client.post(REFRESH)
    shown = await client.get(MODELS)

    assert (refused.status_code, refused.json()["code"]) == (502, "upstream_misconfigured")
    assert shown.json()["look"]["problem"] == "upstream_misconfigured"
    assert "canary" not in refused.text + shown.text
