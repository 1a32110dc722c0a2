"""What the OpenAPI document says, against what the service answers.

Every refusal that is described is brought about, and every good answer is asked for.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send
from structlog.testing import capture_logs

from app.audit.rollup import rolled_up
from app.base.db import Database
from app.base.errors import MethodNotAllowed, every_problem
from app.identity.callers import Origin
from app.identity.external_tokens import ExternalTokens
from app.identity.issuer_settings import Issuer
from app.identity.issuers import Issuers
from app.identity.key_ring import NewKey
from app.identity.refresh_tokens import refresh_tokens
from app.identity.reset_links import reset_links
from app.identity.users import OPERATOR, SCOPES, User
from app.main import create_app
from app.runtime import Runtime
from app.settings import Settings
from app.web.callers import PUBLIC
from app.web.door import MAX_BODY_BYTES
from tests.clock import StandingClock
from tests.conftest import PASSWORD, as_served, played
from tests.fakes import FakeOpenAI
from tests.keys import bearer_of, new_key
from tests.oidc_provider import SigningKey, providing
from tests.openapi_document import (
    ASKING,
    OPERATIONS,
    READING,
    Operation,
    check,
    example_of,
    openapi,
)

pytestmark = pytest.mark.slow

PROFILES = Path(__file__).parents[1] / "examples" / "profiles.toml"
EMAIL = "ada@example.com"
FORM = {"grant_type": "password", "username": EMAIL, "password": PASSWORD}
NOWHERE = "http://127.0.0.1:9/realms/nowhere"  # nobody serves the port of the discard protocol
REFRESH_TOKEN = "rtr_" + "a" * 43
KEY = {"name": "a backend", "scopes": ["mint:on-behalf"]}
KEY_VERBS = ("create", "revoke", "rotate")
USER = {"email": "bob@example.com", "role": "auditor"}
RESET_TOKEN = "rts_" + "a" * 43
NEW_PASSWORD = "violin harbour seventeen plums"
NO_BAD_CREDENTIALS = {"bad_credentials_per_address_per_minute": 1}


@dataclass
class Stage:
    """The whole service with OpenAI played, and Ada, who may do everything."""

    app: FastAPI
    client: httpx.AsyncClient
    runtime: Runtime
    openai: FakeOpenAI
    ada: User
    key: NewKey
    named: str = "evt_unknown"
    """What stands in an address for `{id}`."""

    async def bearer(self, scopes: frozenset[str] = SCOPES["admin"]) -> dict[str, str]:
        granted = await self.runtime.sign_in.begin(self.ada, scopes, Origin())
        return {"Authorization": f"Bearer {granted.access_token}"}


Staging = Callable[..., AbstractAsyncContextManager[Stage]]


@pytest.fixture
def staging(
    settings: Settings, clock: StandingClock, openai: FakeOpenAI, database: Database
) -> Staging:
    @asynccontextmanager
    async def stage(**changes: Any) -> AsyncIterator[Stage]:
        changed = settings.model_copy(update=changes)
        app = create_app(changed)
        async with (
            played(changed, clock=clock, openai=openai) as runtime,
            httpx.AsyncClient(
                transport=httpx.ASGITransport(
                    as_served(app, runtime), raise_app_exceptions=False, client=("192.0.2.7", 1)
                ),
                base_url=changed.public_url,
            ) as client,
        ):
            ada = await runtime.users.add(EMAIL, role="admin", password=PASSWORD, by=OPERATOR)
            yield Stage(app, client, runtime, openai, ada, await new_key(runtime))

    return stage


# Each prepares a refusal and returns the headers to be refused with.


async def signed_in(stage: Stage) -> dict[str, str]:
    return await stage.bearer()


async def unknown(_: Stage) -> dict[str, str]:
    return {}


async def forged(_: Stage) -> dict[str, str]:
    return {"Authorization": "Bearer forged"}


def with_scopes(scopes: frozenset[str]) -> Callable[[Stage], Awaitable[dict[str, str]]]:
    return lambda stage: stage.bearer(scopes)


async def disabled(stage: Stage) -> dict[str, str]:
    headers = await stage.bearer()
    await stage.runtime.users.disable(EMAIL, by=OPERATOR)
    return headers


async def answered_before(stage: Stage) -> dict[str, str]:
    headers = await stage.bearer()
    assert (await stage.client.post("/realtime/token", headers=headers)).status_code == 200
    assert (await stage.client.post("/auth/token", data=FORM)).status_code == 200
    return headers


async def without_a_log(stage: Stage) -> dict[str, str]:
    headers = await stage.bearer()
    lose = sa.text("ALTER TABLE audit_events RENAME TO lost")
    await stage.runtime.database.alter(lambda tx: tx.execute(lose).close())
    return headers


async def signed_in_without_a_log(stage: Stage) -> dict[str, str]:
    headers = await without_a_log(stage)
    known = refresh_tokens.update().values(token_sha256=sha256(REFRESH_TOKEN.encode()).digest())
    await stage.runtime.database.alter(lambda tx: tx.execute(known).close())
    return headers


async def with_a_closed_log(stage: Stage) -> dict[str, str]:
    headers = await stage.bearer()
    await stage.runtime.log.close()
    return headers


async def far_behind_with_adding_up(stage: Stage) -> dict[str, str]:
    far = rolled_up.update().values(seq=-1_000_000)
    await stage.runtime.database.alter(lambda tx: tx.execute(far).close())
    return await stage.bearer()


async def busy_with_passwords(stage: Stage) -> dict[str, str]:
    while stage.runtime.sign_in._passwords._places.acquire(blocking=False):
        pass
    return {}


async def rotated(stage: Stage) -> dict[str, str]:
    await stage.runtime.key_ring.rotate(stage.key.key.id, by=None)
    return await stage.bearer()


async def full(stage: Stage) -> dict[str, str]:
    admission = stage.runtime.admission
    admission._waiting = admission._most_waiting
    return await stage.bearer()


async def of_an_issuer_that_is_away(_: Stage) -> dict[str, str]:
    token = SigningKey().token({"iss": NOWHERE})
    return {"Authorization": f"Bearer {token}"}


async def signed_in_elsewhere(stage: Stage) -> dict[str, str]:
    clock, runtime = stage.runtime.clock, stage.runtime
    async with providing(clock) as provider:
        configured = [Issuer.model_validate(provider.table())]
        issuers = Issuers(configured, anywhere=False, clock=clock, metrics=runtime.metrics)
        await issuers.refresh()
        await issuers.aclose()
    runtime.callers._external = (ExternalTokens(issuers, clock=clock), runtime.external_users)
    return {"Authorization": f"Bearer {provider.token()}"}


async def impatient(stage: Stage) -> dict[str, str]:
    for middleware in stage.app.user_middleware:
        if "body_seconds" in middleware.kwargs:
            middleware.kwargs["body_seconds"] = 0
    return {}


async def broken(stage: Stage) -> dict[str, str]:
    stage.app.user_middleware.insert(-1, Middleware(with_a_bug))  # before the shortcut
    return {}


def with_a_bug(app: ASGIApp) -> ASGIApp:
    """Return what stands in place of *app*, inside of the door, and breaks."""

    async def bug(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("canary")

    return bug


async def signed_in_busy_with_passwords(stage: Stage) -> dict[str, str]:
    return await stage.bearer() | await busy_with_passwords(stage)


async def with_a_link(stage: Stage) -> dict[str, str]:
    await stage.runtime.password_changes.make_link(stage.ada.id, by=OPERATOR)
    known = reset_links.update().values(token_sha256=sha256(RESET_TOKEN.encode()).digest())
    await stage.runtime.database.alter(lambda tx: tx.execute(known).close())
    return {}


async def with_a_link_busy_with_passwords(stage: Stage) -> dict[str, str]:
    return await with_a_link(stage) | await busy_with_passwords(stage)


async def with_a_link_without_a_log(stage: Stage) -> dict[str, str]:
    return await with_a_link(stage) | await without_a_log(stage)


async def about_somebody_disabled(stage: Stage) -> dict[str, str]:
    users = stage.runtime.users
    bob = await users.add("bob@example.com", role="user", password=PASSWORD, by=OPERATOR)
    await users.disable(bob.email, by=OPERATOR)
    stage.named = bob.id
    return await stage.bearer()


async def about_ada(stage: Stage) -> dict[str, str]:
    stage.named = stage.ada.id
    return await stage.bearer()


async def about_ada_without_a_log(stage: Stage) -> dict[str, str]:
    stage.named = stage.ada.id
    return await without_a_log(stage)


async def about_bob(stage: Stage) -> None:
    users = stage.runtime.users
    bob = await users.add("bob@example.com", role="user", password=PASSWORD, by=OPERATOR)
    stage.named = bob.id


async def about_bob_who_was_erased(stage: Stage) -> dict[str, str]:
    await about_bob(stage)
    await stage.runtime.erasure.erase("bob@example.com", by=OPERATOR)
    return await stage.bearer()


async def about_bob_without_a_log(stage: Stage) -> dict[str, str]:
    await about_bob(stage)
    return await without_a_log(stage)


async def about_bob_busy_with_passwords(stage: Stage) -> dict[str, str]:
    await about_bob(stage)
    return await signed_in_busy_with_passwords(stage)


async def verifying(stage: Stage) -> dict[str, str]:
    headers = await stage.bearer()
    stage.runtime.verifications._busy = True
    return headers


async def unheard(stage: Stage) -> dict[str, str]:
    for _ in range(2):
        await stage.client.get("/auth/me", headers=await forged(stage))
    return await stage.bearer()


class NeverEnding:
    """A request body of which nothing arrives."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""


