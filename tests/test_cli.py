"""The operator's commands, as processes of their own."""

import json
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app import __version__
from tests.service import Service, environment, free_port, run_command, serving

pytestmark = pytest.mark.outside

PASSWORD = "correct horse battery staple"


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, database_settings: dict[str, Any]
) -> Iterator[Service]:
    """One sandbox that the commands of this module run beside."""
    with serving(tmp_path_factory.mktemp("beside"), **database_settings) as service:
        yield service


def said(result: subprocess.CompletedProcess[str]) -> str:
    """Return the single line with which a command failed."""
    assert result.returncode == 1
    [line] = result.stderr.splitlines()
    assert "Traceback" not in line
    return line


def test_users_are_managed_beside_a_running_service(service: Service) -> None:
    added = service.run("users", "add", "Ada@example.com", "--password-stdin", stdin=PASSWORD)
    assert added.stdout.startswith("usr_")
    again = service.run("users", "add", "ada@example.com", "--password-stdin", stdin=PASSWORD)
    assert "exists already" in said(again)
    short = service.run("users", "add", "bob@example.com", "--password-stdin", stdin="short\n")
    assert "password needs at least 15 characters" in said(short)
    unknown = service.run("users", "disable", "nobody@example.com")
    assert "see: realtime-tokens users list" in said(unknown)
    headers = service.sign_in("ada@example.com", PASSWORD)
    assert httpx.post(f"{service.url}/realtime/token", headers=headers).status_code == 200

    ada = service.run("users", "disable", "ada@example.com")
    assert ada.returncode == 0
    again = service.run("users", "disable", ada.stdout.split()[0])  # as logs and lists name her
    assert (again.returncode, again.stdout) == (0, ada.stdout)

    refused = httpx.post(f"{service.url}/realtime/token", headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (403, "user_disabled")
    assert service.run("users", "enable", "ada@example.com").returncode == 0
    other = "another long enough password"
    changed = service.run(
        "users", "set-password", "ada@example.com", "--password-stdin", stdin=other
    )
    assert changed.returncode == 0
    service.sign_in("ada@example.com", other)
    listed = service.run("users", "list").stdout
    assert "ada@example.com" in listed
    assert "admin@example.com" in listed


def test_a_token_is_minted_for_a_user_and_the_log_tells_of_it(service: Service) -> None:
    minted = service.run("token", "demo@example.com")

    body = json.loads(minted.stdout)
    assert body["token"].startswith("ek_sandbox_")
    listed = service.run("audit", "list", "--outcome", "issued").stdout
    assert "client_secret.mint" in listed
    unknown = service.run("token", "demo@example.com", "--profile", "nope")
    assert "There are: default" in said(unknown)


def test_keys_are_managed_beside_a_running_service(service: Service) -> None:
    made = service.run("keys", "create", "shop backend", "--profile", "default", "--days", "10")
    old, old_id = made.stdout.strip(), made.stderr.split()[0]
    assert made.stdout.count("\n") == 1  # good for a pipe

    def mint(key: str) -> httpx.Response:
        shown = {"Authorization": f"Bearer {key}"}
        return httpx.post(f"{service.url}/realtime/token", headers=shown, json={"user": "17"})

    assert mint(old).status_code == 200
    assert old_id in service.run("check").stdout  # it ends soon
    [listed] = [line for line in service.run("keys", "list").stdout.splitlines() if old_id in line]
    assert "ends in 9 days" in listed
    rotated = service.run("keys", "rotate", old_id, "--overlap-hours", "1")
    new, new_id = rotated.stdout.strip(), rotated.stderr.split()[0]
    assert (mint(old).status_code, mint(new).status_code) == (200, 200)
    assert f"replaced by {new_id}" in service.run("keys", "list").stdout
    assert old_id not in service.run("check").stdout

    assert service.run("keys", "revoke", old_id).stdout == f"{old_id} is revoked\n"

    assert (mint(old).status_code, mint(new).status_code) == (401, 200)
    everything = service.run("keys", "list").stdout + service.run("audit", "list").stdout
    assert "revoked" in everything
    assert "rtk_" not in everything
    assert "rtk_" not in service.stdout.read_text() + service.banner
    found = service.run("audit", "list", "--end-user", "17", "--outcome", "issued").stdout
    assert (found.count(old_id), found.count(new_id)) == (2, 2)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["create", "x", "--scope", "admin"], "scopes must be one or more of mint:on-behalf"),
        (["create", "x", "--profile", "nope"], "profiles must be 1 to 64 of default"),
        (["create", "x", "--days", "0"], "lifetimeDays must be 1 to 366"),
        (["create", ""], "name must have 1 to 64 characters"),
        (["revoke", "key_nope"], "There is no service key with this id."),
        (["rotate", "key_nope"], "There is no service key with this id."),
    ],
)
def test_a_key_that_cannot_be_ends_with_a_line(
    service: Service, arguments: list[str], told: str
) -> None:
    refused = service.run("keys", *arguments)

    assert told in said(refused)
    assert refused.stdout == ""


