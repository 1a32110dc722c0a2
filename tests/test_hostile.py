"""Promise 10: whatever arrives gets its 4xx; nothing crashes, grows, or stops the others.

A live service in its own process, a stand-in for OpenAI, and clients that mean no good.
"""

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.service import Service, serving
from tests.upstream import Upstream, playing_openai

pytestmark = [pytest.mark.outside, pytest.mark.asyncio(loop_scope="module")]

EMAIL, PASSWORD = "ada@example.com", "correct horse battery staple"
PLENTY = 1_000_000
SETTINGS: dict[str, Any] = {
    "OPENAI_API_KEY": "sk-hostile-test",
    "MINTS_PER_USER_PER_MINUTE": PLENTY,
    "MINTS_PER_USER_PER_DAY": PLENTY,
    "SIGN_IN_FAILURES_PER_ACCOUNT": PLENTY,
    "SIGN_IN_FAILURES_PER_ADDRESS": PLENTY,
    "PASSWORD_CHECKS_PER_MINUTE": PLENTY,
    "BAD_CREDENTIALS_PER_ADDRESS_PER_MINUTE": PLENTY,
    "SIGN_INS_PER_ADDRESS_PER_MINUTE": PLENTY,
}
MOST_MEMORY_KIB = 400 * 1024  # about 110 MiB at rest, and 64 MiB for each password being checked

TOKEN = "/realtime/token"
FORM = "application/x-www-form-urlencoded"
MIB = 1024 * 1024


@dataclass(frozen=True)
class Target:
    """The service under attack, a client with an admin's access token, and what lies behind."""

    service: Service
    client: httpx.AsyncClient
    upstream: Upstream

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", int(self.service.settings["PORT"])

    def exchange(self, *parts: bytes) -> tuple[int, bytes]:
        """Send *parts* and return status and body of the first answer."""
        with socket.create_connection(self.address, timeout=5) as connection:
            with suppress(ConnectionError):  # it has heard enough; the answer may be there
                for part in parts:
                    connection.sendall(part)
            answer = HTTPResponse(connection)
            answer.begin()
            return answer.status, answer.read()

    async def status_of(self, *parts: bytes) -> int:
        """Return the status that the bytes *parts* are answered with."""
        return (await asyncio.to_thread(self.exchange, *parts))[0]

    async def rows(self, **wanted: Any) -> list[dict[str, Any]]:
        """Return the newest rows of the log."""
        answer = await self.client.get("/audit/events", params={"limit": 200, **wanted})
        assert answer.status_code == 200, answer.text
        rows: list[dict[str, Any]] = answer.json()["events"]
        return rows


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def target(
    tmp_path_factory: pytest.TempPathFactory, database_settings: dict[str, Any]
) -> AsyncIterator[Target]:
    folder = tmp_path_factory.mktemp("hostile")
    async with playing_openai() as upstream:
        settings = SETTINGS | database_settings | {"OPENAI_BASE_URL": upstream.url}
        with serving(folder, **settings) as service:
            add = ("users", "add", EMAIL, "--role", "admin", "--password-stdin")
            added = service.run(*add, stdin=PASSWORD)
            assert added.returncode == 0, added.stderr
            headers = service.sign_in(EMAIL, PASSWORD)
            async with httpx.AsyncClient(base_url=service.url, headers=headers) as client:
                yield Target(service, client, upstream)


# Bytes that are no request ------------------------------------------------------------------


def get(path: bytes = b"/livez", *fields: bytes) -> bytes:
    return b"\r\n".join([b"GET " + path + b" HTTP/1.1", b"Host: x", *fields, b"", b""])


def post(*fields: bytes, body: bytes = b"") -> bytes:
    head = [b"POST /realtime/token HTTP/1.1", b"Host: x", b"Content-Type: application/json"]
    return b"\r\n".join([*head, *fields, b"", body])


CHUNKED = b"Transfer-Encoding: chunked"

