"""What is made of OpenAI's answers, each sent by a real server and read through the door."""

import gzip
import json
import tracemalloc
import zlib
from typing import Any

import pytest

from app.base.errors import (
    UpstreamInvalidResponse,
    UpstreamMisconfigured,
    UpstreamProblem,
    UpstreamQuotaExhausted,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamUnavailable,
)
from tests.upstreams import (
    EXPIRES_AT,
    GOOD,
    KEY,
    TEXT,
    answering,
    door_to,
    http,
    http_json,
    mint,
    openai_error,
    problem_of,
)


async def test_a_secret_comes_with_what_support_and_the_log_need() -> None:
    reply = http_json(200, GOOD, "x-request-id: req_0123")
    async with answering(reply) as server, door_to(server.url) as openai:
        secret = await mint(openai)

    assert secret.value.get_secret_value() == GOOD["value"]
    assert secret.expires_at == EXPIRES_AT
    assert secret.upstream_request_id == "req_0123"
    assert secret.upstream_session_id == GOOD["session"]["id"]
    assert 0 <= secret.upstream_ms < 2000
    assert GOOD["value"] not in repr(secret)


@pytest.mark.parametrize(
    "body",
    [
        {**GOOD, "session": {"id": None, "audio": None}},
        {**GOOD, "session": None},
        {key: GOOD[key] for key in ("value", "expires_at")},
        {**GOOD, "brand_new": {"a": [1e400, float("nan")]}},
        {**GOOD, "session": {"id": f"not an id: {TEXT}"}},
        {**GOOD, "value": "~" * 512},
        {**GOOD, "value": "ek_12345"},
        {**GOOD, "expires_at": EXPIRES_AT - 86_400},
        {**GOOD, "expires_at": EXPIRES_AT + 86_400},
    ],
    ids=[
        "nulls", "null session", "no session", "unknown members", "odd session id",
        "longest value", "shortest value", "clock a day behind", "clock a day ahead",
    ],
)  # fmt: skip
async def test_an_answer_is_read_leniently(body: dict[str, Any]) -> None:
    async with answering(http_json(200, body)) as server, door_to(server.url) as openai:
        secret = await mint(openai)

    assert secret.value.get_secret_value() == body["value"]
    assert TEXT not in repr(secret)


@pytest.mark.parametrize(
    "reply",
    [
        http(200, b"\xef\xbb\xbf" + json.dumps(GOOD).encode()),
        http(200, json.dumps(GOOD).encode(), "Content-Type: text/plain"),
        http(200, gzip.compress(json.dumps(GOOD).encode()), "Content-Encoding: GZIP"),
        http(200, zlib.compress(json.dumps(GOOD).encode()), "Content-Encoding: deflate"),
        http(200, json.dumps(GOOD).encode(), "Content-Encoding: identity"),
        b"HTTP/1.1 200\r\n\r\n" + json.dumps(GOOD).encode(),
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + http_json(200, GOOD),
        http_json(200, GOOD, *("Set-Cookie: a=b" for _ in range(50))),
        http(200, json.dumps({**GOOD, "pad": "x" * 65_000}).encode()),
    ],
    ids=[
        "byte order mark", "text/plain", "gzip", "deflate", "identity", "no length",
        "early hints", "cookies", "just under the limit",
    ],
)  # fmt: skip
async def test_whatever_http_allows_is_understood(reply: bytes) -> None:
    async with answering(reply) as server, door_to(server.url) as openai:
        secret = await mint(openai)

    assert secret.value.get_secret_value() == GOOD["value"]


