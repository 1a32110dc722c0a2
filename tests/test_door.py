import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Annotated, Any

import pytest
import structlog
import uvicorn
from fastapi import APIRouter, Body, FastAPI, Form, Request, WebSocket
from fastapi.responses import HTMLResponse, StreamingResponse
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from app.settings import Settings
from app.web.door import MAX_BODY_BYTES, cors_options, door
from app.web.problems import install_problem_handlers
from tests.log_lines import LogLines, captured_log

ORIGIN = "https://app.example.com"


def settings_for(**given: Any) -> Settings:
    values: dict[str, Any] = {
        "openai_api_key": SecretStr("sk-test"),
        "public_url": "https://tokens.example.com",
        "cors_origins": (ORIGIN,),
    }
    return Settings(_env_file=None, **{**values, **given})


routes = APIRouter()


@routes.post("/echo")
async def echo(request: Request, body: Annotated[dict[str, Any] | None, Body()] = None) -> Any:
    request.app.state.calls += 1
    return body


@routes.post("/auth/token")
async def token(grant_type: Annotated[str, Form()]) -> str:
    return grant_type


@routes.get("/state")
async def state(request: Request) -> dict[str, str]:
    request.state.log["actor"] = "usr_1"
    structlog.get_logger("app.testing").info("inside")
    return {"id": request.state.request_id, "address": request.state.client_address}


@routes.post("/wait")
async def wait(request: Request) -> None:
    await request.body()
    assert not await request.is_disconnected()
    request.app.state.waiting.set()
    assert (await request.receive())["type"] == "http.disconnect"
    request.app.state.gone.set()


@routes.get("/bug")
async def bug() -> None:
    raise RuntimeError("password=hunter2 in a bug")


@routes.get("/late-bug")
async def late_bug() -> StreamingResponse:
    async def parts() -> AsyncIterator[str]:
        yield "one"
        raise RuntimeError("too late")

    return StreamingResponse(parts())


@routes.get("/page")
async def page() -> HTMLResponse:
    return HTMLResponse("<p>", headers={"Content-Security-Policy": "style-src 'self'"})


