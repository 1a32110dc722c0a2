"""Promises 5 and 6: canary values, searched for in everything the service leaves behind."""

import base64
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg
import httpx
import pytest

from app.settings import Settings
from tests.openapi_document import OPERATIONS
from tests.service import Service, free_port, run_command, serving
from tests.upstream import Upstream, playing_openai

pytestmark = pytest.mark.outside

API_KEY = "sk-proj-canaryCANARYcanary0123456789abcd"
SECRET = "canary-of-the-installation-secret-0123456789"
METRICS_TOKEN = "canary-of-whoever-reads-the-metrics-0123456789"
DATABASE_PASSWORD = "canary-of-the-database"
REDIS_PASSWORD = "canary-of-redis"
EMAIL, PASSWORD = "ada@example.com", "canary password of ada"
WRONG = "canary password that is wrong"
END_USER = "canary of a user of theirs"
EASY = "canarycanarycanary"
CHANGED = "canary password that is another one"
JUNK = "eyJjYW5hcnk.eyJjYW5hcnk.eyJjYW5hcnk"
UPSTREAM_TEXT = f"Incorrect API key provided: {API_KEY[:12]}********{API_KEY[-4:]}. canary-text"

PAGES = ["/", "/docs", "/openapi.json", "/errors", "/errors/invalid_token"]
READ = [told.path for told in OPERATIONS.values() if told.method == "get" and "{" not in told.path]
COMMANDS = ["check", "users list", "keys list", "audit list", "audit verify", "openapi", "version"]


