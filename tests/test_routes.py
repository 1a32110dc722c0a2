"""Every route, from outside the application: who may, what comes back, what is refused."""

import json
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from app.identity.users import OPERATOR, User
from app.main import create_app
from app.runtime import Runtime
from app.web.callers import PUBLIC
from tests.clock import StandingClock
from tests.conftest import PASSWORD, as_served, bearer_for
from tests.fakes import FakeOpenAI
from tests.log_rows import outcomes, rows
from tests.openapi_document import OPERATIONS


@pytest.fixture
def app(runtime: Runtime) -> FastAPI:
    return create_app(runtime.settings)


@pytest.fixture
async def client(app: FastAPI, runtime: Runtime) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(as_served(app, runtime), client=("192.0.2.7", 4711))
    async with httpx.AsyncClient(
        transport=transport, base_url=runtime.settings.public_url
    ) as client:
        yield client


# Minting ------------------------------------------------------------------------------------


async def test_a_token_comes_with_everything_a_frontend_needs(
    client: httpx.AsyncClient, runtime: Runtime, alice: User, openai: FakeOpenAI
) -> None:
    answer = await client.post("/realtime/token", headers=await bearer_for(runtime, alice))

    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    body = answer.json()
    attempt_id = body.pop("id")
    assert attempt_id.startswith("tok_")
    notices = body.pop("notices")
    assert body == {
        "success": True,
        "token": openai.minted[0],
        "expiresAt": 1795176060,
        "expiresIn": 60,
        "model": "gpt-realtime-2.1-mini",
        "sessionConfig": {
            "type": "realtime",
            "model": "gpt-realtime-2.1-mini",
            "output_modalities": ["audio"],
            "audio": {
                "input": {
                    "transcription": {"model": "gpt-4o-mini-transcribe"},
                    "turn_detection": {"type": "semantic_vad"},
                },
                "output": {"voice": "marin"},
            },
        },
        "connect": {
            "webrtc": "https://api.openai.com/v1/realtime/calls",
            "websocket": "wss://api.openai.com/v1/realtime",
        },
        "binding": "advisory",
        "environment": "live",
    }
    [notice] = notices
    assert notice["code"] == "model_deprecated"
    assert (notice["model"], notice["sunset"]) == ("gpt-4o-mini-transcribe", "2027-02-26")
    assert set(notice) == {"code", "model", "sunset", "detail"}
    assert body["sessionConfig"] == json.loads(openai.requests[0].content)["session"]


async def test_the_rows_of_a_mint_say_who_asked_from_where(
    client: httpx.AsyncClient, runtime: Runtime, alice: User, admin: User
) -> None:
    answer = await client.post(
        "/realtime/token",
        headers={**await bearer_for(runtime, alice), "X-Request-ID": "my-id-1"},
        json={},
    )
    assert answer.headers["X-Request-ID"] == "my-id-1"

    found = await client.get(
        f"/audit/events/{answer.json()['id']}", headers=await bearer_for(runtime, admin)
    )

    body = found.json()
    assert body["event"]["outcome"] == "issued"
    assert [row["outcome"] for row in body["attempt"]] == ["requested", "issued"]
    intent = body["attempt"][0]
    assert (intent["actor"], intent["ip"], intent["requestId"]) == (
        alice.id,
        "192.0.2.7",
        "my-id-1",
    )
    assert "token" not in body["event"]
    by_event = await client.get(
        f"/audit/events/{intent['eventId']}", headers=await bearer_for(runtime, admin)
    )
    assert by_event.json()["event"] == intent
    assert by_event.json()["attempt"] == body["attempt"]


