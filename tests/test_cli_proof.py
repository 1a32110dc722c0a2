"""The commands that prove the log and take something out of it, as an operator runs them."""

import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service import Service, run_command, serving

pytestmark = pytest.mark.outside

DEMO = "demo@example.com"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("proof")) as service:
        yield service


def said(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_an_auditor_needs_the_file_and_the_key_and_nothing_else(
    service: Service, tmp_path: Path
) -> None:
    (tmp_path / "key.pem").write_text(said(service.run("audit", "public-key")))
    said(service.run("audit", "export", "--to", str(tmp_path / "log.jsonl")))

    verified = said(run_command(tmp_path, "audit", "verify", "log.jsonl", "--key", "key.pem"))

    assert "the chain is whole" in verified
    assert {path.name for path in tmp_path.iterdir()} == {"key.pem", "log.jsonl"}  # and no folder
    edited = (tmp_path / "log.jsonl").read_text().replace("operator", "nobody--", 1)
    (tmp_path / "edited.jsonl").write_text(edited)
    refused = run_command(tmp_path, "audit", "verify", "edited.jsonl", "--key", "key.pem")
    assert refused.returncode == 1
    assert "row 1: changed" in refused.stdout
    assert "tampered with" in refused.stderr


def test_a_file_needs_its_key(service: Service, tmp_path: Path) -> None:
    said(service.run("audit", "export", "--to", str(tmp_path / "log.jsonl")))

    refused = run_command(tmp_path, "audit", "verify", "log.jsonl")
    assert "verified with the one --key" in refused.stderr

    (tmp_path / "key.pem").write_text("no key")
    refused = run_command(tmp_path, "audit", "verify", "log.jsonl", "--key", "key.pem")
    assert refused.returncode == 1
    assert "key.pem holds no public key" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("export", "--from-seq", str(2**63)), "Invalid value for '--from-seq'"),
        (("export", "--to", ""), "is a folder; name a new file in it"),
        (("list", "--actor", "\udcff"), "an argument holds bytes that are not UTF-8"),
    ],
)
def test_an_argument_that_cannot_be_ends_with_a_line(
    service: Service, arguments: tuple[str, ...], line: str
) -> None:
    refused = service.run("audit", *arguments)

    assert refused.returncode != 0
    assert line in refused.stderr
    assert "Traceback" not in refused.stderr


def test_an_export_to_stdout_is_the_file_alone(service: Service, tmp_path: Path) -> None:
    exported = service.run("audit", "export", "--from-seq", "2")

    lines = said(exported).splitlines()
    assert all(line.startswith(('{"seq":', '{"checkpoint":')) for line in lines)
    assert "rows 2 to" in exported.stderr


def test_an_export_replaces_no_file(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("kept")

    refused = service.run("audit", "export", "--to", str(path))

    assert refused.returncode == 1
    assert path.read_text() == "kept"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["prune", "--before", "yesterday"], "must be a day such as"),
        (["prune", "--before", "2999-01-01"], "last 24 hours stay"),
        (["prune", "--before", "3"], "last 24 hours stay"),
        (["export", "--from-seq", "999999"], "no row 999998"),
        (["erase", "nobody@example.com"], "nobody of this name"),
        (["erase"], "name one person"),
        (["accept-rollback", "--reason", ""], "must have 1 to 200"),
    ],
)
def test_what_cannot_be_done_ends_with_a_line(
    service: Service, arguments: list[str], reason: str
) -> None:
    refused = service.run("audit", *arguments)

    assert refused.returncode == 1
    assert reason in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_user_is_erased_beside_a_running_service(service: Service) -> None:
    said(
        service.run(
            "users",
            "add",
            "eve@example.com",
            "--password-stdin",
            stdin="violin harbour seventeen plums",
        )
    )
    service.sign_in("eve@example.com", "violin harbour seventeen plums")

    erased = said(service.run("audit", "erase", "eve@example.com"))

    assert "is erased; 1 rows" in erased
    assert "eve@example.com" not in said(service.run("users", "list"))
    assert "the chain is whole" in said(service.run("audit", "verify"))


def test_a_file_of_checkpoints_that_ends_with_something_else_is_named(tmp_path: Path) -> None:
    said(run_command(tmp_path, "migrate", "--quiet"))
    (tmp_path / "var" / "sandbox-checkpoints.jsonl").write_text("no checkpoint\n")

    refused = run_command(tmp_path, "audit", "accept-rollback", "--reason", "the disk was lost")

    assert refused.returncode == 1
    assert "var/sandbox-checkpoints.jsonl is not JSON; move the file away" in refused.stderr


def test_a_restored_backup_serves_nothing_until_it_is_accepted(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        backup = sqlite3.connect(tmp_path / "backup.db")
        source = sqlite3.connect(tmp_path / "var" / "sandbox.db")
        source.backup(backup)
        backup.close()
        source.close()
        service.run("token", DEMO)
    database = tmp_path / "var" / "sandbox.db"
    for suffix in ("", "-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
    (tmp_path / "backup.db").rename(database)

    verified = run_command(tmp_path, "audit", "verify")
    assert verified.returncode == 1
    assert "missing" in verified.stdout
    refused = run_command(tmp_path, "users", "disable", DEMO)
    assert refused.returncode == 1
    assert "accept-rollback" in refused.stderr

    accepted = run_command(tmp_path, "audit", "accept-rollback", "--reason", "the disk was lost")

    assert "the log goes on behind row" in said(accepted)
    with serving(tmp_path, migrate=False) as service:
        assert "is disabled" in said(service.run("users", "disable", DEMO))
        assert "the chain is whole" in said(service.run("audit", "verify"))
