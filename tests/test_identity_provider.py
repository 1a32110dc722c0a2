"""A real service behind a real issuer: who signed in there mints here, until disabled here."""

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.oidc_provider import Provider, SigningKey, in_toml, providing
from tests.service import Service, run_command, serving
from tests.upstreams import http
from tests.waiting import until

pytestmark = pytest.mark.outside

FILE = "issuers.toml"


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    async with providing() as provider:
        yield provider


async def mint(service: Service, token: str) -> httpx.Response:
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {token}"}) as client:
        return await client.post(f"{service.url}/realtime/token")


async def test_somebody_of_an_issuer_mints_until_they_are_disabled(
    tmp_path: Path, provider: Provider
) -> None:
    (tmp_path / FILE).write_text(in_toml([provider.table(jwks_uri=f"{provider.url}/jwks")]))
    with serving(tmp_path, ISSUERS_FILE=FILE) as service:
        # The keys come without a token that asks for them.
        async def fetched() -> bool:
            return provider.fetches == 1

        await until(fetched)
        minted = await mint(service, provider.token())
        provider.keys.append(SigningKey())
        rotated = await mint(service, provider.token())
        other = await mint(service, provider.token(sub="other"))
        listed = service.run("users", "list").stdout
        [line] = [line for line in listed.splitlines() if "their-user-17" in line]
        user_id = line.split()[0]

        disabled = service.run("users", "disable", user_id)
        refused = await mint(service, provider.token())
        again = await mint(service, provider.token(sub="other"))
        service.run("users", "enable", user_id)
        welcome = await mint(service, provider.token())
        log = service.stdout.read_text()

    assert [answer.status_code for answer in (minted, rotated, other, again, welcome)] == [200] * 5
    assert provider.url in line
    assert disabled.stdout.strip() == f"{user_id} is disabled"
    assert (refused.status_code, refused.json()["code"]) == (403, "user_disabled")
    assert provider.fetches == 2
    rows = sqlite3.connect(tmp_path / "var" / "sandbox.db").execute(
        "SELECT action, outcome, actor, target FROM audit_events WHERE action LIKE 'user.%'"
    )
    acts = [row for row in rows if user_id in row]
    assert acts == [
        ("user.create", "succeeded", user_id, None),
        ("user.disable", "succeeded", "operator", user_id),
        ("user.enable", "succeeded", "operator", user_id),
    ]
    assert "Traceback" not in log
    assert provider.token()[:40] not in log


async def test_the_service_starts_while_an_issuer_is_away(
    tmp_path: Path, provider: Provider
) -> None:
    async def away() -> bytes:
        return http(503, b"")

    provider.answer = away
    (tmp_path / FILE).write_text(in_toml([provider.table()]))
    with serving(tmp_path, ISSUERS_FILE=FILE) as service:
        refused = await mint(service, provider.token())
        own = service.sign_in("demo@example.com", service.password_of("demo@example.com"))
        minted = await mint(service, own["Authorization"].removeprefix("Bearer "))

    assert (refused.status_code, refused.json()["code"]) == (503, "issuer_unavailable")
    assert minted.status_code == 200


def test_wrong_issuers_end_the_start_with_a_line_for_each(tmp_path: Path) -> None:
    run_command(tmp_path, "migrate")
    presets = "supabase:https://x.supabase.co okta:x"

    for command in ("serve", "check"):
        result = run_command(tmp_path, command, ISSUERS=presets)

        assert result.returncode == 1
        first, second = result.stderr.splitlines()
        assert "ISSUERS: supabase:https://x.supabase.co: must have the form" in first
        assert "ISSUERS: okta:x: is no preset" in second


def test_check_tells_whether_the_keys_can_be_had(tmp_path: Path) -> None:
    with serving(tmp_path) as service:  # its own keys are a key set like any other
        good = {
            "issuer": "http://localhost:1/",
            "jwks_uri": f"{service.url}/.well-known/jwks.json",
            "algorithms": ["ES256"],
            "audiences": ["x"],
        }
        away = good | {"issuer": "http://localhost:2/", "jwks_uri": "http://127.0.0.1:9/"}
        (tmp_path / FILE).write_text(in_toml([good, away]))

        offline = run_command(tmp_path, "check", **service.settings, ISSUERS_FILE=FILE)
        online = run_command(tmp_path, "check", "--online", **service.settings, ISSUERS_FILE=FILE)

    assert offline.stdout.splitlines()[-1] == "ok"
    assert online.returncode == 1
    assert "the keys of http://localhost:1/ are there" in online.stdout
    assert "the keys of http://localhost:2/: http://127.0.0.1:9/ cannot be rea" in online.stderr