@dataclass(frozen=True)
class Case:
    """A way to be refused, and the code that tells it."""

    operation: Operation
    code: str
    prepare: Callable[[Stage], Awaitable[dict[str, str]]] = signed_in
    send: Mapping[str, Any] = field(default_factory=dict)
    """What the request has besides the headers, as httpx takes it."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    upstream: httpx.Response | Exception | None = None
    """OpenAI's answer."""

    def __str__(self) -> str:
        return f"{self.operation.id}-{self.code}"


def cases() -> Iterator[Case]:
    for operation in OPERATIONS.values():
        yield Case(operation, "internal_error", broken)
    for operation in READING:
        yield Case(operation, "request_timeout", impatient, {"content": NeverEnding()})
        yield Case(operation, "body_too_large", unknown, {"content": b" " * (MAX_BODY_BYTES + 1)})
        yield Case(operation, "unsupported_media_type", unknown, {"content": b"<wish/>"})
    for operation in ASKING:
        wrong = SCOPES["admin"].difference(operation.scopes)
        if not operation.scopes:  # it is not the operation that refuses, but the role's loss
            wrong |= {"lost"}
        yield Case(operation, "unauthenticated", unknown)
        yield Case(operation, "invalid_request", send={"params": {"surprise": "1"}})
        yield Case(operation, "invalid_token", forged)
        yield Case(operation, "insufficient_scope", with_scopes(wrong))
        yield Case(operation, "user_disabled", disabled)
        yield Case(
            operation,
            "issuer_unavailable",
            of_an_issuer_that_is_away,
            settings={"issuers": (f"keycloak:{NOWHERE.replace('/realms/', ':')}:audience",)},
        )
        yield Case(operation, "rate_limited", unheard, settings=NO_BAD_CREDENTIALS)
    yield from minting_cases()
    yield from signing_in_cases()
    yield from signing_out_cases()
    yield from password_cases()
    search, show = OPERATIONS["listAuditEvents"], OPERATIONS["getAuditEvent"]
    yield Case(search, "invalid_cursor", send={"params": {"cursor": "made-up"}})
    yield Case(search, "invalid_request", send={"params": {"limit": "0"}})
    yield Case(show, "not_found")
    yield from view_cases()
    yield from key_cases()
    yield from user_cases()
    yield from integrity_cases()