@pytest.mark.parametrize(
    ("status", "kind", "code", "expected"),
    [
        (400, "invalid_request_error", "unknown_parameter", UpstreamRejected),
        (400, "invalid_request_error", "missing_required_parameter", UpstreamRejected),
        (400, "invalid_request_error", "invalid_value", UpstreamRejected),
        (400, "invalid_request_error", "invalid_type", UpstreamRejected),
        (400, "invalid_request_error", "integer_below_min_value", UpstreamRejected),
        (400, "invalid_request_error", "beta_api_shape_disabled", UpstreamRejected),
        (401, "invalid_request_error", "invalid_api_key", UpstreamMisconfigured),
        (401, "invalid_request_error", "ip_not_authorized", UpstreamMisconfigured),
        (401, "invalid_request_error", None, UpstreamMisconfigured),
        (403, None, "unsupported_country_region_territory", UpstreamMisconfigured),
        (404, "invalid_request_error", "model_not_found", UpstreamRejected),
        (405, None, None, UpstreamRejected),
        (409, None, None, UpstreamRejected),
        (429, "rate_limit_error", "rate_limit_exceeded", UpstreamRateLimited),
        (429, "requests", "rate_limit_exceeded", UpstreamRateLimited),
        (429, "insufficient_quota", "rate_limit_exceeded", UpstreamRateLimited),
        (429, "rate_limit_error", "slow_down", UpstreamRateLimited),
        (429, "tokens", None, UpstreamRateLimited),
        (429, None, None, UpstreamRateLimited),
        (429, "insufficient_quota", "insufficient_quota", UpstreamQuotaExhausted),
        (429, "insufficient_quota", "credit_balance_exhausted", UpstreamQuotaExhausted),
        (429, "insufficient_quota", "organization_spend_limit_exceeded", UpstreamQuotaExhausted),
        (429, "insufficient_quota", "project_spend_limit_exceeded", UpstreamQuotaExhausted),
        (429, "insufficient_quota", "organization_usage_limit_exceeded", UpstreamQuotaExhausted),
        (429, "insufficient_quota", None, UpstreamQuotaExhausted),
        (429, "insufficient_quota", "a_code_of_next_year", UpstreamQuotaExhausted),
        (429, "rate_limit_error", "project_spend_limit_exceeded", UpstreamQuotaExhausted),
        (500, "server_error", None, UpstreamUnavailable),
        (503, "service_unavailable_error", "server_is_overloaded", UpstreamUnavailable),
    ],
)
async def test_a_refusal_becomes_its_problem_and_certainly_minted_nothing(
    status: int, kind: str | None, code: str | None, expected: type[UpstreamProblem]
) -> None:
    reply = openai_error(status, kind=kind, code=code)
    async with answering(reply) as server, door_to(server.url) as openai:
        problem = await problem_of(openai)

    assert type(problem) is expected
    assert problem.may_have_minted is False
    assert problem.upstream_status == status
    assert problem.upstream_code == (code or kind)
    assert problem.upstream_request_id == "req_plain"
    assert problem.retry_after_seconds == (10 if expected is UpstreamRateLimited else None)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "header", "seconds"),
    [
        (429, "7", 7),
        (429, "0", 1),
        (429, "999999999999999999999999", 10),
        (429, "3600", 300),
        (429, "-1", 10),
        (429, "1.5", 10),
        (429, "²", 10),
        (429, "Fri, 20 Nov 2026 12:00:42 GMT", 42),
        (429, "Fri, 20 Nov 2026 12:00:42 -0000", 42),
        (429, "Fri, 20 Nov 2026 11:00:00 GMT", 1),
        (429, "Sat, 01 Jan 0001 00:00:00 +2359", 1),
        (429, "Fri, 31 Dec 9999 23:59:59 -2359", 300),
        (429, "Fri, 20 Nov 99999 12:00:42 GMT", 10),
        (429, f"Fri, 20 Nov {'9' * 30} 12:00:42 GMT", 10),
        (429, f"Fri, 20 Nov {'9' * 5_000} 12:00:42 GMT", 10),
        (429, f"Fri, 20 Nov 2026 12:00:42 +{'9' * 11}", 10),
        (429, f"Fri, 20 Nov 2026 12:00:42 +{'9' * 30}", 10),
        (429, "Fri, 31 Nov 2026 25:61:61 GMT", 10),
        (429, "9" * 5_000, 10),
        (429, TEXT, 10),
        (503, "7", 7),
        (503, TEXT, None),
        (400, "7", None),
    ],
)
async def test_retry_after_is_taken_over_when_it_makes_sense(
    status: int, header: str, seconds: int | None
) -> None:
    reply = openai_error(status, f"Retry-After: {header}", kind="server_error", code=None)
    async with answering(reply) as server, door_to(server.url) as openai:
        problem = await problem_of(openai)

    assert problem.retry_after_seconds == seconds