def test_a_start_mentions_the_keys_that_end_soon(tmp_path: Path) -> None:
    run_command(tmp_path, "migrate")
    made = run_command(tmp_path, "keys", "create", "shop backend", "--days", "3")
    key_id = made.stderr.split()[0]

    with serving(tmp_path) as service:
        assert f"Note: the service key {key_id} (shop backend) ends on" in service.banner


def test_check_looks_at_no_database_where_there_is_none(tmp_path: Path) -> None:
    checked = run_command(tmp_path, "check")

    assert checked.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_check_says_that_a_database_is_not_migrated(tmp_path: Path) -> None:
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "sandbox.db").touch()

    checked = run_command(tmp_path, "check")

    assert "note: " in checked.stdout
    assert "run: realtime-tokens migrate" in checked.stdout
    assert checked.stdout.splitlines()[-1] == "ok"


def test_a_leaked_token_is_traced_to_whom_it_was_given(service: Service) -> None:
    headers = service.sign_in("demo@example.com", service.password_of("demo@example.com"))
    answers = [httpx.post(f"{service.url}/realtime/token", headers=headers) for _ in range(2)]
    leaked = answers[0].json()

    traced = service.run("audit", "trace", stdin=f"{leaked['token']}\n")

    found = json.loads(traced.stdout)
    assert (found["event"]["attemptId"], found["event"]["outcome"]) == (leaked["id"], "issued")
    assert found["attempt"][0]["ip"] == "127.0.0.1"
    assert leaked["token"] not in traced.stdout
    unknown = service.run("audit", "trace", stdin="ek_sandbox_0123456789abcdef")
    assert "No row has this token" in said(unknown)


def test_the_log_is_verified_beside_a_running_service(service: Service) -> None:
    verified = service.run("audit", "verify")

    assert verified.returncode == 0
    assert "the chain is whole" in verified.stdout


def test_an_edited_row_is_named(tmp_path: Path) -> None:
    run_command(tmp_path, "migrate")
    for name in ("a", "b", "c"):
        run_command(
            tmp_path, "users", "add", f"{name}@example.com", "--password-stdin", stdin=PASSWORD
        )
    connection = sqlite3.connect(tmp_path / "var" / "sandbox.db")
    connection.execute("DROP TRIGGER audit_events_no_update")
    connection.execute("UPDATE audit_events SET canon = replace(canon, 'user', 'root') WHERE seq=2")
    connection.commit()
    connection.close()

    result = run_command(tmp_path, "audit", "verify")

    assert result.returncode == 1
    assert "row 2: changed" in result.stdout
    assert "1 fault in 3 rows" in result.stderr


def test_check_says_ok_and_online_that_the_key_works(service: Service) -> None:
    assert service.run("check").stdout.splitlines()[-1] == "ok"

    online = service.run("check", "--online")

    assert online.returncode == 0, online.stderr
    assert "the key works" in online.stdout


def test_check_has_a_line_for_each_fault(tmp_path: Path) -> None:
    faulty = '[profiles.a]\nmodle = "mini"\n[profiles.b]\nvoice = "darth"\n'
    (tmp_path / "profiles.toml").write_text(faulty)

    result = run_command(tmp_path, "check", PROFILES_FILE="profiles.toml")

    assert result.returncode == 1
    lines = result.stderr.splitlines()
    assert len(lines) == 2
    assert any("profiles.a.modle" in line and "model" in line for line in lines)
    assert any("profiles.b.voice" in line for line in lines)