def integrity_cases() -> Iterator[Case]:
    start = OPERATIONS["startVerification"]
    yield Case(OPERATIONS["listCheckpoints"], "invalid_request", send={"params": {"limit": "0"}})
    yield Case(OPERATIONS["getLatestCheckpoint"], "not_found")
    yield Case(start, "conflict", verifying)
    yield Case(start, "audit_unavailable", without_a_log)


def view_cases() -> Iterator[Case]:
    overview, export, look_up = (
        OPERATIONS[name] for name in ("getAuditOverview", "exportAuditEvents", "lookUpToken")
    )
    yield Case(overview, "invalid_request", send={"params": {"span": "week"}})
    yield Case(overview, "audit_unavailable", far_behind_with_adding_up)
    yield Case(export, "invalid_request", send={"params": {"format": "xlsx"}})
    yield Case(export, "audit_unavailable", without_a_log)
    unknown_token = {"json": {"token": "ek_unknown"}}
    yield Case(look_up, "invalid_request", send={"json": {}})
    yield Case(look_up, "not_found", send=unknown_token)
    yield Case(look_up, "audit_unavailable", with_a_closed_log, unknown_token)


def key_cases() -> Iterator[Case]:
    create, revoke, rotate = (OPERATIONS[f"{verb}ServiceKey"] for verb in KEY_VERBS)
    for operation in (create, revoke, rotate):
        sent = {"json": KEY} if operation is create else {}
        yield Case(operation, "audit_unavailable", without_a_log, sent)
    yield Case(create, "invalid_request", send={"json": {**KEY, "profiles": ["nope"]}})
    yield Case(rotate, "invalid_request", send={"json": {"overlapHours": 169}})
    yield Case(revoke, "not_found")
    yield Case(rotate, "not_found")
    yield Case(rotate, "conflict", rotated)


