"""Users of an external issuer, from their first token until an admin stops them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from app.base.errors import NotFound, UserDisabled
from app.housekeeping import housekeeping
from app.identity.callers import Caller, Origin
from app.identity.users import OPERATOR, User
from app.main import create_app
from app.minting.profiles import Wish
from app.runtime import Runtime
from app.settings import Settings
from tests.clock import StandingClock
from tests.conftest import as_served, bearer_for, played
from tests.fakes import FakeOpenAI
from tests.log_rows import outcomes, rows
from tests.oidc_provider import Provider, in_toml, providing

HOME = Origin(request_id="req_1", ip="192.0.2.7", user_agent="pytest")
ROLES = {"claim": ["permissions"], "admin": ["realtime:admin"], "auditor": ["realtime:audit"]}


@pytest.fixture
async def provider(clock: StandingClock) -> AsyncIterator[Provider]:
    async with providing(clock) as provider:
        yield provider


@pytest.fixture
async def runtime(
    settings: Settings,
    clock: StandingClock,
    openai: FakeOpenAI,
    provider: Provider,
    tmp_path: Path,
) -> AsyncIterator[Runtime]:
    """The service, behind the tests' provider."""
    path = tmp_path / "issuers.toml"
    path.write_text(in_toml([provider.table(roles=ROLES)]))
    changed = settings.model_copy(update={"issuers_file": path})
    async with played(changed, clock=clock, openai=openai) as runtime:
        yield runtime


async def caller_of(runtime: Runtime, token: str, *, scope: str | None = "mint") -> Caller:
    return await runtime.callers.authenticate(f"Bearer {token}", HOME, scope=scope)


@asynccontextmanager
async def client_of(runtime: Runtime, token: str) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(runtime.settings)
    transport = httpx.ASGITransport(as_served(app, runtime), client=("192.0.2.7", 4711))
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(
        transport=transport, base_url=runtime.settings.public_url, headers=headers
    ) as client:
        yield client


async def test_the_first_token_of_somebody_makes_their_row_and_says_so_in_the_log(
    runtime: Runtime, provider: Provider
) -> None:
    caller = await caller_of(runtime, provider.token(email="canary@example.com"))

    [user] = await runtime.external_users.all()
    assert user.id == caller.user_id
    assert (user.issuer, user.subject, user.disabled_at) == (provider.url, "their-user-17", None)
    [row] = await rows(runtime.database)
    assert (row["action"], row["actor"]) == ("user.create", user.id)
    assert (row["credential"], row["request_id"]) == ("their-token-1", "req_1")
    assert "their-user" not in str(row)
    assert "canary" not in str(row)


async def test_who_has_been_here_is_the_same_user_again(
    runtime: Runtime, provider: Provider
) -> None:
    tokens = [provider.token(sub=sub, jti=jti) for sub, jti in ("x1", "y2", "x3", "X4")]

    first, other, again, upper = [await caller_of(runtime, token) for token in tokens]

    assert first.user_id == again.user_id
    assert len({first.user_id, other.user_id, upper.user_id}) == 3
    assert len(await rows(runtime.database, action="user.create")) == 3


async def test_requests_at_once_make_one_row(runtime: Runtime, provider: Provider) -> None:
    callers = await asyncio.gather(
        *(caller_of(runtime, provider.token(jti=str(n))) for n in range(10))
    )

    assert len({caller.user_id for caller in callers}) == 1
    assert len(await runtime.external_users.all()) == 1
    assert len(await rows(runtime.database, action="user.create")) == 1


async def test_a_token_that_is_refused_makes_nobody_and_leaves_a_row(
    runtime: Runtime, provider: Provider
) -> None:
    async with client_of(runtime, provider.token(aud="other")) as client:
        answer = await client.post("/realtime/token")

    assert (answer.status_code, answer.json()["code"]) == (401, "invalid_token")
    assert "identity provider" in answer.json()["detail"]
    assert await runtime.external_users.all() == []
    [row] = await rows(runtime.database)
    assert (row["action"], row["outcome"]) == ("access_token.verify", "denied")


async def test_they_mint_like_anybody_else(
    runtime: Runtime, provider: Provider, openai: FakeOpenAI
) -> None:
    async with client_of(runtime, provider.token()) as client:
        minted = await client.post("/realtime/token")
        profiles = await client.get("/realtime/profiles")
        me = await client.get("/auth/me")
        audit = await client.get("/audit/events")

    assert minted.json()["token"] == openai.minted[0]
    assert [profile["name"] for profile in profiles.json()["profiles"]] == ["default"]
    [user] = await runtime.external_users.all()
    assert me.json() == {
        "id": user.id,
        "email": None,
        "role": "user",
        "scopes": ["mint"],
        "createdAt": "2026-11-20T12:00:00Z",
    }
    assert (audit.status_code, audit.json()["code"]) == (403, "insufficient_scope")
    assert await outcomes(runtime.database) == ["requested", "issued"]
    issued = (await rows(runtime.database, outcome="issued"))[0]
    assert (issued["actor"], issued["credential"]) == (user.id, "their-token-1")
    assert "sign_in" not in issued


