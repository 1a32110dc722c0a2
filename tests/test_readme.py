"""The README is read like code: what it promises is there."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic_core import PydanticUndefined
from typer.main import get_command

from app.cli import app
from app.settings import SECRETS, Settings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def shown(default: Any) -> str:
    """Return a default as the table writes it."""
    if default in (None, "", ()) or default is PydanticUndefined:
        return ""
    return f"`{default}`"


def table() -> list[str]:
    return [
        f"| `{name.upper()}` | {shown(field.default)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]


def test_the_settings_table_is_the_settings() -> None:
    rows = re.findall(r"^\| `[A-Z_]+` \|.*$", README, flags=re.MULTILINE)

    assert rows == table()


def test_the_example_file_names_every_setting() -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    named = [line.removeprefix("#").partition("=")[0] for line in lines if "=" in line]

    assert named == [name.upper() for name in Settings.model_fields]


def test_the_secrets_are_the_secret_settings() -> None:
    secret = {n for n, f in Settings.model_fields.items() if "SecretStr" in str(f.annotation)}

    named = {"openai_api_key", "database_url", "redis_url", "secret_key", "metrics_token"}
    assert set(SECRETS) == secret == named


def commands(group: Any, prefix: str = "") -> set[str]:
    """Return every command below *group*, in full."""
    found: set[str] = set()
    for name, command in group.commands.items():
        inner = hasattr(command, "commands")
        found |= commands(command, f"{prefix}{name} ") if inner else {prefix + name}
    return found


def documented_commands() -> set[str]:
    """Return every command that the README's table lists; `users list`, `disable` share one."""
    table = README.split("## Commands")[1].split("\n## ")[0]
    found = set()
    for row in re.findall(r"^\| (`.+`) \|", table, flags=re.MULTILINE):
        group = ""
        for quoted in re.findall(r"`([^`]+)`", row):
            words = [word for word in quoted.split() if re.fullmatch(r"[a-z][a-z-]*", word)]
            group = words[0] + " " if len(words) > 1 else group
            found.add(group + words[-1])
    return found


def test_the_commands_are_those_of_the_readme() -> None:
    assert documented_commands() == commands(get_command(app))


def test_every_command_that_the_readme_shows_exists() -> None:
    shown = set(re.findall(r"realtime-tokens ((?:users |audit |keys )?[a-z-]+)", README))

    assert shown <= commands(get_command(app))


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_every_link_leads_somewhere(path: str) -> None:
    assert path.startswith("http") or (ROOT / path).exists()


def test_the_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()

    for target in re.findall(r"^make ([a-z]+)$|`make ([a-z]+)`", README, flags=re.MULTILINE):
        assert re.search(rf"^{''.join(target)}:", makefile, flags=re.MULTILINE), target