@pytest.mark.parametrize(
    ("wish", "status", "code", "field"),
    [
        ({"profile": "nope"}, 404, "profile_not_found", None),
        ({"model": "gpt-realtime-2.1"}, 422, "invalid_request", "model"),
        ({"sessionConfig": {}}, 422, "invalid_request", "sessionConfig"),
        ({"ttl_seconds": 30}, 422, "invalid_request", "ttl_seconds"),
        ({"ttlSeconds": 9}, 422, "invalid_request", "ttlSeconds"),
        ({"ttlSeconds": 61}, 422, "invalid_request", "ttlSeconds"),
        ({"ttlSeconds": "30"}, 422, "invalid_request", "ttlSeconds"),
        ({"ttlSeconds": True}, 422, "invalid_request", "ttlSeconds"),
        ({"ttlSeconds": 30.5}, 422, "invalid_request", "ttlSeconds"),
        ({"language": "english"}, 422, "invalid_request", "language"),
        ({"voice": "darth"}, 422, "invalid_request", "voice"),
        ({"variables": {"customer": "Ada"}}, 422, "invalid_request", "variables"),
        ({"user": "their-user-17"}, 422, "invalid_request", "user"),
        ([], 422, "invalid_request", None),
        ("text", 422, "invalid_request", None),
    ],
)
async def test_a_wish_that_cannot_be_met_is_refused_before_openai_is_asked(
    client: httpx.AsyncClient,
    runtime: Runtime,
    alice: User,
    openai: FakeOpenAI,
    wish: object,
    status: int,
    code: str,
    field: str | None,
) -> None:
    answer = await client.post(
        "/realtime/token", headers=await bearer_for(runtime, alice), json=wish
    )

    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (status, code)
    assert problem["type"] == f"http://127.0.0.1:8000/errors/{code}"
    assert problem["requestId"] == answer.headers["X-Request-ID"]
    if field is not None:
        assert [error["field"] for error in problem["errors"]] == [field]
    assert openai.requests == []


async def test_a_body_that_is_not_json_is_refused(
    client: httpx.AsyncClient, runtime: Runtime, alice: User
) -> None:
    headers = {**await bearer_for(runtime, alice), "Content-Type": "application/json"}

    answer = await client.post("/realtime/token", headers=headers, content=b'{"profile": ')

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


async def test_a_token_may_be_shortened(
    client: httpx.AsyncClient, runtime: Runtime, alice: User
) -> None:
    answer = await client.post(
        "/realtime/token", headers=await bearer_for(runtime, alice), json={"ttlSeconds": 10}
    )

    assert answer.json()["expiresIn"] == 10


async def test_asking_too_often_says_how_long_to_wait(
    client: httpx.AsyncClient, runtime: Runtime, alice: User
) -> None:
    headers = await bearer_for(runtime, alice)
    for _ in range(10):
        assert (await client.post("/realtime/token", headers=headers)).status_code == 200

    answer = await client.post("/realtime/token", headers=headers)

    assert (answer.status_code, answer.json()["code"]) == (429, "rate_limited")
    assert answer.headers["Retry-After"] == "60"


async def test_what_openai_says_stays_here(
    client: httpx.AsyncClient, runtime: Runtime, alice: User, openai: FakeOpenAI
) -> None:
    openai.reply = httpx.Response(
        401, json={"error": {"message": "canary sk-proj-****", "code": "invalid_api_key"}}
    )

    answer = await client.post("/realtime/token", headers=await bearer_for(runtime, alice))

    assert (answer.status_code, answer.json()["code"]) == (502, "upstream_misconfigured")
    assert "canary" not in answer.text
    assert await outcomes(runtime.database) == ["requested", "failed"]


# Signing in ---------------------------------------------------------------------------------


async def test_signing_in_gives_what_rfc_6749_says(client: httpx.AsyncClient, alice: User) -> None:
    form = {"grant_type": "password", "username": alice.email, "password": PASSWORD, "else": "x"}

    answer = await client.post("/auth/token", data=form)

    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    body = answer.json()
    assert set(body) == {
        "access_token",
        "token_type",
        "expires_in",
        "scope",
        "refresh_token",
        "refresh_expires_in",
    }
    assert body["refresh_expires_in"] == 1_209_600
    assert (body["token_type"], body["expires_in"], body["scope"]) == ("Bearer", 600, "mint")
    me = await client.get("/auth/me", headers={"Authorization": f"Bearer {body['access_token']}"})
    assert (me.json()["email"], me.json()["scopes"]) == (alice.email, ["mint"])