def user_cases() -> Iterator[Case]:
    """The refusals of what admins do to users."""
    find, add, role, disable = (
        OPERATIONS[name] for name in ("listUsers", "addUser", "setUserRole", "disableUser")
    )
    yield Case(find, "invalid_cursor", send={"params": {"cursor": "made-up"}})
    yield Case(find, "invalid_request", send={"params": {"limit": "0"}})
    yield Case(add, "invalid_request", send={"json": USER | {"email": "nobody"}})
    yield Case(add, "conflict", send={"json": USER | {"email": EMAIL}})
    yield Case(add, "audit_unavailable", without_a_log, {"json": USER})
    yield Case(add, "overloaded", signed_in_busy_with_passwords, {"json": USER})
    yield Case(role, "invalid_request", send={"json": {"role": "root"}})
    yield Case(role, "conflict", about_ada, {"json": {"role": "user"}})
    erase = OPERATIONS["eraseUser"]
    yield Case(disable, "conflict", about_ada)
    yield Case(erase, "conflict", about_ada)
    yield Case(OPERATIONS["enableUser"], "conflict", about_bob_who_was_erased)
    yield Case(erase, "overloaded", about_bob_busy_with_passwords)
    yield Case(erase, "audit_unavailable", about_bob_without_a_log)
    yield Case(erase, "not_found")
    for name in ("getUser", "setUserRole", "disableUser", "enableUser", "signUserOut"):
        operation = OPERATIONS[name]
        sent = {"json": {"role": "user"}} if operation is role else {}
        yield Case(operation, "not_found", send=sent)
        if operation.method == "post":
            yield Case(operation, "audit_unavailable", about_bob_without_a_log, sent)


def minting_cases() -> Iterator[Case]:
    mint, refresh = OPERATIONS["mintToken"], OPERATIONS["refreshModels"]
    coach = {"profile": "coach", "voice": "marin"}
    with_profiles = {"profiles_file": PROFILES}
    gone = {"openai_realtime_model": "gpt-realtime-mini-2025-10-06", "model_policy": "refuse"}
    yield Case(mint, "override_not_allowed", send={"json": coach}, settings=with_profiles)
    yield Case(mint, "profile_not_found", send={"json": {"profile": "nope"}})
    yield Case(mint, "invalid_request", send={"json": {"model": "gpt-realtime-2.1"}})
    once_a_minute, once_a_day = {"mints_per_user_per_minute": 1}, {"mints_per_user_per_day": 1}
    yield Case(mint, "rate_limited", answered_before, settings=once_a_minute)
    yield Case(mint, "quota_exceeded", answered_before, settings=once_a_day)
    yield Case(mint, "minting_off", settings={"minting": "off"})
    yield Case(mint, "model_retired", settings=gone)
    yield Case(mint, "audit_unavailable", without_a_log)
    yield Case(mint, "overloaded", full)
    answers: dict[str, httpx.Response | Exception] = {
        "upstream_rejected": openai_error(400, "unknown_parameter"),
        "upstream_misconfigured": openai_error(401, "invalid_api_key"),
        "upstream_invalid_response": httpx.Response(200, text="<html>"),
        "upstream_unavailable": openai_error(503, "server_error"),
        "upstream_rate_limited": openai_error(429, "rate_limit_exceeded"),
        "upstream_quota_exhausted": openai_error(429, "insufficient_quota"),
        "upstream_timeout": httpx.ReadTimeout("no answer"),
    }
    for code, upstream in answers.items():
        yield Case(mint, code, upstream=upstream)
        yield Case(refresh, code, upstream=upstream)
    yield Case(refresh, "audit_unavailable", without_a_log)


def openai_error(status: int, code: str) -> httpx.Response:
    return httpx.Response(status, json={"error": {"type": code, "code": code, "message": "…"}})


