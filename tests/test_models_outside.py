"""A real service, and OpenAI played beside it, whose models change between two looks."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service import Service, run_command, serving
from tests.stage import TOKEN, stage
from tests.waiting import until

pytestmark = pytest.mark.outside

MINI, TRANSCRIBER = "gpt-realtime-2.1-mini", "gpt-4o-mini-transcribe"
ADMIN, PASSWORD = "root@example.com", "correct horse battery staple"
FAR = "2030-03-31"


async def run(service: Service, *arguments: str) -> str:
    """Run a command beside the upstream, which this very process plays."""
    ended = await asyncio.to_thread(service.run, *arguments)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def line_of(printed: str, model: str) -> list[str]:
    [line] = [line for line in printed.splitlines() if line.split()[:1] == [model]]
    return line.split()


async def ends(client: httpx.AsyncClient, service: Service) -> dict[str, str | None]:
    answer = await client.get(f"{service.url}/realtime/models")
    return {model["id"]: model["sunset"] for model in answer.json()["models"]}


async def test_a_day_that_openai_moves_reaches_everybody_without_a_restart(
    tmp_path: Path, database_settings: dict[str, Any]
) -> None:
    async with stage(tmp_path, **database_settings) as one:
        with one.serving() as service:
            one.upstream.models = [
                {"id": MINI, "shutdown_date": None},
                {"id": TRANSCRIBER, "shutdown_date": "2027-02-26"},
            ]
            service.run(
                "users", "add", ADMIN, "--role", "admin", "--password-stdin", stdin=PASSWORD
            )
            async with httpx.AsyncClient(headers=service.sign_in(ADMIN, PASSWORD)) as client:
                first = await client.post(f"{service.url}/admin/api/models/refresh")
                before = await ends(client, service)
                one.upstream.models = [
                    {"id": MINI, "shutdown_date": FAR},
                    {"id": "gpt-realtime-3-mini", "shutdown_date": None},
                ]
                # Another process looks; the service finds out by itself.
                printed = await run(service, "models", "--refresh")

                async def known() -> bool:
                    return (await ends(client, service))[MINI] == FAR

                await until(known, seconds=20)
                minted = (await client.post(service.url + TOKEN)).json()
                told = (await client.get(f"{service.url}/admin/api/models")).json()["notices"]
                listed = await run(service, "audit", "list")
                verified = await run(service, "audit", "verify")

    assert first.json() == {"changes": []}
    assert before[MINI] is None
    assert line_of(printed, MINI)[:3] == [MINI, "mini", "deprecated"]
    assert FAR in line_of(printed, MINI)
    assert line_of(printed, MINI)[-1] == "default"
    assert "OpenAI, " in " ".join(line_of(printed, TRANSCRIBER))  # it said so the first time
    assert "not in the catalogue: gpt-realtime-3-mini; OpenAI lists it" in printed
    assert f"warning: OpenAI's list does not have {TRANSCRIBER}" in printed
    assert MINI in {notice["model"] for notice in minted["notices"]}
    assert "model_not_listed" in {notice["code"] for notice in told}
    assert "model.change" in listed
    assert verified


async def test_in_the_sandbox_the_stand_in_is_asked(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        printed = await run(service, "models", "--refresh")

    assert "OpenAI, " in " ".join(line_of(printed, TRANSCRIBER))
    assert line_of(printed, "gpt-4o-mini-realtime-preview")[2] == "retired"
    assert "has not been read yet" not in printed


def test_an_openai_that_is_away_ends_with_a_line_and_the_table_is_there_without(
    tmp_path: Path,
) -> None:
    run_command(tmp_path, "migrate")

    refused = run_command(tmp_path, "models", "--refresh")  # its sandbox does not run
    printed = run_command(tmp_path, "models")

    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith("realtime-tokens: ")
    assert "Traceback" not in refused.stderr
    assert line_of(printed.stdout, MINI)[:3] == [MINI, "mini", "active"]
    assert "OpenAI's list of models could not be had (upstream_unavailable)" in printed.stdout
    assert "OpenAI's list has not been read yet" in printed.stdout
