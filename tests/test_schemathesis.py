"""The OpenAPI document put into practice by somebody else: schemathesis asks whatever it allows.

And what it does not allow: wrong types, missing members, other methods and media types. Each answer
has to be one that the document knows, to the letter.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import positive_data_acceptance
from schemathesis.config import GenerationConfig, ProjectConfig, ProjectsConfig

from tests.openapi_document import openapi
from tests.service import Service, serving

pytestmark = pytest.mark.outside

PLENTY = 1_000_000
SETTINGS: dict[str, Any] = {
    "MINTS_PER_USER_PER_MINUTE": 20,  # lets some requests through, and is met then
    "SIGN_IN_FAILURES_PER_ACCOUNT": PLENTY,
    "SIGN_IN_FAILURES_PER_ADDRESS": PLENTY,
    "PASSWORD_CHECKS_PER_MINUTE": PLENTY,
    "BAD_CREDENTIALS_PER_ADDRESS_PER_MINUTE": PLENTY,
    "SIGN_INS_PER_ADDRESS_PER_MINUTE": PLENTY,
}

CALLERS = {
    "stranger": None,
    "user": "demo@example.com",
    "admin": "admin@example.com",
    "backend": "mint:on-behalf",
}

BEYOND_A_SCHEMA = [positive_data_acceptance]
"""No schema says which languages a model hears, nor which cursors we have handed out."""

FRAMING = {"connection", "content-length", "expect", "host", "te", "transfer-encoding", "upgrade"}
"""Headers that say where a request ends and to whom it goes. The document tells of requests that
can be read; those that cannot are in `tests/test_hostile.py`."""

MET = {
    "/admin/api/keys": {200, 401, 403, 415, 422},
    "/audit/events": {200, 400, 401, 403, 422},
    "/auth/token": {200, 400, 415},
    "/realtime/token": {200, 401, 404, 415, 422, 429},
}
"""Answers of some operations; without these the tests would be less than they say."""

generation = GenerationConfig(max_examples=60)  # for each operation and caller
config = schemathesis.Config(
    seed=1, projects=ProjectsConfig(default=ProjectConfig(generation=generation))
)
schema = schemathesis.openapi.from_dict(deepcopy(openapi()), config=config)


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, database_settings: dict[str, Any]
) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("schemathesis")
    with serving(folder, **SETTINGS | database_settings) as service:
        yield service


@pytest.fixture(params=CALLERS)
def credential(request: pytest.FixtureRequest, service: Service) -> dict[str, str]:
    """The header of a caller who has just signed in, or got a key; a stranger has none."""
    who = CALLERS[request.param]
    if request.param == "backend":
        made = service.run("keys", "create", request.param, "--scope", who or "")
        return {"Authorization": f"Bearer {made.stdout.strip()}"}
    return service.sign_in(who, service.password_of(who)) if who else {}


@schema.parametrize()
@settings(suppress_health_check=[*HealthCheck])  # one sign-in for all examples is what is meant
def test_whatever_is_asked_the_answer_is_one_that_is_described(
    case: schemathesis.Case[Any], service: Service, credential: dict[str, str]
) -> None:
    for name in FRAMING & {name.lower() for name in case.headers or ()}:
        del case.headers[name]
    case.call_and_validate(
        base_url=service.url, headers=credential, excluded_checks=BEYOND_A_SCHEMA
    )


def test_after_all_that_much_has_been_met_and_nothing_has_failed(service: Service) -> None:
    lines = [json.loads(line) for line in service.stdout.read_text().splitlines()]
    met = defaultdict[str, set[int]](set)
    for line in lines:
        if line["event"] == "request":
            met[line["path"]].add(line["status"])
    verified = service.run("audit", "verify")

    assert [line for line in lines if line["level"] not in {"info", "warning"}] == []
    assert verified.returncode == 0, verified.stdout
    assert {path: missing for path in MET if (missing := MET[path] - met[path])} == {}