@routes.websocket("/ws")
async def ws(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text(websocket.state.request_id)
    await websocket.close()


@routes.websocket("/ws-bug")
async def ws_bug(websocket: WebSocket) -> None:
    await websocket.accept()
    raise RuntimeError("in a WebSocket")


async def size(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


def app_behind_the_door(*, body_seconds: float = 5, **given: Any) -> FastAPI:
    """An application with one route for each thing that can happen; it counts calls of /echo."""
    settings = settings_for(**given)
    app = FastAPI(middleware=door(settings, body_seconds=body_seconds))
    install_problem_handlers(app, public_url=settings.public_url)
    app.include_router(routes)
    app.mount("/sandbox", Starlette(routes=[Route("/v1/calls", size, methods=["POST"])]))
    app.state.calls = 0
    app.state.waiting = asyncio.Event()
    app.state.gone = asyncio.Event()
    return app


@pytest.fixture(autouse=True)
def lines() -> Iterator[LogLines]:
    with captured_log() as lines:
        yield lines


@pytest.fixture
def client() -> TestClient:
    return TestClient(app_behind_the_door())


# Names and lines


@pytest.mark.parametrize("name", ["abc-123", "A" * 64, "trace.1_2"])
def test_a_short_plain_request_id_is_taken_over(
    client: TestClient, lines: LogLines, name: str
) -> None:
    answer = client.get("/state", headers={"X-Request-ID": name})

    assert answer.headers["x-request-id"] == name
    assert answer.json()["id"] == name
    assert {line["request_id"] for line in lines.all} == {name}


@pytest.mark.parametrize("name", ["", "A" * 65, "a b", "a\tb", "é", "x;y", '"', "ek_1"])
def test_any_other_request_id_is_replaced_by_one_of_ours(client: TestClient, name: str) -> None:
    answer = client.get("/state", headers={b"X-Request-ID": name.encode("latin-1")})

    assert answer.headers["x-request-id"].startswith("req_")
    assert answer.json()["id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("method", "path", "status", "level"),
    [
        ("GET", "/state", 200, "info"),
        ("HEAD", "/state", 200, "info"),
        ("GET", "/nowhere", 404, "warning"),
        ("DELETE", "/state", 405, "warning"),
        ("GET", "/bug", 500, "error"),
    ],
)
def test_each_request_leaves_one_line_and_its_name_on_the_answer(
    client: TestClient, lines: LogLines, method: str, path: str, status: int, level: str
) -> None:
    answer = client.request(method, f"{path}?token=hunter2")

    [line] = lines.requests()
    assert answer.status_code == status
    assert line["request_id"] == answer.headers["x-request-id"]
    assert (line["method"], line["path"], line["status"]) == (method, path, status)
    assert line["level"] == level
    assert line["client"] == "unknown"  # TestClient's peer is called testclient
    assert line["bytes"] == len(answer.content)
    assert 0 <= line["ms"] < 5_000
    assert "hunter2" not in lines.text


def test_other_code_may_add_to_the_line(client: TestClient, lines: LogLines) -> None:
    client.get("/state")

    [line] = lines.requests()
    assert line["actor"] == "usr_1"


def test_a_long_path_is_cut_in_the_line(client: TestClient, lines: LogLines) -> None:
    client.get("/" + "x" * 5_000)

    assert len(lines.last["path"]) == 200


def test_a_bug_says_nothing_to_the_client_and_everything_redacted_to_the_log(
    client: TestClient, lines: LogLines
) -> None:
    answer = client.get("/bug", headers={"Origin": ORIGIN})

    assert answer.status_code == 500
    assert answer.json()["code"] == "internal_error"
    assert answer.json()["requestId"] == answer.headers["x-request-id"]
    assert "hunter2" not in answer.text
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    [line] = lines.requests()
    assert "RuntimeError: password[redacted] in a bug" in line["exception"]
    assert "test_door.py" in line["exception"]


def test_a_bug_after_the_answer_began_is_logged_too(client: TestClient, lines: LogLines) -> None:
    client.get("/late-bug")

    [line] = lines.requests()
    assert (line["status"], line["level"]) == (200, "error")
    assert "RuntimeError: too late" in line["exception"]


async def test_a_request_that_the_server_cancels_leaves_its_line(lines: LogLines) -> None:
    app = app_behind_the_door()
    started = asyncio.Event()

    async def receive() -> dict[str, Any]:
        started.set()
        await asyncio.Event().wait()
        raise AssertionError

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/echo",
        "query_string": b"",
        "headers": [(b"content-length", b"5")],
        "client": ("203.0.113.7", 1),
    }
    task = asyncio.create_task(app(scope, receive, lambda _: asyncio.sleep(0)))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    [line] = lines.requests()
    assert (line["status"], line["cancelled"]) == (None, True)


def test_a_websocket_passes_with_a_name_and_a_line(client: TestClient, lines: LogLines) -> None:
    with client.websocket_connect("/ws") as websocket:
        name = websocket.receive_text()

    [line] = lines.requests()
    assert name == line["request_id"]
    assert (line["method"], line["path"], line["status"]) == ("WEBSOCKET", "/ws", 101)


def test_a_bug_in_a_websocket_is_left_to_the_server_to_close_it(
    client: TestClient, lines: LogLines
) -> None:
    with (
        pytest.raises(RuntimeError, match="in a WebSocket"),
        client.websocket_connect("/ws-bug") as websocket,
    ):
        websocket.receive_text()

    [line] = lines.requests()
    assert (line["status"], line["level"]) == (101, "error")


def test_the_address_is_the_one_that_a_trusted_proxy_reports(lines: LogLines) -> None:
    app = app_behind_the_door(trusted_proxies=(ip_network("10.0.0.0/8"),))
    client = TestClient(app, client=("10.0.0.1", 80))

    answer = client.get("/state", headers={"X-Forwarded-For": "6.6.6.6, 198.51.100.1"})

    assert answer.json()["address"] == "198.51.100.1"
    assert lines.requests()[0]["client"] == "198.51.100.1"


# Headers


@pytest.mark.parametrize("path", ["/state", "/nowhere", "/bug"])
def test_every_answer_carries_the_security_headers(client: TestClient, path: str) -> None:
    headers = client.get(path).headers

    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["strict-transport-security"] == "max-age=31536000"


def test_a_route_may_set_its_own_content_security_policy(client: TestClient) -> None:
    policies = client.get("/page").headers.get_list("content-security-policy")

    assert policies == ["style-src 'self'"]


def test_https_is_insisted_on_only_where_there_is_https() -> None:
    client = TestClient(app_behind_the_door(public_url="http://127.0.0.1:8000"))

    assert "strict-transport-security" not in client.get("/state").headers


# Other origins


def test_a_preflight_of_a_known_origin_is_answered_with_a_name(client: TestClient) -> None:
    answer = client.options(
        "/echo",
        headers={
            "Origin": ORIGIN,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type,x-request-id",
        },
    )

    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert answer.headers["access-control-max-age"] == "600"
    assert "access-control-allow-credentials" not in answer.headers
    assert answer.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    ("asked", "value"),
    [
        ("Origin", "https://evil.example.com"),
        ("Origin", "https://app.example.com.evil.example"),
        ("Origin", "null"),
        ("Access-Control-Request-Method", "DELETE"),
        ("Access-Control-Request-Headers", "x-other"),
    ],
)
def test_any_other_preflight_is_refused(client: TestClient, asked: str, value: str) -> None:
    headers = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST", asked: value}

    assert client.options("/echo", headers=headers).status_code == 400