def test_the_openapi_document_is_printed_without_a_database(tmp_path: Path) -> None:
    printed = run_command(tmp_path, "openapi")

    assert "/realtime/token" in json.loads(printed.stdout)["paths"]
    assert list(tmp_path.iterdir()) == []


def test_the_version_is_printed(tmp_path: Path) -> None:
    assert run_command(tmp_path, "version").stdout.strip() == __version__


# Starts that end with one line --------------------------------------------------------------


def test_an_unmigrated_database_ends_with_a_line(tmp_path: Path) -> None:
    assert "run: realtime-tokens migrate" in said(run_command(tmp_path, "serve"))
    assert "run: realtime-tokens migrate" in said(run_command(tmp_path, "users", "list"))


def test_a_taken_port_ends_with_a_line(tmp_path: Path) -> None:
    run_command(tmp_path, "migrate")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        line = said(run_command(tmp_path, "serve", PORT=port))

    assert f"127.0.0.1:{port} cannot be used" in line
    assert "set another PORT" in line


def test_a_second_service_on_one_file_ends_with_a_line(tmp_path: Path) -> None:
    with serving(tmp_path):
        line = said(run_command(tmp_path, "serve", PORT=free_port()))

    assert "another service already runs on" in line


def test_a_key_with_a_newline_ends_with_a_line_and_is_not_shown(tmp_path: Path) -> None:
    line = said(run_command(tmp_path, "serve", OPENAI_API_KEY="sk-canary\n"))

    assert "OPENAI_API_KEY: holds a space, newline or control character" in line
    assert "canary" not in line


def test_production_refuses_the_sandbox(tmp_path: Path) -> None:
    line = said(run_command(tmp_path, "serve", APP_ENV="production"))

    assert "OPENAI_API_KEY is not set" in line