@pytest.mark.parametrize(
    ("form", "error"),
    [
        ("grant_type=password&username=alice@example.com&password=wrong", "invalid_grant"),
        ("grant_type=password&username=alice@example.com", "invalid_request"),
        ("username=a&password=b", "invalid_request"),
        ("", "invalid_request"),
        ("grant_type=client_credentials", "unsupported_grant_type"),
        ("grant_type=refresh_token", "invalid_request"),
        ("grant_type=refresh_token&refresh_token=", "invalid_request"),
        ("grant_type=refresh_token&refresh_token=a&refresh_token=b", "invalid_request"),
        ("grant_type=refresh_token&refresh_token=junk", "invalid_grant"),
        (f"grant_type=refresh_token&refresh_token=rtr_{'a' * 43}", "invalid_grant"),
        ("grant_type=password&username=a&username=b&password=c", "invalid_request"),
    ],
)
async def test_a_refused_sign_in_is_answered_as_rfc_6749_says(
    client: httpx.AsyncClient, alice: User, form: str, error: str
) -> None:
    answer = await client.post(
        "/auth/token",
        content=form,
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )

    assert answer.status_code == 400
    assert answer.json()["error"] == error
    assert set(answer.json()) == {"error", "error_description"}
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("path", ["/auth/token", "/auth/revoke"])
async def test_the_oauth_endpoints_take_forms_alone(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.post(path, json={"grant_type": "password", "token": "x"})

    assert answer.status_code == 415
    assert answer.json()["error"] == "invalid_request"


async def signed_in(client: httpx.AsyncClient, user: User) -> dict[str, str]:
    form = {"grant_type": "password", "username": user.email, "password": PASSWORD}
    answer = await client.post("/auth/token", data=form)
    granted: dict[str, str] = answer.json()
    return granted


async def refreshed(client: httpx.AsyncClient, token: str, **more: str) -> httpx.Response:
    form = {"grant_type": "refresh_token", "refresh_token": token, **more}
    return await client.post("/auth/token", data=form)


async def test_refreshing_answers_like_signing_in(client: httpx.AsyncClient, admin: User) -> None:
    granted = await signed_in(client, admin)

    answer = await refreshed(client, granted["refresh_token"], scope="mint", client_id="unknown")

    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    again = answer.json()
    assert again.keys() == granted.keys()
    assert again["refresh_token"] != granted["refresh_token"]
    assert again["scope"] == "mint"
    headers = {"Authorization": f"Bearer {again['access_token']}"}
    assert (await client.get("/auth/me", headers=headers)).json()["email"] == admin.email


async def test_a_refresh_token_is_good_once(client: httpx.AsyncClient, alice: User) -> None:
    token = (await signed_in(client, alice))["refresh_token"]
    assert (await refreshed(client, token)).status_code == 200

    answer = await refreshed(client, token)

    assert answer.status_code == 400
    assert answer.json() == {
        "error": "invalid_grant",
        "error_description": "The refresh token is not good. Sign in again.",
    }
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("kind", ["access_token", "refresh_token"])
@pytest.mark.parametrize("hint", ["access_token", "refresh_token", "something_else"])
async def test_revoking_a_token_signs_out(
    client: httpx.AsyncClient, alice: User, kind: str, hint: str
) -> None:
    granted = await signed_in(client, alice)

    form = {"token": granted[kind], "token_type_hint": hint, "client_id": "unknown"}
    answer = await client.post("/auth/revoke", data=form)

    assert (answer.status_code, answer.content) == (200, b"")
    headers = {"Authorization": f"Bearer {granted['access_token']}"}
    refused = await client.get("/auth/me", headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (401, "invalid_token")
    assert (await refreshed(client, granted["refresh_token"])).json()["error"] == "invalid_grant"
    assert (await client.post("/auth/revoke", data=form)).status_code == 200


@pytest.mark.parametrize(
    ("form", "status"),
    [
        ("token=junk", 200),
        (f"token=rtr_{'a' * 43}", 200),
        ("token=eyJ.eyJ.x", 200),
        ("token=%ED%A0%80", 200),
        ("token=" + "x" * 60_000, 200),
        ("", 400),
        ("token=", 400),
        ("token_type_hint=access_token", 400),
        ("token=a&token=b", 400),
    ],
)
async def test_a_token_that_is_not_known_is_no_error_but_none_at_all_is(
    client: httpx.AsyncClient, form: str, status: int
) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}

    answer = await client.post("/auth/revoke", content=form, headers=headers)

    assert answer.status_code == status
    if status == 400:
        assert answer.json()["error"] == "invalid_request"


async def test_signing_out_everywhere_ends_all_sign_ins(
    client: httpx.AsyncClient, runtime: Runtime, alice: User
) -> None:
    here, there = [await bearer_for(runtime, alice) for _ in range(2)]

    answer = await client.post("/auth/sign-out-everywhere", headers=here)

    assert (answer.status_code, answer.content) == (204, b"")
    for headers in (here, there):
        assert (await client.get("/auth/me", headers=headers)).status_code == 401
    assert (await client.get("/auth/me", headers=await bearer_for(runtime, alice))).is_success


async def test_guessing_is_answered_with_a_wait(client: httpx.AsyncClient, alice: User) -> None:
    form = {"grant_type": "password", "username": alice.email, "password": "guess"}
    for _ in range(5):
        assert (await client.post("/auth/token", data=form)).status_code == 400

    answer = await client.post("/auth/token", data=form)

    assert (answer.status_code, answer.json()["error"]) == (429, "rate_limited")
    assert answer.headers["Retry-After"] == "1"


async def test_an_expired_access_token_is_refused(
    client: httpx.AsyncClient, runtime: Runtime, alice: User, clock: StandingClock
) -> None:
    headers = await bearer_for(runtime, alice)
    clock.advance(minutes=10)

    answer = await client.post("/realtime/token", headers=headers)

    assert (answer.status_code, answer.json()["code"]) == (401, "invalid_token")
    assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]