@pytest.mark.parametrize(
    ("method", "path", "status", "content"),
    [
        ("GET", "/state", 200, None),
        ("GET", "/nowhere", 404, None),
        ("GET", "/bug", 500, None),
        ("POST", "/echo", 413, b"x" * (MAX_BODY_BYTES + 1)),
        ("POST", "/echo", 415, b"x"),
    ],
)
def test_the_browser_of_a_known_origin_may_read_every_answer(
    client: TestClient, method: str, path: str, status: int, content: bytes | None
) -> None:
    answer = client.request(method, path, content=content, headers={"Origin": ORIGIN})

    assert answer.status_code == status
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert answer.headers["access-control-expose-headers"] == "Retry-After, X-Request-ID"
    assert "Origin" in answer.headers["vary"]


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://localhost:5173", True),
        ("http://127.0.0.1", True),
        (ORIGIN, True),
        ("https://localhost:5173", False),
        ("http://localhost.evil.example", False),
        ("http://localhost:5173.evil.example", False),
        ("http://127x0x0x1", False),
    ],
)
def test_the_sandbox_also_lets_pages_of_this_machine_in(origin: str, *, allowed: bool) -> None:
    sandbox = TestClient(app_behind_the_door(openai_api_key=None))
    live = TestClient(app_behind_the_door())

    headers = {"Origin": origin}
    assert ("access-control-allow-origin" in sandbox.get("/state", headers=headers).headers) == (
        allowed
    )
    if origin != ORIGIN:
        assert "access-control-allow-origin" not in live.get("/state", headers=headers).headers


def test_no_origin_may_send_cookies() -> None:
    assert "allow_credentials" not in cors_options(settings_for())