async def test_out_of_money_never_says_when_to_come_back() -> None:
    reply = openai_error(429, "Retry-After: 7", kind="insufficient_quota", code=None)
    async with answering(reply) as server, door_to(server.url) as openai:
        problem = await problem_of(openai)

    assert problem.retry_after_seconds is None


@pytest.mark.parametrize(
    "reply",
    [
        http(502, f"<html>{TEXT}</html>".encode(), "Content-Type: text/html"),
        http_json(504, {"message": TEXT}),
        http_json(503, {"error": TEXT}),
        http_json(500, {"error": {"message": TEXT, "code": 500}}),
        http_json(500, [TEXT]),
        http(599, b""),
        http(503, TEXT.encode())[:-3],
    ],
)
async def test_a_gateway_in_trouble_may_have_passed_the_request_on(reply: bytes) -> None:
    async with answering(reply) as server, door_to(server.url) as openai:
        problem = await problem_of(openai)

    assert type(problem) is UpstreamUnavailable
    assert problem.may_have_minted is True


@pytest.mark.parametrize(
    ("code", "request_id"),
    [
        (f"Bad {TEXT}", f"req {TEXT}"),
        ("code\n", "r" * 129),
        ("c" * 65, "req_ü"),
        (["canary"], ""),
        ({"canary": 1}, "req/canary"),
        ("\ud800", "req_1, req_2"),
        (True, "a.canary"),
    ],
)
async def test_codes_and_ids_are_kept_only_in_their_plain_form(code: Any, request_id: str) -> None:
    body = {"error": {"message": TEXT, "type": code, "code": code}}
    reply = http_json(400, body, f"x-request-id: {request_id}")
    async with answering(reply) as server, door_to(server.url) as openai:
        problem = await problem_of(openai)

    assert type(problem) is UpstreamRejected
    assert problem.upstream_code is None
    assert problem.upstream_request_id is None


async def test_a_bomb_does_not_go_off() -> None:
    bomb = gzip.compress(b" " * 40_000_000)
    assert len(bomb) < 64 * 1024
    async with (
        answering(http(200, bomb, "Content-Encoding: gzip")) as server,
        door_to(server.url) as openai,
    ):
        tracemalloc.start()
        problem = await problem_of(openai)
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert type(problem) is UpstreamInvalidResponse
    assert peak_bytes < 4_000_000


def ok(body: bytes, *headers: str) -> bytes:
    return http(200, body, *headers)


