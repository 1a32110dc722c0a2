"""Who may do what: every role at every operation, as the OpenAPI document has them.

A new route is tried by itself. What it has to ask for follows from where it stands, so that one
which forgets to ask, or asks for too little, fails here although its description says the same.
"""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from fastapi.routing import APIRoute, iter_route_contexts

from app.identity.users import OPERATOR, SCOPES, Role
from app.main import create_app
from app.runtime import Runtime
from app.settings import Settings
from app.web.admin.problem_page import is_page
from app.web.callers import PUBLIC, SCOPE_MEANINGS
from tests.conftest import PASSWORD, as_served, bearer_for, on_sqlite
from tests.fakes import FakeOpenAI
from tests.keys import bearer_of, new_key
from tests.log_rows import rows
from tests.openapi_document import ASKING, OPERATIONS, Operation

pytestmark = pytest.mark.slow

AREAS = {
    "/admin/": {"admin"},
    "/audit/": {"audit:read"},
    "/auth/": set(),  # one's own sign-in
    "/realtime/": {"mint"},
}
"""The scopes that everything below an address asks for, unless it is public."""

DEARER = {"startVerification": {"admin"}}
"""Operations that ask for another scope than their neighbours: this one costs processor time."""

MATRIX = [(operation, role) for operation in OPERATIONS.values() for role in (None, *SCOPES)]

KEYS = [["mint:on-behalf"], ["audit:read"], ["audit:read", "mint:on-behalf"]]
"""The scopes that a service key may have."""

BY_KEY = {"/audit/": "audit:read", "/realtime/": "mint:on-behalf"}
"""The scope that a service key needs below an address; elsewhere there is nothing for it."""


def areas_of(path: str) -> list[str]:
    return [area for area in AREAS if path.startswith(area)]


@pytest.mark.parametrize("operation", ASKING, ids=lambda operation: operation.id)
def test_an_operation_asks_for_the_scope_of_its_area(operation: Operation) -> None:
    [area] = areas_of(operation.path)

    assert set(operation.scopes) == DEARER.get(operation.id, AREAS[area])


def test_there_is_no_scope_that_only_roles_or_only_the_document_know() -> None:
    assert SCOPE_MEANINGS.keys() == frozenset[str]().union(*SCOPES.values())


def test_a_route_that_is_not_described_is_public_or_no_more_than_files() -> None:
    app = create_app(Settings(_env_file=None))
    described = {operation.path for operation in OPERATIONS.values()}

    routes = {
        context.path
        for context in iter_route_contexts(app.router.routes)
        if isinstance(context.original_route, APIRoute)
        and not is_page(str(context.path))  # tests/test_admin_sign_in.py asks for each
    }

    assert routes - described - {"/metrics"} <= PUBLIC  # it asks for a token of its own


@asynccontextmanager
async def client_of(runtime: Runtime) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(runtime.settings)
    transport = httpx.ASGITransport(as_served(app, runtime), client=("192.0.2.7", 4711))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        yield client


async def ask(
    client: httpx.AsyncClient, operation: Operation, headers: dict[str, str]
) -> httpx.Response:
    path = re.sub(r"{\w+}", "nothing", operation.path)
    return await client.request(operation.method, path, headers=headers)


@pytest.mark.parametrize(
    ("operation", "role"), MATRIX, ids=lambda part: getattr(part, "id", part) or "stranger"
)
async def test_a_role_reaches_what_its_scopes_are_for_and_nothing_else(
    operation: Operation, role: Role | None, runtime: Runtime, openai: FakeOpenAI
) -> None:
    headers = {}
    if role is not None:
        user = await runtime.users.add("x@example.com", role=role, password=PASSWORD, by=OPERATOR)
        headers = await bearer_for(runtime, user)
    before = len(await rows(runtime.database))

    async with client_of(runtime) as client:
        answer = await ask(client, operation, headers)

    left = (await rows(runtime.database))[before:]
    if operation.path in PUBLIC or (role and SCOPES[role].issuperset(operation.scopes)):
        assert answer.status_code not in {401, 403}
        return
    code = "insufficient_scope" if role else "unauthenticated"
    assert (answer.status_code, answer.json()["code"]) == (403 if role else 401, code)
    assert openai.requests == []
    assert [row["outcome"] for row in left] == (["denied"] if role else [])


@on_sqlite
@pytest.mark.parametrize("scopes", KEYS, ids="+".join)
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=lambda operation: operation.id)
async def test_a_service_key_reaches_what_its_scopes_are_for_and_nothing_else(
    operation: Operation, scopes: list[str], runtime: Runtime, openai: FakeOpenAI
) -> None:
    headers = bearer_of(await new_key(runtime, *scopes))
    before = len(await rows(runtime.database))

    async with client_of(runtime) as client:
        answer = await ask(client, operation, headers)

    left = (await rows(runtime.database))[before:]
    by_key = {} if operation.id in DEARER else BY_KEY
    needed = next((by_key.get(area) for area in areas_of(operation.path)), None)
    if operation.path in PUBLIC or needed in scopes:
        assert answer.status_code not in {401, 403}
        return
    assert (answer.status_code, answer.json()["code"]) == (403, "insufficient_scope")
    told = re.findall(r'scope="([^"]*)"', answer.headers["WWW-Authenticate"])
    assert told == [scope for scope in [needed or "".join(operation.scopes)] if scope]
    assert openai.requests == []
    assert [(row["action"], row["outcome"]) for row in left] == [("service_key.verify", "denied")]