def signing_in_cases() -> Iterator[Case]:
    sign_in = OPERATIONS["signIn"]
    for code, form in {
        "invalid_grant": FORM | {"password": "wrong"},
        "invalid_request": FORM | {"username": ""},
        "invalid_scope": FORM | {"scope": "everything"},
        "unsupported_grant_type": FORM | {"grant_type": "client_credentials"},
    }.items():
        yield Case(sign_in, code, unknown, {"data": form})
    once = {"sign_ins_per_address_per_minute": 1}
    yield Case(sign_in, "rate_limited", answered_before, {"data": FORM}, settings=once)
    yield Case(sign_in, "audit_unavailable", without_a_log, {"data": FORM})
    yield Case(sign_in, "overloaded", busy_with_passwords, {"data": FORM})


def password_cases() -> Iterator[Case]:
    change, reset, link = (
        OPERATIONS[name] for name in ("changePassword", "resetPassword", "makeResetLink")
    )
    new = {"json": {"currentPassword": PASSWORD, "newPassword": NEW_PASSWORD}}
    yield Case(change, "invalid_request", send={"json": {"currentPassword": PASSWORD}})
    yield Case(change, "conflict", signed_in_elsewhere, new)
    yield Case(change, "overloaded", signed_in_busy_with_passwords, new)
    yield Case(change, "audit_unavailable", without_a_log, new)
    made_up = {"json": {"token": RESET_TOKEN, "password": NEW_PASSWORD}}
    once = {"sign_ins_per_address_per_minute": 1}
    yield Case(reset, "invalid_request", unknown, made_up)
    yield Case(reset, "rate_limited", answered_before, made_up, settings=once)
    yield Case(reset, "overloaded", with_a_link_busy_with_passwords, made_up)
    yield Case(reset, "audit_unavailable", with_a_link_without_a_log, made_up)
    yield Case(link, "not_found")
    yield Case(link, "conflict", about_somebody_disabled)
    yield Case(link, "audit_unavailable", about_ada_without_a_log)


def signing_out_cases() -> Iterator[Case]:
    sign_out, everywhere = OPERATIONS["signOut"], OPERATIONS["signOutEverywhere"]
    one_of_ours = {"data": {"token": REFRESH_TOKEN}}
    yield Case(sign_out, "invalid_request", unknown, {"data": {"token": ""}})
    yield Case(sign_out, "audit_unavailable", signed_in_without_a_log, one_of_ours)
    yield Case(everywhere, "audit_unavailable", without_a_log)
    yield Case(everywhere, "conflict", signed_in_elsewhere)


CASES = list(cases())


def as_parameter(case: Case) -> Any:
    """Return *case* as pytest takes it; of a log that never answers nobody waits longer for one."""
    waits = case.prepare is with_a_closed_log
    return pytest.param(case, id=str(case), marks=pytest.mark.impatient if waits else ())


@pytest.mark.parametrize("case", [as_parameter(case) for case in CASES])
async def test_a_refusal_is_as_described(case: Case, staging: Staging) -> None:
    operation = case.operation
    async with staging(**case.settings) as stage:
        stage.openai.reply = case.upstream
        headers = await case.prepare(stage)
        with capture_logs():  # printing the traceback of a bug takes long
            is_a_key = "/keys/" in operation.path and case.code != "not_found"
            known = stage.key.key.id if is_a_key else stage.named
            path = operation.path.replace("{id}", known)
            answer = await stage.client.request(
                operation.method, path, headers=headers, **case.send
            )

    described = operation.described["responses"][str(answer.status_code)]
    media = described["content"][answer.headers["Content-Type"]]
    shown = media["examples"][case.code]["value"]
    check(answer.json(), media["schema"])
    assert answer.json().get("code") == shown.get("code")
    assert answer.json().get("error") == shown.get("error")
    sent = {name for name in openapi()["components"]["headers"] if name in answer.headers}
    assert "X-Request-ID" in sent
    assert sent <= described["headers"].keys()


def test_every_refusal_that_is_described_has_been_met() -> None:
    described = {(told.id, code) for told in OPERATIONS.values() for code in told.codes}

    assert {(case.operation.id, case.code) for case in CASES} == described


