"""The image without an engine: its steps as plain commands in a folder of their own."""

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.service import free_port

pytestmark = pytest.mark.outside

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
BUILD, RESULT = DOCKERFILE.split("\nFROM ")[1:]


def instructions(stage: str, name: str) -> list[str]:
    return re.findall(rf"^{name} (.+)$", stage, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Carry out the steps of the first stage with this folder in place of /srv."""
    srv = tmp_path_factory.mktemp("srv")
    for line in BUILD.splitlines():
        step, _, rest = line.partition(" ")
        if step == "COPY":
            *sources, target = rest.split()
            for source in sources:
                place = srv / target / source if target == "./" else srv / target
                place.parent.mkdir(parents=True, exist_ok=True)
                copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
                copy(ROOT / source, place)
        elif step == "RUN":
            command = rest.replace("/srv/", f"{srv}/")
            subprocess.run(command, shell=True, cwd=srv, check=True, timeout=300)  # noqa: S602
    return srv


def test_the_image_serves_and_its_health_check_says_so(image: Path) -> None:
    [variables] = instructions(RESULT, "ENV")
    settings = dict(pair.split("=", 1) for pair in variables.split())
    assert settings["APP_ENV"] == "production"
    settings |= {
        "PATH": f"{image}/.venv/bin:{os.environ['PATH']}",
        "PORT": str(free_port()),
        "OPENAI_API_KEY": "sk-x",
    }
    health = json.loads(instructions(RESULT, "HEALTHCHECK")[0].partition(" CMD ")[2])
    command = json.loads(instructions(RESULT, "CMD")[0])
    process = subprocess.Popen(command, cwd=image, env=settings)
    try:
        for _ in range(300):
            healthy = subprocess.run(
                health, env=settings, capture_output=True, timeout=10, check=False
            )
            if healthy.returncode == 0:
                break
            assert process.poll() is None
        assert healthy.returncode == 0
        version = httpx.get(f"http://127.0.0.1:{settings['PORT']}/version").json()
        assert version["environment"] == "live"
    finally:
        process.terminate()
        assert process.wait(timeout=20) in {0, -signal.SIGTERM}  # uvicorn ends by the signal it got


def test_the_image_refuses_the_sandbox(image: Path) -> None:
    settings = {"PATH": f"{image}/.venv/bin:{os.environ['PATH']}", "APP_ENV": "production"}

    refused = subprocess.run(
        [image / ".venv/bin/realtime-tokens", "serve"],
        cwd=image,
        env=settings,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert refused.returncode == 1
    assert "OPENAI_API_KEY is not set" in refused.stderr


def test_the_result_runs_as_nobody_in_particular_and_has_no_compiler() -> None:
    [user] = instructions(RESULT, "USER")
    assert user not in {"root", "0"}
    assert "apt-get" not in DOCKERFILE
    assert all(run.startswith("useradd") for run in instructions(RESULT, "RUN"))
    assert instructions(RESULT, "HEALTHCHECK")