NO_REQUESTS: dict[str, bytes] = {
    "noise": bytes(range(256)),
    "NUL bytes": bytes(1_000),
    "TLS ClientHello": bytes.fromhex("16030100c8010000c40303") + bytes(200),
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000"),
    "an HTTP of the future": b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
    "a method nobody knows": b"MINT / HTTP/1.1\r\nHost: x\r\n\r\n",
    "NUL in the path": get(b"/livez\x00"),
    "NUL in a field": get(b"/livez", b"X-A: a\x00b"),
    "DEL in a field": get(b"/livez", b"X-A: a\x7fb"),
    "a field that is folded": get(b"/livez", b"X-A: a", b" b"),
    "a blank before the colon": get(b"/livez", b"X-A : a"),
    "a field without a name": get(b"/livez", b": a"),
    "a field injected by CR": get(b"/livez", b"X-Request-ID: a\rSet-Cookie: b=c"),
    "lines that end in LF": get().replace(b"\r\n", b"\n"),
    "lines that end in CR": get().replace(b"\r\n", b"\r"),
    "a path beyond ASCII": get("/é".encode()),
    "CONNECT to somewhere": b"CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    "length and chunks": post(b"Content-Length: 5", CHUNKED, body=b"0\r\n\r\n"),
    "two lengths": post(b"Content-Length: 2", b"Content-Length: 3", body=b"{}"),
    "a list of lengths": post(b"Content-Length: 2, 2", body=b"{}"),
    "a negative length": post(b"Content-Length: -1", body=b"{}"),
    "a signed length": post(b"Content-Length: +2", body=b"{}"),
    "a length in hex": post(b"Content-Length: 0x2", body=b"{}"),
    "a length of 30 digits": post(b"Content-Length: " + b"9" * 30, body=b"{}"),
    "an unknown coding": post(b"Transfer-Encoding: gzip", body=b"{}"),
    "chunks inside a coding": post(b"Transfer-Encoding: chunked, gzip", body=b"{}"),
    "a chunk size that is none": post(CHUNKED, body=b"zz\r\n{}\r\n"),
    "a negative chunk size": post(CHUNKED, body=b"-2\r\n{}\r\n"),
    "a chunk size of 80 bits": post(CHUNKED, body=b"f" * 20 + b"\r\n{}\r\n"),
    "a chunk longer than it says": post(CHUNKED, body=b"1\r\n{}\r\n0\r\n\r\n"),
}


@pytest.mark.parametrize("sent", NO_REQUESTS.values(), ids=NO_REQUESTS.keys())
async def test_what_is_no_request_is_a_400(target: Target, sent: bytes) -> None:
    assert await target.status_of(sent) == 400


TOO_LARGE: dict[str, tuple[int, bytes]] = {
    "a path of 1 MiB": (431, b"GET /" + b"a" * MIB),
    "a field of 1 MiB": (431, b"GET / HTTP/1.1\r\nX-A: " + b"a" * MIB),
    "100,000 fields": (431, b"GET / HTTP/1.1\r\n" + b"X-A: a\r\n" * 100_000),
    "100,000 trailers": (431, post(CHUNKED, body=b"0\r\n" + b"X-A: a\r\n" * 100_000)),
    "a chunk extension of 1 MiB": (431, post(CHUNKED, body=b"2;" + b"a" * MIB)),
    "10,000 requests at once": (431, get() * 10_000),
    "300 MB announced": (413, post(b"Content-Length: 300000000")),
    "300 MB asked about": (413, post(b"Content-Length: 300000000", b"Expect: 100-continue")),
    "300 MB with a GET": (413, get(b"/livez", b"Content-Length: 300000000")),
    "chunks without end": (413, post(CHUNKED, body=(b"1000\r\n" + b" " * 4_096 + b"\r\n") * 20)),
}


@pytest.mark.parametrize(("status", "sent"), TOO_LARGE.values(), ids=TOO_LARGE.keys())
async def test_what_is_too_large_is_refused_before_its_end(
    target: Target, status: int, sent: bytes
) -> None:
    assert await target.status_of(sent) == status


# Requests that lead nowhere -----------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        *(b"//realtime/token", b"//evil.example/", b"/./livez", b"/livez/", b"/livez;a=b"),
        *(b"/static/../../pyproject.toml", b"/static/%2e%2e/%2e%2e/pyproject.toml"),
        *(b"/static/..%2f..%2fpyproject.toml", b"/static/..\\..\\x", b"/static//etc/passwd"),
        *(b"/static/%00", b"/static/%ff", b"/static/" + b"a" * 5_000, b"/static/"),
        *(
            b"/swagger-ui/%2e%2e/__init__.py",
            b"/swagger-ui/%00",
            b"/errors/..%2f..",
            b"/errors/%00",
        ),
        *(b"/%00", b"/%ff%fe", b"/%zz", b"/%", b"/" + b"%61" * 5_000, b"/livez%0d%0aX-A:%20b"),
        *(b"/sandbox/v1/models", b"/.env", b"/var/service.db"),
    ],
)
async def test_tricks_with_paths_find_nothing(target: Target, path: bytes) -> None:
    assert await target.status_of(get(path)) == 404


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "PROPFIND", "DELETE", "OPTIONS", "HEAD"])
async def test_other_methods_are_told_which_there_are(target: Target, method: str) -> None:
    answer = await target.client.request(method, TOKEN)

    assert answer.status_code == 405
    assert answer.headers["Allow"] == "POST"


