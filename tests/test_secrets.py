"""Promises 5 and 6: canary values, searched for in everything the service leaves behind."""

from pathlib import Path

import httpx
import pytest

from tests.service import serving
from tests.upstream import playing_openai

pytestmark = pytest.mark.outside

API_KEY = "sk-proj-canaryCANARYcanary0123456789abcd"
SECRET = "canary-of-the-installation-secret-0123456789"
EMAIL, PASSWORD = "ada@example.com", "canary password of ada"
WRONG = "canary password that is wrong"
JUNK = "eyJjYW5hcnk.eyJjYW5hcnk.eyJjYW5hcnk"
UPSTREAM_TEXT = f"Incorrect API key provided: {API_KEY[:12]}********{API_KEY[-4:]}. canary-text"


def contents(folder: Path) -> dict[str, str]:
    """Return what stands in every file below *folder*."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {file.name: file.read_bytes().decode("latin-1") for file in files}


async def test_no_secret_is_left_anywhere(tmp_path: Path) -> None:
    answers: list[httpx.Response] = []
    async with playing_openai() as upstream:
        with serving(
            tmp_path,
            OPENAI_API_KEY=API_KEY,
            SECRET_KEY=SECRET,
            OPENAI_BASE_URL=upstream.url,
            LOG_LEVEL="debug",
        ) as service:
            service.run("users", "add", EMAIL, "--password-stdin", stdin=PASSWORD)
            async with httpx.AsyncClient(base_url=service.url) as client:
                grant = {"grant_type": "password", "username": EMAIL, "password": PASSWORD}
                signed_in = await client.post("/auth/token", data=grant)
                access_token = signed_in.json()["access_token"]
                headers = {"Authorization": f"Bearer {access_token}"}
                minted = await client.post("/realtime/token", headers=headers)
                assert minted.status_code == 200
                answers.append(await client.post("/auth/token", data={**grant, "password": WRONG}))
                answers.append(await client.post("/auth/token", json=grant))
                junk = {"Authorization": f"Bearer {JUNK}"}
                answers.append(await client.post("/realtime/token", headers=junk))
                answers += [
                    await client.post("/realtime/token", headers=headers, json=body)
                    for body in ({"voice": PASSWORD}, {"profile": PASSWORD}, {PASSWORD: PASSWORD})
                ]
                answers.append(await client.get(f"/nothing?key={PASSWORD}", headers=headers))
                upstream.error = {"message": UPSTREAM_TEXT, "code": "invalid_api_key"}
                for upstream.status in (400, 401, 403, 404, 429, 500, 503):
                    answers.append(await client.post("/realtime/token", headers=headers))
            listed = service.run("audit", "list")
            assert listed.returncode == 0

    secrets = [API_KEY, SECRET, PASSWORD, WRONG, JUNK, access_token, access_token.split(".")[2]]
    secrets += [*upstream.minted, "canary-text", API_KEY[:12], API_KEY[-4:] + "."]
    places = {f"answer {i}": str(a.headers) + a.text for i, a in enumerate(answers)}
    places["audit list"] = listed.stdout + listed.stderr
    places |= contents(tmp_path)
    assert {"stdout.log", "stderr.log", "service.db"} <= places.keys()
    assert len(upstream.minted) == 1
    for name, text in places.items():
        for secret in secrets:
            assert secret not in text, f"{secret!r} in {name}"
