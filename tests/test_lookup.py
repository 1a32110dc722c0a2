"""Whose token it is: found by its fingerprint, asked for in the log, and kept nowhere."""

from collections.abc import AsyncIterator

import httpx
import pytest

from app.identity.users import User
from app.main import create_app
from app.runtime import Runtime
from tests.conftest import as_served, bearer_for
from tests.keys import bearer_of, new_key
from tests.log_rows import rows

PATH = "/audit/lookup"
LOST = "ek_canaryCANARYcanary0123456789abcdef"


@pytest.fixture
async def client(runtime: Runtime) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(as_served(create_app(runtime.settings), runtime))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        yield client


async def minted(client: httpx.AsyncClient, runtime: Runtime, user: User) -> dict[str, str]:
    answer = await client.post("/realtime/token", headers=await bearer_for(runtime, user))
    assert answer.status_code == 200
    return dict(answer.json())


@pytest.mark.parametrize("around", ["{}", " {}\n"])
async def test_a_token_leads_to_its_mint_and_leaves_a_row(
    client: httpx.AsyncClient, runtime: Runtime, alice: User, admin: User, around: str
) -> None:
    await minted(client, runtime, alice)
    token = await minted(client, runtime, alice)
    headers = await bearer_for(runtime, admin)

    answer = await client.post(PATH, headers=headers, json={"token": around.format(token["token"])})

    body = answer.json()
    assert answer.status_code == 200
    assert [row["outcome"] for row in body["attempt"]] == ["requested", "issued"]
    assert {row["attemptId"] for row in body["attempt"]} == {token["id"]}
    assert body["event"] == body["attempt"][-1]
    assert body["event"]["actor"] == alice.id
    assert token["token"] not in answer.text
    [row] = await rows(runtime.database, action="client_secret.look_up")
    assert (row["actor"], row["target"]) == (admin.id, token["id"])
    assert row["request_id"] == answer.headers["X-Request-ID"]
    assert "reason" not in row


async def test_looking_a_token_up_does_not_alter_what_the_mint_shows(
    client: httpx.AsyncClient, runtime: Runtime, alice: User, admin: User
) -> None:
    token = await minted(client, runtime, alice)
    headers = await bearer_for(runtime, admin)
    shown = f"/audit/events/{token['id']}"
    before = (await client.get(shown, headers=headers)).json()

    await client.post(PATH, headers=headers, json={"token": token["token"]})

    assert (await client.get(shown, headers=headers)).json() == before
    found = await client.get("/audit/events", params={"id": token["id"]}, headers=headers)
    actions = [row["action"] for row in found.json()["events"]]
    assert actions == ["client_secret.look_up", "client_secret.mint", "client_secret.mint"]


async def test_a_token_that_is_not_ours_is_not_found_and_the_question_is_in_the_log(
    client: httpx.AsyncClient, runtime: Runtime, admin: User
) -> None:
    headers = await bearer_for(runtime, admin)

    answer = await client.post(PATH, headers=headers, json={"token": LOST})

    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert "another SECRET_KEY" in answer.json()["detail"]
    [row] = await rows(runtime.database, action="client_secret.look_up")
    assert (row["reason"], row.get("target")) == ("not_found", None)


async def test_a_backend_with_the_scope_may_look_tokens_up(
    client: httpx.AsyncClient, runtime: Runtime, alice: User
) -> None:
    token = await minted(client, runtime, alice)
    key = await new_key(runtime, "audit:read")

    answer = await client.post(PATH, headers=bearer_of(key), json={"token": token["token"]})

    assert answer.status_code == 200
    [row] = await rows(runtime.database, action="client_secret.look_up")
    assert row["actor"] == key.key.id


@pytest.mark.parametrize(
    "sent",
    [
        {"json": {"token": [LOST]}},
        {"json": {"token": LOST * 40}},
        {"json": {"token": ""}},
        {"json": {"token": LOST, LOST: LOST}},
        {"json": {"tokn": LOST}},
        {"json": LOST},
        {"json": [LOST]},
        {"content": f'{{"token": "{LOST}"', "headers": {"Content-Type": "application/json"}},
        {"content": LOST, "headers": {"Content-Type": "text/plain"}},
        {"data": {"token": LOST}},
        {"params": {"token": LOST}},
    ],
)
async def test_a_question_that_cannot_be_read_is_refused_without_repeating_it(
    client: httpx.AsyncClient,
    runtime: Runtime,
    admin: User,
    sent: dict[str, object],
    capfd: pytest.CaptureFixture[str],
) -> None:
    client.headers = httpx.Headers(await bearer_for(runtime, admin))

    answer = await client.post(PATH, **sent)  # type: ignore[arg-type]  # a table of requests

    assert answer.status_code in {415, 422}
    assert "canary" not in answer.text
    assert "canary" not in str(answer.headers)
    printed = capfd.readouterr()
    assert "canary" not in printed.out + printed.err
    assert await rows(runtime.database, action="client_secret.look_up") == []


async def test_what_is_no_text_is_not_found_either(
    client: httpx.AsyncClient, runtime: Runtime, admin: User
) -> None:
    headers = {**await bearer_for(runtime, admin), "Content-Type": "application/json"}

    answer = await client.post(PATH, headers=headers, content=b'{"token": "ek_\\udfff"}')

    assert answer.status_code == 404