# Bodies


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "application/json; charset=utf-8", 'Application/JSON;charset="UTF-8"'],
)
def test_json_is_read(client: TestClient, content_type: str) -> None:
    answer = client.post("/echo", content=b'{"a": 1}', headers={"Content-Type": content_type})

    assert answer.json() == {"a": 1}


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/json; charset=utf-16",
        "application/jsonp",
        "application/merge-patch+json",
        "multipart/form-data; boundary=x",
        "",
        "é",
    ],
)
def test_json_by_another_name_is_refused(client: TestClient, content_type: str) -> None:
    answer = client.post(
        "/echo", content=b'{"a": 1}', headers={b"Content-Type": content_type.encode("latin-1")}
    )

    assert answer.status_code == 415
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "unsupported_media_type"
    assert "application/json" in answer.json()["detail"]
    assert answer.json()["requestId"] == answer.headers["x-request-id"]


def test_the_token_endpoint_reads_forms_and_refuses_json_as_oauth_says(client: TestClient) -> None:
    form = client.post("/auth/token", data={"grant_type": "password"})
    other = client.post("/auth/token", json={"grant_type": "password"})

    assert form.json() == "password"
    assert other.status_code == 415
    assert other.json()["error"] == "invalid_request"
    assert "application/x-www-form-urlencoded" in other.json()["error_description"]


def test_a_body_may_be_left_out_and_then_needs_no_content_type(client: TestClient) -> None:
    assert client.post("/echo").json() is None
    assert client.post("/echo", content=iter([b""])).json() is None


def test_a_body_with_get_means_nothing_but_is_limited_like_any_other(client: TestClient) -> None:
    small = client.request("GET", "/state", content=b"x")
    large = client.request("GET", "/state", content=b"x" * (MAX_BODY_BYTES + 1))

    assert small.status_code == 200
    assert large.status_code == 413