def test_a_database_of_the_sandbox_does_not_serve_live(tmp_path: Path) -> None:
    run_command(tmp_path, "migrate")
    (tmp_path / "var" / "sandbox.db").rename(tmp_path / "var" / "service.db")

    line = said(run_command(tmp_path, "serve", OPENAI_API_KEY="sk-x"))

    assert "belongs to the sandbox environment" in line


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a migrated database for a real key."""
    folder = tmp_path_factory.mktemp("migrated")
    assert run_command(folder, "migrate", OPENAI_API_KEY="sk-x").returncode == 0
    return folder


@pytest.mark.parametrize("command", [["serve"], ["check", "--online"]])
def test_a_proxy_that_does_not_speak_http_ends_with_a_line(
    migrated: Path, command: list[str]
) -> None:
    line = said(
        run_command(
            migrated,
            *command,
            OPENAI_API_KEY="sk-x",
            PORT=free_port(),
            HTTPS_PROXY="socks5://canary@127.0.0.1:1",
        )
    )

    assert "HTTPS_PROXY: must be an http:// or https:// address" in line
    assert "canary" not in line


@pytest.mark.parametrize("content", [None, "no certificate\n"])
def test_certificates_that_cannot_be_read_end_with_a_line(
    migrated: Path, content: str | None
) -> None:
    roots = migrated / "roots.pem"
    roots.unlink(missing_ok=True)
    if content is not None:
        roots.write_text(content)

    line = said(
        run_command(migrated, "serve", OPENAI_API_KEY="sk-x", PORT=free_port(), SSL_CERT_FILE=roots)
    )

    assert "SSL_CERT_FILE: has no certificates to read" in line


@pytest.mark.parametrize("content", [b"", b"short\n", b"\xff" * 31])
def test_a_short_secret_ends_with_a_line_and_is_not_shown(migrated: Path, content: bytes) -> None:
    (migrated / "var" / "secret.key").write_bytes(content)

    line = said(run_command(migrated, "serve", OPENAI_API_KEY="sk-x", PORT=free_port()))

    assert line.endswith("var/secret.key must hold at least 32 characters")
    (migrated / "var" / "secret.key").unlink()


def test_an_env_file_in_another_encoding_ends_with_a_line(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes("OPENAI_PROJECT_ID=bücher".encode("latin-1"))

    assert said(run_command(tmp_path, "check")).endswith(".env: is not text in UTF-8")


def test_an_empty_key_file_ends_with_a_line(tmp_path: Path) -> None:
    (tmp_path / "key").touch()

    line = said(run_command(tmp_path, "check", OPENAI_API_KEY_FILE="key"))

    assert line.endswith("OPENAI_API_KEY_FILE: key is empty")


def test_what_is_no_database_ends_with_a_line(tmp_path: Path) -> None:
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "sandbox.db").write_text("no database")

    migrating = said(run_command(tmp_path, "migrate"))
    serving_it = said(run_command(tmp_path, "serve", PORT=free_port()))

    assert "var/sandbox.db cannot be migrated: file is not a database" in migrating
    assert "var/sandbox.db cannot be read: file is not a database" in serving_it


def test_a_database_of_a_newer_release_ends_with_a_line(tmp_path: Path) -> None:
    run_command(tmp_path, "migrate")
    connection = sqlite3.connect(tmp_path / "var" / "sandbox.db")
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    connection.close()

    assert "made by a newer release" in said(run_command(tmp_path, "migrate"))
    assert "made by a newer release" in said(run_command(tmp_path, "serve", PORT=free_port()))


def test_a_token_for_a_disabled_user_ends_with_a_line(service: Service) -> None:
    service.run("users", "add", "eve@example.com", "--password-stdin", stdin=PASSWORD)
    service.run("users", "disable", "eve@example.com")

    refused = service.run("token", "eve@example.com")

    assert "The account is disabled" in said(refused)
    assert refused.stdout == ""


@pytest.mark.parametrize(
    "command", [["token", "eve@example.com"], ["check", "--online"], ["models", "--refresh"]]
)
def test_a_sandbox_that_does_not_run_is_told_to_be_started(
    tmp_path: Path, command: list[str]
) -> None:
    run_command(tmp_path, "migrate", "--quiet")
    run_command(tmp_path, "users", "add", "eve@example.com", "--password-stdin", stdin=PASSWORD)

    refused = run_command(tmp_path, *command, PORT=free_port())

    assert refused.returncode == 1
    assert "start that first: make run" in refused.stderr


def test_a_missing_module_ends_with_a_line(tmp_path: Path) -> None:
    (tmp_path / "uvicorn.py").write_text("raise ModuleNotFoundError(name='uvicorn')")

    result = subprocess.run(
        [sys.executable, "-m", "app", "serve"],
        cwd=tmp_path,
        env=environment(PYTHONPATH=tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert "The Python module uvicorn is missing" in said(result)


def test_a_real_key_makes_nobody_and_says_how_to_make_the_first_admin(tmp_path: Path) -> None:
    with serving(tmp_path, OPENAI_API_KEY="sk-x") as service:
        assert "users add YOU@EXAMPLE.COM --role admin" in service.banner
        assert "SANDBOX" not in service.banner
        assert "password" not in service.banner
        assert "example.com" not in service.run("users", "list").stdout


def test_a_second_start_keeps_the_data_and_shows_no_password_again(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        password = service.password_of("demo@example.com")
        service.sign_in("demo@example.com", password)
    first = (tmp_path / "stderr.log").read_text()

    with serving(tmp_path) as service:
        second = service.banner.removeprefix(first)
        assert "shown this once" not in second
        assert "curl -sS -X POST" in second
        for path in ("/admin", "/docs", "/readyz"):
            assert f"{service.url}{path}\n" in second
            assert httpx.get(service.url + path, follow_redirects=True).status_code == 200
        service.sign_in("demo@example.com", password)


def test_retired_models_in_the_settings_are_named_at_the_start(tmp_path: Path) -> None:
    old = "gpt-realtime-mini-2025-10-06"
    with serving(tmp_path, OPENAI_REALTIME_MODEL=old, OPENAI_REALTIME_TEMPERATURE="0.8") as service:
        assert old in service.banner
        assert "OPENAI_REALTIME_TEMPERATURE" in service.banner