async def test_a_token_whose_claim_gives_another_role_has_its_scopes(
    runtime: Runtime, provider: Provider
) -> None:
    auditor = provider.token(permissions=["realtime:audit"])
    async with client_of(runtime, auditor) as client:
        assert (await client.get("/audit/events")).status_code == 200
        assert (await client.post("/realtime/token")).status_code == 403
        assert (await client.get("/auth/me")).json()["role"] == "auditor"
    async with client_of(runtime, provider.token(permissions=["other"])) as client:
        assert (await client.get("/audit/events")).status_code == 403
        assert (await client.get("/auth/me")).json()["role"] == "user"


async def test_after_they_are_disabled_no_mint_succeeds_whatever_their_issuer_says(
    runtime: Runtime, provider: Provider, openai: FakeOpenAI
) -> None:
    caller = await caller_of(runtime, provider.token())
    await runtime.minter.mint(caller, Wish())

    await runtime.external_users.disable(caller.user_id, by="usr_admin")

    with pytest.raises(UserDisabled):
        await runtime.minter.mint(caller, Wish())
    with pytest.raises(UserDisabled):
        await runtime.callers.confirm(caller)
    async with client_of(runtime, provider.token(jti="another")) as client:
        for method, path in (("POST", "/realtime/token"), ("GET", "/auth/me")):
            answer = await client.request(method, path)
            assert (answer.status_code, answer.json()["code"]) == (403, "user_disabled")
    assert len(openai.requests) == 1
    denied = await rows(runtime.database, outcome="denied", reason="user_disabled")
    assert {row["actor"] for row in denied} == {caller.user_id}
    [row] = await rows(runtime.database, action="user.disable")
    assert (row["actor"], row["target"]) == ("usr_admin", caller.user_id)

    enabled = await runtime.external_users.enable(caller.user_id, by="usr_admin")

    assert enabled.disabled_at is None
    await runtime.minter.mint(caller, Wish())


async def test_the_guard_asks_for_the_row_of_the_user_alone(
    runtime: Runtime, provider: Provider, alice: User
) -> None:
    own = (await bearer_for(runtime, alice))["Authorization"].removeprefix("Bearer ")
    callers = [await caller_of(runtime, token) for token in (own, provider.token())]

    minted = await asyncio.gather(*(runtime.minter.mint(caller, Wish()) for caller in callers))

    assert len({each.id for each in minted}) == 2
    assert [caller.sign_in_id is None for caller in callers] == [False, True]


async def test_nobody_is_disabled_by_an_id_that_is_not_theirs(
    runtime: Runtime, alice: User
) -> None:
    with pytest.raises(NotFound, match="realtime-tokens users list"):
        await runtime.external_users.disable(alice.id, by=OPERATOR)

    assert await rows(runtime.database, action="user.disable") == []


async def test_refusals_of_somebody_who_is_known_count_for_them_and_not_for_their_address(
    runtime: Runtime, provider: Provider
) -> None:
    tokens = [provider.token(sub=sub) for sub in ("one", "two") for _ in range(6)]
    for token in tokens:
        async with client_of(runtime, token) as client:
            assert (await client.get("/audit/events")).status_code == 403

    denied = await rows(runtime.database, outcome="denied")

    assert len(denied) == 10
    assert len({row["actor"] for row in denied}) == 2


async def test_signing_out_is_for_the_one_who_signed_them_in(
    runtime: Runtime, provider: Provider
) -> None:
    async with client_of(runtime, provider.token()) as client:
        answer = await client.post("/auth/sign-out-everywhere")

    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert "identity provider" in answer.json()["detail"]


async def test_accounts_of_our_own_are_judged_as_before(
    runtime: Runtime, provider: Provider, alice: User, clock: StandingClock
) -> None:
    headers = await bearer_for(runtime, alice)
    own = headers["Authorization"].removeprefix("Bearer ")
    clock.advance(hours=1)

    async with client_of(runtime, own) as client:
        answer = await client.get("/auth/me")

    assert "has expired. Get a new one at POST /auth/token" in answer.json()["detail"]
    assert provider.fetches == 0


async def test_an_issuer_that_is_away_is_no_fault_of_the_caller(
    runtime: Runtime, provider: Provider
) -> None:
    provider.answer = refuse

    async with client_of(runtime, provider.token()) as client:
        answer = await client.post("/realtime/token")

    assert (answer.status_code, answer.json()["code"]) == (503, "issuer_unavailable")
    assert answer.headers["Retry-After"] == "30"
    assert await rows(runtime.database) == []


async def refuse() -> bytes:
    return b"HTTP/1.1 503 Gone\r\nContent-Length: 0\r\n\r\n"


async def test_keys_are_fetched_at_start_without_holding_it_up(
    runtime: Runtime, provider: Provider
) -> None:
    asked, proceed = asyncio.Event(), asyncio.Event()

    async def late() -> bytes:
        asked.set()
        await proceed.wait()
        return await refuse()

    provider.answer = late

    async with housekeeping(runtime):  # it is entered although the issuer has not answered
        async with asyncio.timeout(5):
            await asked.wait()

    assert provider.fetches == 1


async def test_their_password_is_changed_where_it_is(runtime: Runtime, provider: Provider) -> None:
    change = {"currentPassword": "whatever it is there", "newPassword": "another one, and long"}

    async with client_of(runtime, provider.token()) as client:
        answer = await client.post("/auth/password", json=change)

    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert "identity provider" in answer.json()["detail"]