def test_every_kind_of_problem_is_described_somewhere() -> None:
    described = {code for operation in OPERATIONS.values() for code in operation.codes}
    kinds = {kind.code for kind in every_problem()}

    assert kinds - described == {MethodNotAllowed.code}  # it is no operation's problem
    assert f"`{MethodNotAllowed.code}`" in openapi()["info"]["description"]


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=lambda o: o.id)
async def test_a_good_answer_is_as_described(operation: Operation, staging: Staging) -> None:
    async with staging() as stage:
        minted = await stage.client.post("/realtime/token", headers=await stage.bearer())
        known = minted.json()["id"] if "audit" in operation.path else stage.named
        if "/users/" in operation.path:  # not Ada, for she is the last admin
            new = {"role": "user", "password": PASSWORD}
            known = (await stage.runtime.users.add("eve@example.com", by=OPERATOR, **new)).id
        elif "/keys/" in operation.path:
            known = stage.key.key.id
        path = operation.path.replace("{id}", known)
        await with_a_link(stage)
        await stage.runtime.checkpoints.keep()
        headers = {}
        if operation.path not in PUBLIC:  # no more than the document says is needed
            headers = await stage.bearer(frozenset(operation.scopes or ["mint"]))
        form = {"signIn": FORM, "signOut": {"token": REFRESH_TOKEN}}.get(operation.id)
        wish = {
            "addUser": USER,
            "createServiceKey": KEY,
            "setUserRole": {"role": "auditor"},
            "lookUpToken": {"token": minted.json()["token"]},
            "changePassword": {"currentPassword": PASSWORD, "newPassword": NEW_PASSWORD},
            "resetPassword": {"token": RESET_TOKEN, "password": NEW_PASSWORD},
        }.get(operation.id)
        answer = await stage.client.request(
            operation.method, path, headers=headers, data=form, json=wish
        )

    assert answer.is_success
    described = operation.described["responses"][str(answer.status_code)]
    if "content" in described:
        media_type = answer.headers["Content-Type"]
        body = answer.json() if media_type == "application/json" else answer.text
        check(body, described["content"][media_type]["schema"])
    else:
        assert answer.content == b""
    if operation.path not in PUBLIC:
        assert answer.headers["Cache-Control"] == "no-store"  # it is about the caller, or others
    cache_control = described["headers"].get("Cache-Control", {"schema": {"const": None}})
    assert answer.headers.get("Cache-Control") == cache_control["schema"]["const"]


async def test_a_service_that_is_not_ready_says_so_as_described(staging: Staging) -> None:
    async with staging() as stage:
        await stage.runtime.log.close()
        answer = await stage.client.get("/readyz")

    described = OPERATIONS["isReady"].described["responses"][str(answer.status_code)]
    assert answer.status_code == 503
    check(answer.json(), described["content"]["application/json"]["schema"])


async def test_the_examples_are_what_the_service_says(staging: Staging) -> None:
    body = OPERATIONS["mintToken"].described["requestBody"]
    wishes = body["content"]["application/json"]["examples"]
    async with staging(profiles_file=PROFILES) as stage:
        headers = await stage.bearer()
        minted = {
            name: await stage.client.post(
                "/realtime/token",
                headers=bearer_of(stage.key) if "user" in wish["value"] else headers,
                json=wish["value"],
            )
            for name, wish in wishes.items()
        }
        profiles = (await stage.client.get("/realtime/profiles", headers=headers)).json()
        models = (await stage.client.get("/realtime/models", headers=headers)).json()

    assert {answer.status_code for answer in minted.values()} == {200}
    each_time_another = {"id", "token", "expiresAt", "expiresIn"}
    answered, shown = minted["chosen"].json(), example_of("mintToken")
    assert answered.keys() == shown.keys()
    for name in shown.keys() - each_time_another:
        assert answered[name] == shown[name]
    assert all(
        profile in profiles["profiles"] for profile in example_of("listProfiles")["profiles"]
    )
    assert all(model in models["models"] for model in example_of("listModels")["models"])


@pytest.mark.parametrize(
    ("operation_id", "send", "field_at_fault"),
    [
        ("listAuditEvents", {"params": {"from": "yesterday"}}, "from"),
        ("listAuditEvents", {"params": {"cursor": "x" * 65}}, "cursor"),
        ("mintToken", {"json": {"language": 7}}, "language"),
        ("mintToken", {"json": {"voise": "marin"}}, "voise"),
    ],
)
async def test_a_field_at_fault_is_named_as_it_is_described(
    operation_id: str, send: dict[str, Any], field_at_fault: str, staging: Staging
) -> None:
    told = OPERATIONS[operation_id]
    async with staging() as stage:
        headers = await stage.bearer()
        answer = await stage.client.request(told.method, told.path, headers=headers, **send)

    assert [error["field"] for error in answer.json()["errors"]] == [field_at_fault]