def test_a_body_of_exactly_the_limit_is_read(client: TestClient) -> None:
    body = json.dumps({"a": "x" * (MAX_BODY_BYTES - 9)}).encode()
    assert len(body) == MAX_BODY_BYTES

    for content in (body, iter([body[:1000], body[1000:]])):
        answer = client.post("/echo", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 200
        assert len(answer.json()["a"]) == MAX_BODY_BYTES - 9


def test_the_stand_in_for_openai_reads_what_it_likes(client: TestClient, lines: LogLines) -> None:
    answer = client.post("/sandbox/v1/calls", content=b"x" * 100_000)

    assert answer.text == "100000"
    assert answer.headers["x-request-id"] == lines.requests()[0]["request_id"]


# The same from a socket: what a well-behaved HTTP client cannot do


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes


class Peer:
    """One end of a TCP connection to the service."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def reply(self) -> Reply:
        async with asyncio.timeout(5):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.split(": ", 1) for line in head[1:-2])
            body = await self.reader.readexactly(int(headers["content-length"]))
        return Reply(int(head[0].split()[1]), headers, body)

    async def closed(self) -> bool:
        async with asyncio.timeout(5):
            return await self.reader.read() == b""


@asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[int]:
    """Serve *app* with uvicorn on a free port of this machine."""
    config = uvicorn.Config(
        app, lifespan="off", log_config=None, proxy_headers=False, server_header=False
    )
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        await server.startup(sockets=[listening])
        try:
            yield listening.getsockname()[1]
        finally:
            await server.shutdown(sockets=[listening])


@asynccontextmanager
async def connected(app: FastAPI) -> AsyncIterator[Peer]:
    async with served(app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with closing(writer):
            yield Peer(reader, writer)


def head(*lines: str, path: str = "/echo") -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", *lines, "", ""]).encode()


JSON = "Content-Type: application/json"


async def test_a_body_that_says_it_is_too_large_is_refused_unread(lines: LogLines) -> None:
    app = app_behind_the_door()
    async with connected(app) as peer:
        await peer.send(head(JSON, "Content-Length: 65537"))
        reply = await peer.reply()

    assert reply.status == 413
    assert json.loads(reply.body)["code"] == "body_too_large"
    assert reply.headers["connection"] == "close"
    assert reply.headers["x-request-id"] == json.loads(reply.body)["requestId"]
    assert app.state.calls == 0
    assert lines.requests()[0]["status"] == 413


async def test_a_client_that_asks_before_sending_too_much_is_told_not_to() -> None:
    async with connected(app_behind_the_door()) as peer:
        await peer.send(head(JSON, "Content-Length: 65537", "Expect: 100-continue"))

        assert (await peer.reply()).status == 413


async def test_a_body_without_a_stated_size_is_counted() -> None:
    app = app_behind_the_door()
    async with connected(app) as peer:
        await peer.send(head(JSON, "Transfer-Encoding: chunked"))
        for _ in range(17):
            await peer.send(b"1000\r\n" + b" " * 0x1000 + b"\r\n")
        reply = await peer.reply()

    assert reply.status == 413
    assert app.state.calls == 0


async def test_the_refusal_reaches_a_client_that_first_sends_everything() -> None:
    async with connected(app_behind_the_door()) as peer:
        await peer.send(head(JSON, "Content-Length: 20000000") + b" " * 20_000_000)
        reply = await peer.reply()

        assert reply.status == 413
        assert await peer.closed()


async def test_a_body_that_stops_arriving_is_given_up(lines: LogLines) -> None:
    app = app_behind_the_door(body_seconds=0.05)
    async with connected(app) as peer:
        await peer.send(head(JSON, "Content-Length: 10") + b"{")
        reply = await peer.reply()

    assert reply.status == 408
    assert json.loads(reply.body)["code"] == "request_timeout"
    assert reply.headers["connection"] == "close"
    assert app.state.calls == 0
    assert lines.requests()[0]["status"] == 408


async def test_a_body_that_drips_does_not_win_time() -> None:
    app = app_behind_the_door(body_seconds=0.2)
    async with connected(app) as peer:
        await peer.send(head(JSON, "Content-Length: 1000"))
        reply = asyncio.create_task(peer.reply())
        drops = 0
        while not reply.done() and drops < 500:
            await peer.send(b" ")
            drops += 1
            await asyncio.wait([reply], timeout=0.01)

    assert (await reply).status == 408
    assert drops < 500
    assert app.state.calls == 0


async def test_a_client_that_hangs_up_while_sending_costs_nothing(lines: LogLines) -> None:
    app = app_behind_the_door()
    async with connected(app) as peer:
        await peer.send(head(JSON, "Content-Length: 10", "Expect: 100-continue"))
        await peer.reader.readuntil(b"100 Continue\r\n\r\n")  # now the service waits for more
        await peer.send(b"{")
        peer.writer.close()

    [line] = lines.requests()
    assert (line["status"], line["client_gone"], line["level"]) == (None, True, "info")
    assert app.state.calls == 0
    assert [line for line in lines.all if line["level"] == "error"] == []


async def test_a_route_learns_that_its_client_has_gone_and_only_then() -> None:
    app = app_behind_the_door()
    async with connected(app) as peer:
        await peer.send(head(JSON, "Content-Length: 2", path="/wait") + b"{}")
        async with asyncio.timeout(5):
            await app.state.waiting.wait()
        assert not app.state.gone.is_set()
        peer.writer.close()

        async with asyncio.timeout(5):
            await app.state.gone.wait()


async def test_a_connection_serves_one_request_after_the_other() -> None:
    async with connected(app_behind_the_door()) as peer:
        for number in range(3):
            body = b'{"n": %d}' % number
            await peer.send(head(JSON, f"Content-Length: {len(body)}") + body)
            assert json.loads((await peer.reply()).body) == {"n": number}


async def test_a_chunked_body_arrives_whole() -> None:
    async with connected(app_behind_the_door()) as peer:
        await peer.send(head(JSON, "Transfer-Encoding: chunked") + b'5\r\n{"a":\r\n')
        await peer.send(b"3\r\n 1}\r\n0\r\n\r\n")

        assert json.loads((await peer.reply()).body) == {"a": 1}


async def test_no_answer_says_what_server_this_is() -> None:
    async with connected(app_behind_the_door()) as peer:
        await peer.send(head("Content-Length: 0"))

        assert "server" not in (await peer.reply()).headers