BODY = json.dumps({**GOOD, "pad": TEXT}).encode()
UNREADABLE = {
    "no body": ok(b""),
    "text": ok(TEXT.encode()),
    "truncated JSON": ok(BODY[:-1]),
    "a list": ok(b"[" + BODY + b"]"),
    "null": ok(b"null"),
    "nested too deep": ok(b"[" * 60_000),
    "object nested too deep": ok(b'{"a":' * 12_000),
    "a number of 60,000 digits": ok(b'{"expires_at":' + b"1" * 60_000 + b"}"),
    "not UTF-8": ok(BODY.replace(b"canary", b"canary\xff")),
    "UTF-16": ok(BODY.decode().encode("utf-16")),
    "surrogate in UTF-8": ok(BODY.replace(b"canary", b"canary\xed\xa0\x80")),
    "an error": http_json(200, {"error": {"message": TEXT}}),
    "the removed beta shape": http_json(200, {"client_secret": GOOD}),
    **{
        f"value {value!r}": http_json(200, {**GOOD, "value": value})
        for value in (None, "", "ek_1234", "e" * 513, 12345678, ["ek_0123456789"], True)
    },
    **{
        f"value with {name}": http_json(200, {**GOOD, "value": value})
        for name, value in {
            "a blank": "ek_ 0123456789",
            "a newline": "ek_0123456789\n",
            "a letter outside ASCII": "ek_0123456789é",
            "a lone surrogate": "ek_0123456789\ud800",
            "a null character": "ek_0123456789\0",
        }.items()
    },
    **{
        f"expires_at {value!r}": http_json(200, {**GOOD, "expires_at": value})
        for value in (
            None, True, str(EXPIRES_AT), float(EXPIRES_AT), float("nan"), 0, -1, 2**63,
            EXPIRES_AT * 1000, EXPIRES_AT - 86_401, EXPIRES_AT + 86_401, [EXPIRES_AT],
        )
    },
    "two values": ok(b'{"value":"ek_0123456789","value":null,"expires_at":%d}' % EXPIRES_AT),
    "Content-Length too large": ok(BODY)[:-10],
    "chunks cut off": b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"a":\r\n',
    "a bad chunk size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\ncanary\r\n",
    "too large": ok(b" " * 65_536 + BODY),
    "too large in chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
     b"4000\r\n" + b" " * 0x4000 + b"\r\n" * 5 + b"0\r\n\r\n",
    "gzip bomb": ok(gzip.compress(b" " * 200_000 + BODY), "Content-Encoding: gzip"),
    "deflate bomb": ok(zlib.compress(b" " * 200_000 + BODY), "Content-Encoding: deflate"),
    "gzip cut off": ok(gzip.compress(BODY)[:-1], "Content-Encoding: gzip"),
    "gzip that is not": ok(BODY, "Content-Encoding: gzip"),
    "gzip twice": ok(gzip.compress(gzip.compress(BODY)), "Content-Encoding: gzip, gzip"),
    "an unknown coding": ok(BODY, "Content-Encoding: br"),
    "gzip that nobody announced": ok(gzip.compress(BODY)),
    "201": http_json(201, GOOD),
    "202": http_json(202, GOOD),
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "206": http_json(206, GOOD),
    "101": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: canary\r\nConnection: upgrade\r\n\r\n",
    "304": b"HTTP/1.1 304 Not Modified\r\n\r\n",
    "307": http_json(307, GOOD, f"Location: /{KEY}"),
    "600": http_json(600, GOOD),
    "999": http_json(999, GOOD),
    "not HTTP": b"SSH-2.0-canary of the text\r\n",
    "not text": bytes(range(256)),
    "HTTP of the future": b"HTTP/7.7 200 OK\r\n\r\n" + BODY,
    "a header of 100 KB": http_json(200, GOOD, "X-Canary: " + TEXT * 6_000),
    "5,000 headers": http_json(200, GOOD, *(f"X-{n}: {TEXT}" for n in range(5_000))),
    "a folded header": http_json(200, GOOD, f"X-Canary: 1\r\n {TEXT}\x00"),
    "two lengths": ok(BODY, "Content-Length: 7"),
    "a bad length": b"HTTP/1.1 200 OK\r\nContent-Length: canary\r\n\r\n" + BODY,
}  # fmt: skip


@pytest.mark.parametrize("reply", UNREADABLE.values(), ids=UNREADABLE.keys())
async def test_an_unreadable_answer_may_hide_a_secret(reply: bytes) -> None:
    async with answering(reply) as server, door_to(server.url) as openai:
        problem = await problem_of(openai)

    assert type(problem) is UpstreamInvalidResponse
    assert problem.may_have_minted is True
    assert len(server.requests) == 1
    assert b"HTTP/1.1 200" not in reply or problem.upstream_status in {200, None}