def contents(folder: Path) -> dict[str, str]:
    """Return what stands in every file below *folder*, by its path from there."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file.relative_to(folder)): file.read_bytes().decode("latin-1") for file in files}


async def values_in_postgres(url: str) -> set[object]:
    """Return every value of every row of a PostgreSQL database."""
    connection = await asyncpg.connect(url)
    try:
        tables = await connection.fetch(
            "SELECT format('%I', tablename) FROM pg_tables WHERE schemaname = 'public'"
        )
        rows = [
            row for (name,) in tables for row in await connection.fetch(f"SELECT * FROM {name}")
        ]
    finally:
        await connection.close()
    return {value for row in rows for value in row}


def values_in_sqlite(file: Path) -> set[object]:
    """Return every value of every row of a SQLite database."""
    with closing(sqlite3.connect(file)) as connection:
        tables = connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table'"
        ).fetchall()
        rows = [row for (name,) in tables for row in connection.execute(f'SELECT * FROM "{name}"')]
    return {value for row in rows for value in row}


def texts_of(values: set[object]) -> set[str]:
    """Return the texts among *values*, and octets as they may be written: hex, base64url, text."""
    texts = {value for value in values if isinstance(value, str) and value}
    for octets in (value for value in values if isinstance(value, bytes) and value):
        texts |= {octets.hex(), base64.urlsafe_b64encode(octets).decode().rstrip("=")}
        texts.add(octets.decode("latin-1"))
    return texts


def spellings(secret: str) -> set[str]:
    """Return *secret* as it is, and as one that is stored or sent may be written."""
    octets = secret.encode()
    as_base64 = base64.urlsafe_b64encode(octets).decode().rstrip("=")[:-1]  # whatever follows
    return {secret, octets.hex(), as_base64, quote(secret)}


def assert_not_in(places: dict[str, str], secrets: list[str]) -> None:
    for name, text in places.items():
        for secret in secrets:
            assert not [form for form in spellings(secret) if form in text], f"{secret!r} in {name}"


class Visit:
    """What clients send and get in a session in which much goes wrong.

    Answers that are meant to carry a secret give it to `secrets`; all others go to `answers`.
    """

    def __init__(self, client: httpx.AsyncClient, upstream: Upstream) -> None:
        self.secrets: list[str] = []
        self.answers: list[httpx.Response] = []
        self.statuses: list[int] = []  # of answers that are a form, with what was sent in it
        self._client = client
        self._upstream = upstream

    async def _send(self, method: str, path: str, **what: Any) -> None:
        self.answers.append(await self._client.request(method, path, **what))

    async def _grant(self, form: dict[str, str]) -> dict[str, str]:
        answer = await self._client.post("/auth/token", data=form)
        assert answer.status_code == 200
        granted: dict[str, str] = answer.json()
        access_token, refresh_token = granted["access_token"], granted["refresh_token"]
        self.secrets += [access_token, access_token.split(".")[2]]
        self.secrets.append(refresh_token.removeprefix("rtr_"))
        return granted

    async def pay(self) -> None:
        """Sign in, mint, read, be refused in every way, refresh, sign out."""
        grant = {"grant_type": "password", "username": EMAIL, "password": PASSWORD}
        granted = await self._grant(grant)
        headers = {"Authorization": f"Bearer {granted['access_token']}"}
        minted = await self._client.post("/realtime/token", headers=headers)
        assert minted.status_code == 200
        token = minted.json()["token"]

        for form in ({**grant, "password": WRONG}, {**grant, "scope": PASSWORD}):
            await self._send("POST", "/auth/token", data=form)
        await self._send("POST", "/auth/token", json=grant)
        for bearer in (JUNK, METRICS_TOKEN, token, granted["refresh_token"]):
            await self._send("POST", "/realtime/token", headers={"Authorization": bearer})
            bad = {"Authorization": f"Bearer {bearer}"}
            await self._send("POST", "/realtime/token", headers=bad)
        await self._send("GET", "/auth/me", auth=(EMAIL, PASSWORD))
        for body in ({"voice": PASSWORD}, {"profile": PASSWORD}, {PASSWORD: PASSWORD}):
            await self._send("POST", "/realtime/token", headers=headers, json=body)
        await self._send("GET", f"/nothing?key={PASSWORD}", headers=headers)
        for secret in (token, granted["refresh_token"], granted["access_token"], API_KEY):
            await self._send("GET", f"/nothing/{secret}?a={secret}")
            await self._send("GET", "/livez", headers={"X-Request-ID": secret})

        await self._ask_as_a_backend(headers)

        self._upstream.error = {"message": UPSTREAM_TEXT, "code": "invalid_api_key"}
        for self._upstream.status in (400, 401, 403, 404, 429, 500, 503):
            await self._send("POST", "/realtime/token", headers=headers)

        for path in [*READ, *PAGES]:
            await self._send("GET", path, headers=headers)
        await self._send("GET", "/audit/events?limit=200", headers=headers)
        for name in ("from", "actor", "cursor", "limit", PASSWORD):
            sought = {name: PASSWORD}
            await self._send("GET", "/audit/events", params=sought, headers=headers)
        await self._view_the_log(headers, token)
        reader = {"Authorization": f"Bearer {METRICS_TOKEN}"}
        await self._send("GET", "/metrics", headers=reader)
        assert self.answers[-1].status_code == 200

        used = {"grant_type": "refresh_token", "refresh_token": granted["refresh_token"]}
        renewed = await self._grant(used)
        for form in (used, {**used, "grant_type": ""}):
            await self._send("POST", "/auth/token", data=form)
        headers = {"Authorization": f"Bearer {renewed['access_token']}"}
        await self._change_passwords(headers)
        await self._send("POST", "/auth/revoke", data={"token": renewed["refresh_token"]})

    async def _view_the_log(self, admin: dict[str, str], token: str) -> None:
        """Look a token up in every way that is meant and not meant for it, and export the log."""
        look_up = "/audit/lookup"
        for body in ({"token": token}, {"token": [token]}, {token: token}, token):
            await self._send("POST", look_up, headers=admin, json=body)
        await self._send("POST", look_up, headers=admin, data={"token": token})
        await self._send("GET", f"{look_up}/{token}", headers=admin, params={"token": token})
        for secret in (token, PASSWORD):
            for name in ("id", "actor", "address", "profile", "span"):
                for path in ("/audit/events", "/audit/export", "/audit/overview"):
                    await self._send("GET", path, headers=admin, params={name: secret})
        for form in ("csv", "jsonl"):
            await self._send("GET", "/audit/export", headers=admin, params={"format": form})

    async def _ask_as_a_backend(self, admin: dict[str, str]) -> None:
        """Have keys made, mint with them, be refused with them in every way."""
        keys, wanted = "/admin/api/keys", {"name": "a backend", "scopes": ["mint:on-behalf"]}
        made = (await self._client.post(keys, headers=admin, json=wanted)).json()
        rotated = await self._client.post(f"{keys}/{made['id']}/rotate", headers=admin)
        old, new = made["key"], rotated.json()["key"]
        self.secrets += [old.rpartition("_")[2], new.rpartition("_")[2]]
        for key in (old, new):
            shown = {"Authorization": f"Bearer {key}"}
            minted = await self._client.post(
                "/realtime/token", headers=shown, json={"user": END_USER}
            )
            assert minted.status_code == 200
        for body in ({"user": f"{END_USER}\n"}, {"user": END_USER, "profile": "nope"}, {}):
            await self._send("POST", "/realtime/token", headers=shown, json=body)
        await self._send("POST", "/realtime/token", headers=admin, json={"user": END_USER})
        await self._send("GET", "/audit/events", headers=admin, params={"actor": END_USER})
        await self._send("GET", "/audit/events", headers=shown)
        for bearer in (new[:-1], new.replace("rtk_live", "rtk_sandbox"), f"{new[:-6]}000000"):
            bad = {"Authorization": f"Bearer {bearer}"}
            await self._send("POST", "/realtime/token", headers=bad, json={"user": END_USER})
        await self._send("GET", f"/nothing/{new}?key={new}", headers={"X-Request-ID": new})
        await self._send("POST", f"{keys}/{new}/revoke", headers=admin)
        await self._send("POST", f"{keys}/{made['id']}/revoke", headers=admin)
        dead = {"Authorization": f"Bearer {old}"}
        await self._send("POST", "/realtime/token", headers=dead, json={"user": END_USER})
        await self._send("GET", keys, headers=admin)

    async def _change_passwords(self, headers: dict[str, str]) -> None:
        """Be refused in every way, and in the end set the same password by a link."""
        for change in (
            {"currentPassword": WRONG, "newPassword": PASSWORD},
            {"currentPassword": PASSWORD, "newPassword": EASY},
            {"currentPassword": PASSWORD, WRONG: PASSWORD},
        ):
            await self._send("POST", "/auth/password", json=change, headers=headers)
        me = (await self._client.get("/auth/me", headers=headers)).json()["id"]
        made = await self._client.post(f"/admin/api/users/{me}/reset-link", headers=headers)
        token = made.json()["link"].partition("#")[2]
        self.secrets.append(token.removeprefix("rts_"))
        for reset in (
            {"token": f"{token}x", "password": PASSWORD},
            {"token": token, "password": EASY},
            {"token": {token: token}, "password": [PASSWORD]},
        ):
            await self._send("POST", "/auth/reset", json=reset)
        await self._send("POST", "/reset", json={"token": token, "password": PASSWORD})
        await self._send("GET", f"/reset/{token}?token={token}")
        await self._send("GET", "/livez", headers={"X-Request-ID": token})
        for _ in range(2):
            form = {"token": token, "password": CHANGED}
            self.statuses.append((await self._client.post("/reset", data=form)).status_code)


async def test_no_secret_is_left_anywhere(settings: Settings, tmp_path: Path) -> None:
    database = settings.database_url.get_secret_value() if settings.database_url else ""
    async with playing_openai() as upstream:
        with serving(
            tmp_path,
            OPENAI_API_KEY=API_KEY,
            OPENAI_BASE_URL=upstream.url,
            SECRET_KEY=SECRET,
            METRICS_TOKEN=METRICS_TOKEN,
            DATABASE_URL=database.replace("postgres@", f"postgres:{DATABASE_PASSWORD}@"),
            REDIS_URL=f"redis://:{REDIS_PASSWORD}@127.0.0.1:{free_port()}/0",
            LOG_LEVEL="debug",
        ) as service:
            add_ada(service)
            async with httpx.AsyncClient(base_url=service.url) as client:
                visit = Visit(client, upstream)
                await visit.pay()
            said = {name: service.run(*name.split()) for name in COMMANDS}

    places = {f"answer {i}": str(a.headers) + a.text for i, a in enumerate(visit.answers)}
    places |= {name: command.stdout + command.stderr for name, command in said.items()}
    places |= contents(tmp_path)
    if database:
        places["PostgreSQL"] = "\n".join(texts_of(await values_in_postgres(database)))
    assert {name: command.returncode for name, command in said.items()} == dict.fromkeys(said, 0)
    assert EMAIL in places["PostgreSQL" if database else "var/service.db"]
    assert '"event": "request"' in places["stdout.log"]
    assert len(upstream.minted) == 3
    assert '"event": "limits_degraded"' in places["stdout.log"]
    secrets = [API_KEY, SECRET, METRICS_TOKEN, DATABASE_PASSWORD, REDIS_PASSWORD]
    secrets += [PASSWORD, WRONG, EASY, CHANGED, JUNK, END_USER]
    assert visit.statuses == [200, 422]
    secrets += [*visit.secrets, *upstream.minted, "canary-text", API_KEY[:12], API_KEY[-4:] + "."]
    assert_not_in(places, secrets)


def add_ada(service: Service) -> None:
    add = ("users", "add", EMAIL, "--role", "admin", "--password-stdin")
    added = service.run(*add, stdin=PASSWORD)
    assert added.returncode == 0, added.stderr


async def test_nothing_in_a_stolen_database_is_a_credential(
    settings: Settings, tmp_path: Path
) -> None:
    database = settings.database_url.get_secret_value() if settings.database_url else ""
    async with playing_openai() as upstream:
        with serving(
            tmp_path,
            OPENAI_API_KEY=API_KEY,
            OPENAI_BASE_URL=upstream.url,
            SECRET_KEY=SECRET,
            SIGN_IN_FAILURES_PER_ACCOUNT=1_000_000,
            SIGN_IN_FAILURES_PER_ADDRESS=1_000_000,
            PASSWORD_CHECKS_PER_MINUTE=1_000_000,
            BAD_CREDENTIALS_PER_ADDRESS_PER_MINUTE=1_000_000,
            DATABASE_URL=database,
            SIGN_INS_PER_ADDRESS_PER_MINUTE=1_000_000,
        ) as service:
            add_ada(service)
            headers = service.sign_in(EMAIL, PASSWORD)
            assert service.run("keys", "create", "a backend").returncode == 0
            made = service.run("users", "reset-link", EMAIL)
            assert made.returncode == 0, made.stderr
            stolen = texts_of(
                await values_in_postgres(database)
                if database
                else values_in_sqlite(tmp_path / "var" / "service.db")
            )
            statuses = set()
            async with httpx.AsyncClient(base_url=service.url) as client:
                assert (await client.post("/realtime/token", headers=headers)).status_code == 200
                for text in stolen:
                    tried = quote(text)  # a header carries no more than ASCII
                    for bearer in {tried, f"rtk_live_{tried}"}:
                        shown = {"Authorization": f"Bearer {bearer}"}
                        answer = await client.post("/realtime/token", headers=shown)
                        statuses.add(answer.status_code)
                    for token in (text, f"rts_{text}"):
                        reset = {"token": token, "password": CHANGED}
                        statuses.add((await client.post("/auth/reset", json=reset)).status_code)
                    for token in (text, f"rtr_{text}"):
                        form = {"grant_type": "refresh_token", "refresh_token": token}
                        statuses.add((await client.post("/auth/token", data=form)).status_code)
                for text in [text for text in stolen if text.startswith("$argon2")]:
                    form = {"grant_type": "password", "username": EMAIL, "password": text}
                    statuses.add((await client.post("/auth/token", data=form)).status_code)

    assert len(stolen) > 20
    assert any(text.startswith("$argon2") for text in stolen)
    assert statuses == {400, 401, 422}


FAULTY: dict[str, dict[str, str]] = {
    "a short secret": {"SECRET_KEY": "canary-canary"},
    "a key of two lines": {"OPENAI_API_KEY": "sk-canary\ncanary"},
    "a short token": {"METRICS_TOKEN": "canary-canary"},
    "a key in an address": {"OPENAI_BASE_URL": "https://me:canary@127.0.0.1/v1"},
    "another database": {"DATABASE_URL": "mysql://me:canary@127.0.0.1/x"},
    "nobody there": {"DATABASE_URL": f"postgresql://me:canary@127.0.0.1:{free_port()}/x"},
    "@ in the password": {"DATABASE_URL": "postgresql://me:a@canary@127.0.0.1/x"},
    "/ in the password": {"DATABASE_URL": "postgresql://me:a/canary@127.0.0.1/x"},
    "# in the password": {"DATABASE_URL": "postgresql://me:a#canary@127.0.0.1/x"},
    "[ in the password": {"DATABASE_URL": "postgresql://me:a[canary@127.0.0.1/x"},
    "another cache": {"REDIS_URL": "memcached://:canary@127.0.0.1/0"},
    "@ in the password of Redis": {"REDIS_URL": "redis://:a@canary@127.0.0.1/0"},
    "? in the password of Redis": {"REDIS_URL": "redis://:a?canary@127.0.0.1/0"},
    "options of Redis": {"REDIS_URL": "redis://127.0.0.1/0?password=canary"},
    "a name of a database in Redis": {"REDIS_URL": "redis://127.0.0.1/canary"},
    "no port": {"DATABASE_URL": "postgresql://me:canary@127.0.0.1:canary/x"},
}


@pytest.mark.parametrize("command", ["migrate", "serve"])
@pytest.mark.parametrize("fault", FAULTY)
def test_a_start_that_fails_says_so_in_a_line_and_without_the_secret(
    fault: str, command: str, tmp_path: Path
) -> None:
    settings = {"OPENAI_API_KEY": API_KEY, "SECRET_KEY": SECRET, "PORT": str(free_port())}

    ended = run_command(tmp_path, command, **settings | FAULTY[fault])

    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1
    assert_not_in({"stdout": ended.stdout, "stderr": ended.stderr} | contents(tmp_path), ["canary"])
