"""What a secret is worth once it has leaked, and that the steps of docs/security.md end it."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service import Service, free_port, run_command, serving
from tests.upstream import playing_openai

pytestmark = pytest.mark.outside

OLD_KEY, NEW_KEY = "sk-proj-old-0123456789abcdef", "sk-proj-new-0123456789abcdef"
OLD_SECRET, NEW_SECRET = "0123456789abcdef" * 4, "fedcba9876543210" * 4
EMAIL, PASSWORD = "ada@example.com", "correct horse battery staple"


def sign_in(service: Service, form: dict[str, str]) -> httpx.Response:
    return httpx.post(f"{service.url}/auth/token", data=form)


def with_password(service: Service) -> dict[str, Any]:
    """Return the tokens of Ada, whose account is made."""
    added = service.run("users", "add", EMAIL, "--password-stdin", stdin=PASSWORD)
    assert added.returncode == 0, added.stderr
    form = {"grant_type": "password", "username": EMAIL, "password": PASSWORD}
    granted: dict[str, Any] = sign_in(service, form).json()
    return granted


def mint(service: Service, bearer: str, **wish: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {bearer}"}
    return httpx.post(f"{service.url}/realtime/token", headers=headers, json=wish)


async def test_a_leaked_api_key_is_not_used_any_more_once_it_is_changed(tmp_path: Path) -> None:
    async with playing_openai() as upstream:
        settings: dict[str, Any] = {"OPENAI_BASE_URL": upstream.url, "PORT": free_port()}
        with serving(tmp_path, OPENAI_API_KEY=OLD_KEY, **settings) as service:
            bearer = with_password(service)["access_token"]
            await asyncio.to_thread(mint, service, bearer)  # the upstream needs our loop
        with serving(tmp_path, OPENAI_API_KEY=OLD_KEY, MINTING="off", **settings) as service:
            off = mint(service, bearer)
        with serving(tmp_path, OPENAI_API_KEY=NEW_KEY, **settings) as service:
            on = await asyncio.to_thread(mint, service, bearer)

    assert (off.status_code, off.json()["code"]) == (503, "minting_off")
    assert on.status_code == 200
    assert upstream.keys == [OLD_KEY, NEW_KEY]


def test_another_secret_key_ends_access_tokens_and_nothing_else_that_one_holds(
    tmp_path: Path,
) -> None:
    settings: dict[str, Any] = {"PORT": free_port()}
    with serving(tmp_path, SECRET_KEY=OLD_SECRET, **settings) as service:
        granted = with_password(service)
        key = service.run("keys", "create", "a backend").stdout.strip()
        token = mint(service, granted["access_token"]).json()["token"]
        assert mint(service, key, user="17").status_code == 200
        assert service.run("audit", "trace", stdin=token).returncode == 0
        old_key = tmp_path / "old.pem"
        old_key.write_text(service.run("audit", "public-key").stdout)

    with serving(tmp_path, SECRET_KEY=NEW_SECRET, **settings) as service:
        assert mint(service, granted["access_token"]).status_code == 401
        form = {"grant_type": "refresh_token", "refresh_token": granted["refresh_token"]}
        renewed = sign_in(service, form).json()
        assert mint(service, renewed["access_token"]).status_code == 200
        assert mint(service, key, user="17").status_code == 200
        assert "another SECRET_KEY" in service.run("audit", "trace", stdin=token).stderr
        older = run_command(tmp_path, "audit", "trace", stdin=token, SECRET_KEY=OLD_SECRET)
        assert older.returncode == 0
        without_old_key = service.run("audit", "verify").stdout
        assert "signed by a key that is not known here" in without_old_key
        assert "--key FILE" in without_old_key
        with_old_key = service.run("audit", "verify", "--key", str(old_key))
        assert "the chain is whole" in with_old_key.stdout
        service.run("audit", "accept-rollback", "--reason", "new SECRET_KEY")
        assert "the chain is whole" in service.run("audit", "verify").stdout


async def test_what_the_sandbox_gave_out_is_worth_nothing_with_a_real_key(tmp_path: Path) -> None:
    port = free_port()  # the same public URL, and the same secret.key
    with serving(tmp_path, PORT=port) as service:
        granted = with_password(service)
        key = service.run("keys", "create", "a backend").stdout.strip()
        assert mint(service, granted["access_token"]).status_code == 200

    async with playing_openai() as upstream:
        live: dict[str, Any] = {"OPENAI_API_KEY": NEW_KEY, "OPENAI_BASE_URL": upstream.url}
        with serving(tmp_path, PORT=port, **live) as service:
            assert mint(service, granted["access_token"]).status_code == 401
            assert mint(service, key, user="17").status_code == 401
            form = {"grant_type": "refresh_token", "refresh_token": granted["refresh_token"]}
            assert sign_in(service, form).status_code == 400

    assert upstream.asked == []


def test_what_lies_in_data_dir_is_for_its_owner_alone(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        with_password(service)
        folder = tmp_path / "var"
        open_to_others = [
            str(path) for path in (folder, *folder.iterdir()) if path.stat().st_mode & 0o077
        ]

    assert {"sandbox.db", "secret.key"} <= {path.name for path in folder.iterdir()}
    assert open_to_others == []