# Who may ------------------------------------------------------------------------------------


def api_routes(app: FastAPI) -> list[tuple[str, str]]:
    """Return method and path of everything in the OpenAPI, and of our plain routes beside it."""
    found = [
        (method.upper(), path)
        for path, methods in app.openapi()["paths"].items()
        for method in methods
    ]
    found += [
        (method, route.path)
        for route in app.router.routes
        if isinstance(route, APIRoute) and not route.include_in_schema
        for method in route.methods or ()
    ]
    return found


@pytest.mark.parametrize("path", ["", "/tokens"])
async def test_the_root_leads_to_the_docs_below_the_path_of_the_public_url(
    runtime: Runtime, path: str
) -> None:
    url = runtime.settings.public_url + path
    app = create_app(runtime.settings.model_copy(update={"public_url": url}))
    transport = httpx.ASGITransport(as_served(app, runtime))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        answer = await client.get("/")

    assert (answer.status_code, answer.headers["Location"]) == (307, f"{path}/docs")


async def test_every_route_asks_for_a_caller_or_is_named_public(
    app: FastAPI, client: httpx.AsyncClient
) -> None:
    routes = api_routes(app)
    assert ("POST", "/realtime/token") in routes
    pages = {"/openapi.json", "/docs", "/errors", "/errors/{code}", "/reset"}
    assert {path for _, path in routes} >= PUBLIC - pages

    for method, path in routes:
        answer = await client.request(method, path.replace("{id}", "evt_x"))
        if path in PUBLIC:
            assert answer.status_code != 401, path
        else:
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated"), path
            assert answer.headers["WWW-Authenticate"].startswith("Bearer"), path


READ_BY_AUDITORS = {
    "/audit/events",
    "/audit/events/{id}",
    "/audit/export",
    "/audit/lookup",
    "/audit/overview",
    "/audit/notices",
    "/audit/checkpoints",
    "/audit/checkpoints/latest",
    "/audit/public-key",
    "/audit/verification",
}


