"""A mint past FastAPI is answered as FastAPI would have answered it."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from app.identity.users import OPERATOR, User
from app.main import create_app
from app.runtime import Runtime
from app.settings import Settings
from app.web.realtime import TokenRequest
from tests.conftest import PASSWORD, as_served, bearer_for, on_sqlite

pytestmark = on_sqlite  # below the web both ways are one

JSON = {"Content-Type": "application/json"}

# Different for each request, whichever way it takes.
OWN = {"id", "token", "requestId"}


@dataclass(frozen=True)
class Ways:
    """The two ways to the same service."""

    short: httpx.AsyncClient
    long: httpx.AsyncClient

    async def agree(self, **request: Any) -> httpx.Response:
        """Send the same request both ways and compare the answers; return one of them."""
        short, long = [
            await client.post("/realtime/token", **request) for client in (self.short, self.long)
        ]
        assert visible(short) == visible(long)
        return short


def visible(answer: httpx.Response) -> tuple[object, ...]:
    headers = {name: value for name, value in answer.headers.items() if name != "x-request-id"}
    body = {name: value for name, value in answer.json().items() if name not in OWN}
    return answer.status_code, headers | {"content-length": ""}, body


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"mints_per_user_per_minute": 10_000})


@pytest.fixture
async def ways(runtime: Runtime) -> AsyncIterator[Ways]:
    short, long = create_app(runtime.settings), create_app(runtime.settings)
    long.user_middleware = [each for each in long.user_middleware if "Shortcut" not in repr(each)]
    assert len(long.user_middleware) == len(short.user_middleware) - 1
    clients = [
        httpx.AsyncClient(
            transport=httpx.ASGITransport(as_served(app, runtime), client=("192.0.2.7", 4711)),
            base_url=runtime.settings.public_url,
        )
        for app in (short, long)
    ]
    async with clients[0], clients[1]:
        yield Ways(*clients)


@pytest.mark.parametrize(
    "body",
    [
        "",
        "null",
        "{}",
        '{"language": "en", "voice": "marin", "ttlSeconds": 30}',
        '{"profile": "none such"}',
        '{"profile": ""}',
        '{"profile": null}',
        '{"ttlSeconds": 30.0}',
        '{"ttlSeconds": "30"}',
        '{"ttlSeconds": true}',
        '{"ttlSeconds": 9999999999999999999999}',
        '{"ttlSeconds": 5}',
        '{"user": "u-1"}',
        '{"voise": "marin", "ek_0123456789": 1}',
        '{"language": "en", "language": "de"}',
        '{"variables": {"a": 1, "b": "x"}}',
        '{"variables": []}',
        '{"language": "\\ud800"}',
        "[]",
        "1",
        '"text"',
        "NaN",
        "{",
        '{"a": }',
        "[" * 30_000,
        '{"ttlSeconds": ' + "9" * 5_000 + "}",
    ],
    ids=lambda body: body[:40] or "nothing",
)
async def test_whatever_is_wished_for(ways: Ways, runtime: Runtime, alice: User, body: str) -> None:
    await ways.agree(content=body, headers=JSON | await bearer_for(runtime, alice))


async def test_what_stands_in_the_address_is_refused(
    ways: Ways, runtime: Runtime, alice: User
) -> None:
    parameters = {"ttlSeconds": "30", "foo": "1"}

    answer = await ways.agree(params=parameters, headers=await bearer_for(runtime, alice))

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "query"
    assert (await ways.agree(params=parameters)).status_code == 401


async def test_bytes_that_are_not_utf_8(ways: Ways, runtime: Runtime, alice: User) -> None:
    answer = await ways.agree(
        content=b'{"profile": "\xff"}', headers=JSON | await bearer_for(runtime, alice)
    )

    assert answer.status_code == 422


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Basic YTpi"},
        {"Authorization": "Bearer eyJhbGciOiJub25lIn0.e30."},
        {"Origin": "https://app.example.com"},
    ],
    ids=str,
)
async def test_whoever_is_refused(ways: Ways, headers: dict[str, str]) -> None:
    answer = await ways.agree(headers=headers)

    assert answer.status_code == 401


async def test_who_lacks_the_scope(ways: Ways, runtime: Runtime) -> None:
    auditor = await runtime.users.add(
        "auditor@example.com", role="auditor", password=PASSWORD, by=OPERATOR
    )

    answer = await ways.agree(headers=await bearer_for(runtime, auditor))

    assert answer.status_code == 403


@pytest.mark.parametrize("method", ["GET", "PUT", "OPTIONS", "HEAD"])
async def test_other_methods_are_left_to_the_router(ways: Ways, method: str) -> None:
    answer = await ways.short.request(method, "/realtime/token")

    assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")


names = st.sampled_from(
    [field.alias or name for name, field in TokenRequest.model_fields.items()] + ["voise"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=5,
)


@given(wish=st.dictionaries(names, values, max_size=4))
@hypothesis_settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_json(ways: Ways, runtime: Runtime, alice: User, wish: dict[str, Any]) -> None:
    await ways.agree(content=json.dumps(wish), headers=JSON | await bearer_for(runtime, alice))