@pytest.mark.parametrize("path", ["/livez", "/docs", "/openapi.json", "/admin/sign-in", "/nowhere"])
async def test_a_head_is_answered_as_a_get_without_the_body(target: Target, path: str) -> None:
    whole, head = await target.client.get(path), await target.client.head(path)

    assert head.status_code == whole.status_code
    assert head.content == b""
    own = {"date", "x-request-id", "set-cookie"}
    assert {k: v for k, v in head.headers.items() if k not in own} == {
        k: v for k, v in whole.headers.items() if k not in own
    }
    assert (await target.client.get("/livez")).json() == {
        "status": "alive"
    }  # what follows is whole


async def test_every_method_of_a_path_is_told(target: Target) -> None:
    answer = await target.client.delete("/admin/api/keys")

    assert answer.status_code == 405
    assert answer.headers["Allow"] == "GET, HEAD, POST"


@pytest.mark.parametrize("protocol", [b"websocket", b"h2c", b"TLS/1.0"])
async def test_an_upgrade_is_not_made_and_gets_around_nothing(
    target: Target, protocol: bytes
) -> None:
    offer = (b"Connection: Upgrade", b"Upgrade: " + protocol, b"Sec-WebSocket-Version: 13")

    for key in ((), (b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",)):
        assert await target.status_of(get(TOKEN.encode(), *offer, *key)) == 405
        assert await target.status_of(post(*offer, *key, b"Content-Length: 2", body=b"{}")) == 401


# Bodies -------------------------------------------------------------------------------------

BODIES: dict[str, tuple[int, bytes]] = {
    "60,000 brackets": (422, b"[" * 60_000),
    "30,000 lists": (422, b"[" * 30_000 + b"]" * 30_000),
    "10,000 objects": (422, b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
    "a variable 10,000 deep": (422, b'{"variables":{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}}"),
    "5,000 digits": (422, b'{"ttlSeconds":' + b"9" * 5_000 + b"}"),
    "60,000 digits": (422, b'{"ttlSeconds":-' + b"9" * 60_000 + b"}"),
    "a number beyond floats": (422, b'{"ttlSeconds":1e400}'),
    "NaN": (422, b'{"ttlSeconds":NaN}'),
    "Infinity": (422, b'{"ttlSeconds":-Infinity}'),
    "5,000 fields": (422, json.dumps({f"{i}": 0 for i in range(5_000)}).encode()),
    "a name of 60,000 letters": (422, json.dumps({"profile": "x" * 60_000}).encode()),
    "a field of Python's": (422, b'{"__class__":"x"}'),
    "a surrogate as profile": (422, b'{"profile":"\\ud800"}'),
    "a surrogate as language": (422, b'{"language":"\\udfff"}'),
    "a surrogate as voice": (422, b'{"voice":"\\ud800"}'),
    "a surrogate as user": (422, b'{"user":"\\ud800"}'),
    "a surrogate as variable": (422, b'{"variables":{"\\ud800":"\\ud800"}}'),
    "a surrogate as field": (422, b'{"\\ud800":1}'),
    "not UTF-8": (422, b'{"profile":"\xff"}'),
    "overlong UTF-8": (422, b'{"profile":"\xc0\x80"}'),
    "a surrogate in UTF-8": (422, b'{"profile":"\xed\xa0\x80"}'),
    "half a document": (422, b'{"profile":'),
    "two documents": (422, b"{}{}"),
    "a list": (422, b"[]"),
    "a text": (422, b'"default"'),
    "NUL in a name": (404, b'{"profile":"default\\u0000"}'),
    "a name beyond letters": (404, '{"profile":"💥"}'.encode()),
    "a field twice, the last counts": (404, b'{"profile":"default","profile":"none"}'),
}


@pytest.mark.parametrize(("status", "body"), BODIES.values(), ids=BODIES.keys())
async def test_json_that_means_harm_is_refused(target: Target, status: int, body: bytes) -> None:
    asked = len(target.upstream.asked)

    answer = await target.client.post(
        TOKEN, content=body, headers={"Content-Type": "application/json"}
    )

    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert len(target.upstream.asked) == asked


@pytest.mark.parametrize(
    "media_type",
    [
        *("", "text/plain", FORM, "multipart/form-data; boundary=x", "application/vnd.api+json"),
        *("application/json; charset=utf-16", "application/json;charset", "application/json, a/b"),
        *("application/json; charset=utf-8; charset=utf-7", "application/jsonx", ";", "json"),
    ],
)
async def test_json_under_another_name_is_a_415(target: Target, media_type: str) -> None:
    answer = await target.client.post(TOKEN, content=b"{}", headers={"Content-Type": media_type})

    assert answer.status_code == 415


FORMS: dict[str, tuple[int, bytes]] = {
    "100,000 parameters": (413, b"a&" * 100_000),
    "30,000 parameters": (400, b"a&" * 30_000),
    "1,001 parameters": (400, b"&".join(b"a%d=b" % i for i in range(1_001))),
    "nothing but marks": (400, b"%%%=%%&&&===&%zz=%"),
    "grant types": (400, b"grant_type=password&grant_type=password&username=a&password=b"),
    "NUL bytes": (400, b"grant_type=password&username=%00&password=%00"),
    "surrogates": (400, b"grant_type=password&username=%ED%A0%80&password=%ED%B0%80"),
    "not UTF-8": (400, b"grant_type=password&username=\xff&password=\xfe"),
    "a password of 60,000 letters": (
        400,
        b"grant_type=password&username=%s&password=%s" % (EMAIL.encode(), b"p" * 60_000),
    ),
    "a name of 60,000 letters": (400, b"grant_type=password&password=b&username=" + b"p" * 60_000),
}


@pytest.mark.parametrize(("status", "form"), FORMS.values(), ids=FORMS.keys())
async def test_forms_that_mean_harm_are_refused_as_rfc_6749_says(
    target: Target, status: int, form: bytes
) -> None:
    answer = await target.client.post("/auth/token", content=form, headers={"Content-Type": FORM})

    assert answer.status_code == status, answer.text
    assert answer.json().keys() == {"error", "error_description"}


async def test_a_form_in_parts_is_a_415(target: Target) -> None:
    parts = {f"field{i}": (f"file{i}", b"x") for i in range(200)}

    answer = await target.client.post("/auth/token", files=parts)

    assert answer.status_code == 415


@pytest.mark.parametrize(
    ("status", "query"),
    [
        *((422, f"limit={n}") for n in ("0", "-1", "1e3", "nan", "9" * 30, "9" * 5_000)),
        *((422, f"from={t}") for t in ("1e400", "nan", "9999-12-31T23:59:60Z", "0000-00-00")),
        *((200, f"to={t}") for t in ("0001-01-01T00:00:00Z", "9999-12-31T23:59:59%2B14:00")),
        *((422, f"to={t}") for t in ("0001-01-01T00:00:00%2B14:00", "9999-12-31T23:59:59-14:00")),
        *((200, f"actor={a}") for a in ("%ff", "%ed%a0%80", "'--", "a" * 256)),
        *((422, f"actor={a}") for a in ("%00", "a%0ab", "a" * 8_000)),
        *((400, f"cursor={c}") for c in ("%00", "%ff", "AAAA", "A" * 64, "%F0%9F%92%A5")),
        *((422, "&".join(["a=b"] * 5_000)), (422, "cursor=" + "A" * 65)),
    ],
)
async def test_queries_that_mean_harm_find_nothing_or_are_refused(
    target: Target, status: int, query: str
) -> None:
    assert (await target.client.get(f"/audit/events?{query}")).status_code == status


FAR_AWAY = [
    "0001-01-01T00:00:00Z",
    "0001-01-01T00:00:00-14:00",
    "1969-12-31T23:59:59Z",
    "9999-12-31T23:59:59Z",
]


@pytest.mark.parametrize("path", ["/audit/overview", "/audit/export", "/audit/events"])
async def test_no_span_of_time_is_too_far_away(target: Target, path: str) -> None:
    spans = [f"from={a}&to={b}" for a in FAR_AWAY for b in FAR_AWAY]
    spans += [f"{side}={moment}" for side in ("from", "to") for moment in FAR_AWAY]

    answers = [await target.client.get(f"{path}?{span}") for span in spans]

    assert {answer.status_code for answer in answers} == {200}


# Lies in headers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "credential",
    [
        *(b"", b"Bearer", b"Bearer ", b"Basic YTpi", b"Bearer \xff\xfe", b"Bearer a b", b"\xff"),
        *(b"Bearer " + b"a." * 10_000, b"Bearer " + b"." * 20_000, b"Bearer " + b"eyJ" * 5_000),
    ],
)
async def test_a_credential_that_is_none_is_a_401(target: Target, credential: bytes) -> None:
    assert await target.status_of(post(b"Authorization: " + credential)) == 401


async def test_a_name_that_begins_like_a_secret_is_not_taken_over(target: Target) -> None:
    name = "ek_0123456789abcdef0123456789abcdef"

    answer = await target.client.post(TOKEN, headers={"X-Request-ID": name})

    assert answer.status_code == 200
    assert answer.headers["X-Request-ID"].startswith("req_")


async def test_the_address_is_the_peers_whatever_the_client_says(target: Target) -> None:
    lies = {"X-Forwarded-For": "192.0.2.1, " * 1_000 + "192.0.2.1", "Forwarded": "for=192.0.2.1"}

    minted = await target.client.post(TOKEN, headers={**lies, "X-Real-IP": "192.0.2.1"})

    assert minted.status_code == 200
    found = await target.client.get(f"/audit/events/{minted.json()['id']}")
    assert {row.get("ip") for row in found.json()["attempt"]} == {"127.0.0.1", None}


@pytest.mark.parametrize("host", [b"Host: evil.example", b"Host: \xff", b"Host:", b"X-No-Host: x"])
async def test_no_address_is_made_of_what_the_client_calls_us(target: Target, host: bytes) -> None:
    for path in (b"/nowhere", b"http://evil.example/nowhere"):
        sent = b"GET " + path + b" HTTP/1.1\r\n" + host + b"\r\nX-Forwarded-Host: evil.example\r\n"

        status, body = await asyncio.to_thread(target.exchange, sent + b"\r\n")

        assert status == 404
        assert target.service.url.encode() in body
        assert b"evil" not in body


# Clients that come and go -------------------------------------------------------------------


def reset(connection: socket.socket) -> None:
    """Hang up the rude way."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


async def test_who_hangs_up_in_the_middle_harms_nobody(target: Target) -> None:
    for sent in (b"", b"GET / HT", get(), post(b"Content-Length: 9", body=b"{"), post(CHUNKED)):
        for hang_up in (reset, socket.socket.close):
            connection = socket.create_connection(target.address)
            connection.sendall(sent)
            hang_up(connection)

    assert (await target.client.post(TOKEN)).status_code == 200


async def test_who_hangs_up_while_minting_leaves_whole_attempts_and_harms_nobody(
    target: Target,
) -> None:
    asked = len(target.upstream.asked)
    target.upstream.delay_seconds = 0.2
    bearer = target.client.headers["Authorization"].encode()
    callers = [socket.create_connection(target.address) for _ in range(10)]
    for caller in callers:
        caller.sendall(post(b"Authorization: " + bearer))
    others = [asyncio.create_task(target.client.post(TOKEN)) for _ in range(10)]

    await target.upstream.reached(asked + 20)
    for caller in callers:
        reset(caller)

    assert [(await other).status_code for other in others] == [200] * 10
    attempts = set(target.upstream.asked[asked:])
    target.upstream.delay_seconds = 0
    async with asyncio.timeout(5):
        outcomes: set[str] = set()
        while outcomes != attempts:
            rows = await target.rows(action="client_secret.mint", outcome="issued")
            outcomes = {row["attemptId"] for row in rows} & attempts


async def test_others_mint_while_hundreds_of_connections_do_nothing(target: Target) -> None:
    idle = [socket.create_connection(target.address) for _ in range(200)]
    for connection in idle[::2]:
        connection.sendall(b"POST /realtime/token HTTP/1.1\r\nHost: x\r\nX-Slow: ")
    for connection in idle[1::4]:
        connection.sendall(post(b"Content-Length: 1000", body=b"{"))

    async with asyncio.timeout(5):
        answers = await asyncio.gather(*(target.client.post(TOKEN) for _ in range(20)))

    assert [answer.status_code for answer in answers] == [200] * 20
    for connection in idle:
        connection.close()


# After all that -----------------------------------------------------------------------------


def most_memory_kib(service: Service) -> int:
    """Return the most memory that the service has ever had, from proc_pid_status(5)."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    [most] = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(most.split()[1])


async def test_after_all_that_it_mints_and_its_log_tells_of_no_fault(target: Target) -> None:
    minted = await target.client.post(TOKEN)
    ready = await target.client.get("/readyz")
    verified = await asyncio.to_thread(target.service.run, "audit", "verify")

    assert (minted.status_code, ready.status_code) == (200, 200)
    assert verified.returncode == 0, verified.stdout
    lines = [json.loads(line) for line in target.service.stdout.read_text().splitlines()]
    assert [line for line in lines if line["level"] not in {"info", "warning"}] == []
    assert [line for line in lines if (line.get("status") or 0) >= 500] == []
    assert "Traceback" not in target.service.stdout.read_text() + target.service.banner
    assert most_memory_kib(target.service) < MOST_MEMORY_KIB