@pytest.mark.parametrize(
    ("role", "allowed"),
    [
        ("user", {"/realtime/token", "/realtime/profiles", "/realtime/models"}),
        ("auditor", READ_BY_AUDITORS),
        (
            "admin",
            {
                "/realtime/token",
                "/realtime/profiles",
                "/realtime/models",
                *READ_BY_AUDITORS,
                "/admin/api/keys",
                "/admin/api/keys/{id}/revoke",
                "/admin/api/keys/{id}/rotate",
                "/admin/api/models",
                "/admin/api/models/refresh",
                "/admin/api/users",
                "/admin/api/users/{id}",
                "/admin/api/users/{id}/disable",
                "/admin/api/users/{id}/enable",
                "/admin/api/users/{id}/erase",
                "/admin/api/users/{id}/reset-link",
                "/admin/api/users/{id}/role",
                "/admin/api/users/{id}/sign-out",
            },
        ),
    ],
)
async def test_each_role_reaches_what_it_is_for_and_nothing_else(
    app: FastAPI, client: httpx.AsyncClient, runtime: Runtime, role: str, allowed: set[str]
) -> None:
    user = await runtime.users.add("x@example.com", role=role, password=PASSWORD, by=OPERATOR)

    reached = set()
    for method, path in api_routes(app):
        if path not in PUBLIC:
            headers = await bearer_for(runtime, user)  # one of the routes ends all sign-ins
            answer = await client.request(method, path.replace("{id}", "evt_x"), headers=headers)
            if answer.status_code == 403:
                assert answer.json()["code"] == "insufficient_scope"
            else:
                reached.add(path)

    assert reached == allowed | {"/auth/me", "/auth/password", "/auth/sign-out-everywhere"}


# Reading ------------------------------------------------------------------------------------


async def test_profiles_and_models_are_listed(
    client: httpx.AsyncClient, runtime: Runtime, alice: User
) -> None:
    headers = await bearer_for(runtime, alice)

    profiles = (await client.get("/realtime/profiles", headers=headers)).json()["profiles"]
    models = (await client.get("/realtime/models", headers=headers)).json()["models"]

    assert [(p["name"], p["allow"]) for p in profiles] == [("default", ["language", "voice"])]
    by_id = {model["id"]: model for model in models}
    assert by_id["gpt-realtime-2.1-mini"]["status"] == "active"
    assert by_id["gpt-realtime-mini"]["status"] == "deprecated"
    assert by_id["gpt-realtime-mini"]["sunset"] == "2027-01-20"
    assert by_id["gpt-realtime-mini-2025-10-06"]["status"] == "retired"
    assert by_id["gpt-realtime-mini-2025-10-06"]["successor"] == "gpt-realtime-2.1-mini"


async def test_an_auditor_searches_and_pages(
    client: httpx.AsyncClient, runtime: Runtime, alice: User, admin: User, clock: StandingClock
) -> None:
    for _ in range(3):
        await client.post("/realtime/token", headers=await bearer_for(runtime, alice))
        clock.advance(minutes=1)
    headers = await bearer_for(runtime, admin)
    query = {"action": "client_secret.mint", "outcome": "issued", "limit": "2"}

    first = (await client.get("/audit/events", params=query, headers=headers)).json()
    query["cursor"] = first["nextCursor"]
    second = (await client.get("/audit/events", params=query, headers=headers)).json()

    assert [len(first["events"]), len(second["events"])] == [2, 1]
    assert second["nextCursor"] is None
    assert first["previousCursor"] is None
    assert (second["matches"], second["moreMatches"]) == (3, False)
    back = {**query, "cursor": second["previousCursor"]}
    assert (await client.get("/audit/events", params=back, headers=headers)).json() == first
    seqs = [event["seq"] for event in first["events"] + second["events"]]
    assert seqs == sorted(seqs, reverse=True)
    window = {"from": "2026-11-20T12:01:00Z", "to": "2026-11-20T13:02:00+01:00"}
    inside = await client.get(
        "/audit/events", params={**window, "outcome": "issued"}, headers=headers
    )
    assert len(inside.json()["events"]) == 1


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("cursor=abc", 400, "invalid_cursor"),
        ("limit=0", 422, "invalid_request"),
        ("limit=201", 422, "invalid_request"),
        ("actor=%00", 422, "invalid_request"),
        ("from=yesterday", 422, "invalid_request"),
        ("from=2026-11-20T12:00:00", 422, "invalid_request"),
        ("from=1795176000", 422, "invalid_request"),
        ("to=0.5", 422, "invalid_request"),
        ("span=week", 422, "invalid_request"),
        ("span=7d&from=2026-11-20T12:00:00Z", 422, "invalid_request"),
    ],
)
async def test_a_search_that_cannot_be_run_is_refused(
    client: httpx.AsyncClient, runtime: Runtime, admin: User, query: str, status: int, code: str
) -> None:
    answer = await client.get(f"/audit/events?{query}", headers=await bearer_for(runtime, admin))

    assert (answer.status_code, answer.json()["code"]) == (status, code)


async def test_a_search_by_an_unknown_parameter_is_refused(
    client: httpx.AsyncClient, runtime: Runtime, admin: User
) -> None:
    headers = await bearer_for(runtime, admin)

    answer = await client.get("/audit/events?actr=usr_x", headers=headers)

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


@pytest.mark.parametrize("wanted", ["evt_x", "tok_x", "tok_" + "0" * 26, "%00", "a" * 200])
async def test_an_event_that_is_not_there_is_not_found(
    client: httpx.AsyncClient, runtime: Runtime, admin: User, wanted: str
) -> None:
    answer = await client.get(f"/audit/events/{wanted}", headers=await bearer_for(runtime, admin))

    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_health_is_public_and_says_what_is_wrong(
    client: httpx.AsyncClient, runtime: Runtime
) -> None:
    assert (await client.get("/livez")).json() == {"status": "alive"}
    ready = await client.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")
    assert (await client.get("/version")).json()["environment"] == "live"

    await runtime.log.close()

    ready = await client.get("/readyz")
    assert (ready.status_code, ready.json()["writer"]) == (503, "failing")


async def test_the_published_key_proves_our_tokens(
    client: httpx.AsyncClient, runtime: Runtime, alice: User
) -> None:
    [key] = (await client.get("/.well-known/jwks.json")).json()["keys"]

    assert set(key) == {"kty", "crv", "x", "y", "kid", "use", "alg"}


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/realtime/token", 405, "method_not_allowed"),
        ("DELETE", "/audit/events", 405, "method_not_allowed"),
        ("GET", "/sandbox/v1/models", 404, "not_found"),
        ("POST", "/realtime/token/", 404, "not_found"),
    ],
)
async def test_what_is_not_here_is_a_problem_too(
    client: httpx.AsyncClient, method: str, path: str, status: int, code: str
) -> None:
    answer = await client.request(method, path)

    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize("odd", ["%00", "usr_%00", "%FF", "%F0%9F%98%80", "x" * 1000, "%27%3B--"])
async def test_what_cannot_be_an_id_is_not_found(
    client: httpx.AsyncClient, runtime: Runtime, admin: User, odd: str
) -> None:
    headers = await bearer_for(runtime, admin)
    named = [operation for operation in OPERATIONS.values() if "{id}" in operation.path]

    answers = [
        await client.request(
            operation.method,
            operation.path.replace("{id}", odd),
            headers=headers,
            json={"role": "user"} if operation.id == "setUserRole" else None,
        )
        for operation in named
    ]

    assert len(named) >= 4
    assert {answer.status_code for answer in answers} == {404}


async def test_the_host_header_decides_nothing(client: httpx.AsyncClient) -> None:
    answer = await client.get("/nothing", headers={"Host": "evil.example"})

    assert "evil" not in answer.text
    assert "evil" not in str(answer.headers)


@pytest.mark.slow
async def test_a_bug_says_nothing_outside(
    app: FastAPI, client: httpx.AsyncClient, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise RuntimeError("canary")

    app.add_api_route("/broken", broken)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as outside:
        answer = await outside.get("/broken")

    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert "canary" not in answer.text
    assert answer.headers["X-Request-ID"] == answer.json()["requestId"]


async def test_no_denied_row_is_lost_when_the_caller_is_unknown(
    client: httpx.AsyncClient, runtime: Runtime
) -> None:
    for _ in range(7):
        await client.get("/auth/me", headers={"Authorization": "Bearer junk"})
    await runtime.denials.settle(all_of_them=True)

    denied = await rows(runtime.database, outcome="denied")
    assert [row.get("count") for row in denied] == [None] * 5 + [2]
