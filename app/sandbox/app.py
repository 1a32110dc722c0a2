"""The HTTP and WebSocket doors of the stand-in, mounted by the service at ``/sandbox/v1``."""

import hmac
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from app.base.clock import Clock
from app.minting.json_shape import OBJECT, integer, one_of, record, shown
from app.minting.session_shape import faults
from app.sandbox.client_events import parse_json
from app.sandbox.client_secrets import PREFIX, ClientSecrets
from app.sandbox.connection import Connection, refuse
from app.sandbox.errors import (
    Refusal,
    beta_disabled,
    incorrect_api_key,
    invalid_model,
    missing_credential,
    missing_model,
    refusal_of,
)
from app.sandbox.ids import openai_id
from app.sandbox.session import in_force, shown_as

MOST_BODY_BYTES = 1024 * 1024
MOST_CONNECTIONS = 100
DEFAULT_TTL_SECONDS = 600

_KEY_SUBPROTOCOL = "openai-insecure-api-key."
_BETA_SUBPROTOCOL = "openai-beta.realtime-v1"

_MINT = record(
    {
        "expires_after": record({"anchor": one_of("created_at"), "seconds": integer(10, 7_200)}),
        "session": OBJECT,  # looked into by faults()
    }
)


@dataclass(frozen=True, slots=True)
class SandboxModel:
    """A model as ``GET /models`` lists it.

    Args:
        id: Such as ``gpt-realtime-2.1-mini``.
        created: Unix seconds.
        shutdown_date: ``YYYY-MM-DD``, when there is one.
        realtime: Whether the WebSocket may be connected to it.
    """

    id: str
    created: int
    shutdown_date: str | None
    realtime: bool


@dataclass(frozen=True, slots=True)
class Habits:
    """What a sandbox does where OpenAI's own behaviour is contested, or long in coming.

    Args:
        delta_seconds: Pause after each delta of a response.
        longest_session: When a session ends, whatever goes on in it.
        single_use: A client secret opens one session only.
        bare_address: ``?model=`` is refused beside a client secret.
    """

    delta_seconds: float = 0.01  # slow enough to be seen and interrupted, far faster than speech
    longest_session: timedelta = timedelta(minutes=60)
    single_use: bool = False
    bare_address: bool = False


def create_sandbox(
    *,
    api_key: str,
    clock: Clock,
    models: Sequence[SandboxModel],
    secrets: ClientSecrets | None = None,
    habits: Habits = Habits(),
) -> Starlette:
    """Return the sandbox, an ASGI application.

    Args:
        api_key: The one standard key it takes.
        clock: Ages client secrets and sessions.
        models: What exists; whatever is shut down is left out.
        secrets: The client secrets it takes, when it shares them with another sandbox.
        habits: What it does where it has a choice.
    """
    sandbox = _Sandbox(
        api_key=api_key,
        clock=clock,
        models=models,
        secrets=secrets or ClientSecrets(),
        habits=habits,
    )
    app = Starlette(
        routes=[
            Route(
                "/realtime/client_secrets",
                sandbox.create_client_secret,
                methods=["POST"],
                max_body_size=MOST_BODY_BYTES,
            ),
            Route("/realtime/sessions", sandbox.refuse_beta, methods=["POST"]),
            Route("/realtime/transcription_sessions", sandbox.refuse_beta, methods=["POST"]),
            Route("/models", sandbox.list_models, methods=["GET"]),
            WebSocketRoute("/realtime", sandbox.connect),
        ],
        exception_handlers={Refusal: refused, HTTPException: refused},
        middleware=[Middleware(OpenAIHeaders)],
    )
    app.router.redirect_slashes = False  # a redirect would repeat the Host header
    return app


class _Sandbox:
    """Holds what one sandbox shares: its key, its secrets, its clock."""

    def __init__(
        self,
        *,
        api_key: str,
        clock: Clock,
        models: Sequence[SandboxModel],
        secrets: ClientSecrets,
        habits: Habits,
    ) -> None:
        self._api_key = api_key
        self._clock = clock
        self._models = tuple(models)
        self._realtime_models = {model.id for model in models if model.realtime}
        self._secrets = secrets
        self._habits = habits
        self._connections = 0

    async def create_client_secret(self, request: Request) -> Response:
        """Answer ``POST /realtime/client_secrets``."""
        self._check_standard_key(_bearer(request))
        if _asks_for_beta(request):
            raise beta_disabled()
        asked = await _json_object(request)
        session = asked.get("session", {"type": "realtime"})
        for fault in _MINT.faults(asked, ""):
            raise refusal_of(fault)
        for fault in faults(session):
            raise refusal_of(fault)
        ttl_seconds = asked.get("expires_after", {}).get("seconds", DEFAULT_TTL_SECONDS)
        value, expires_at = self._secrets.mint(session, ttl_seconds=ttl_seconds, now=self._clock())
        echo = shown_as(in_force(session), session_id=openai_id("sess"), expires_at=0)
        return _json({"value": value, "expires_at": expires_at, "session": echo})

    async def refuse_beta(self, request: Request) -> Response:
        """Answer the endpoints of the beta."""
        self._check_standard_key(_bearer(request))
        raise beta_disabled()

    async def list_models(self, request: Request) -> Response:
        """Answer ``GET /models``."""
        self._check_standard_key(_bearer(request))
        listed = [
            {
                "id": model.id,
                "object": "model",
                "created": model.created,
                "owned_by": "system",
                "shutdown_date": model.shutdown_date,
            }
            for model in self._models
        ]
        return _json({"object": "list", "data": listed})

    async def connect(self, websocket: WebSocket) -> None:
        """Let a WebSocket in, then say what is wrong with it: that is OpenAI's order."""
        if "call_id" in websocket.query_params:
            # The one thing OpenAI refuses before the upgrade; the sandbox has no calls.
            await websocket.send_denial_response(Response(status_code=HTTPStatus.NOT_FOUND))
            return
        await websocket.accept(subprotocol=subprotocol_of(websocket))
        self._connections += 1
        try:
            session = self._session_for(websocket)
            await Connection(
                websocket,
                session,
                clock=self._clock,
                delta_seconds=self._habits.delta_seconds,
                longest=self._habits.longest_session,
            ).run()
        except Refusal as refusal:
            await refuse(websocket, refusal)
        finally:
            self._connections -= 1

    def _session_for(self, websocket: WebSocket) -> dict[str, Any]:
        """Return the session that *websocket* is to have.

        Raises:
            Refusal: The credential is bad, the model cannot be connected to, the client speaks the
                beta, or there are too many connections.
        """
        credential = _subprotocol_key(websocket) or _bearer(websocket)
        model = websocket.query_params.get("model")
        if credential.startswith(PREFIX):
            now = self._clock()
            bound = self._secrets.use(credential, now=now, single_use=self._habits.single_use)
            allowed = (None,) if self._habits.bare_address else (None, bound.get("model", model))
            if model not in allowed:
                raise invalid_model(str(model))
        else:
            self._check_standard_key(credential)
            transcribes = model is None and websocket.query_params.get("intent") == "transcription"
            bound = {"type": "transcription" if transcribes else "realtime"}
        if _asks_for_beta(websocket):
            raise beta_disabled()
        if self._connections > MOST_CONNECTIONS:
            raise Refusal(
                f"The sandbox holds at most {MOST_CONNECTIONS} connections.",
                code="server_is_overloaded",
                kind="service_unavailable_error",
            )
        if bound["type"] == "transcription" and model is None:
            return in_force(bound)
        model = model or bound.get("model")
        if model is None:
            raise missing_model()
        if bound["type"] == "transcription" or model not in self._realtime_models:
            raise invalid_model(model)
        return in_force({**bound, "model": model})

    def _check_standard_key(self, credential: str) -> None:
        if not hmac.compare_digest(credential.encode(), self._api_key.encode()):
            raise incorrect_api_key(credential)


def _bearer(connection: HTTPConnection) -> str:
    scheme, _, credential = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not credential.strip():
        raise missing_credential()
    return credential.strip()


def subprotocol_of(websocket: WebSocket) -> str | None:
    """Return the subprotocol to select, which a browser insists on."""
    return "realtime" if "realtime" in websocket.scope["subprotocols"] else None


def _subprotocol_key(websocket: WebSocket) -> str | None:
    """Return the credential of a browser, which can set no header."""
    for offered in websocket.scope["subprotocols"]:
        if offered.startswith(_KEY_SUBPROTOCOL):
            return str(offered.removeprefix(_KEY_SUBPROTOCOL))
    return None


def _asks_for_beta(connection: HTTPConnection) -> bool:
    return "realtime=v1" in connection.headers.get("openai-beta", "") or (
        _BETA_SUBPROTOCOL in connection.scope.get("subprotocols", ())
    )


async def _json_object(request: Request) -> dict[str, Any]:
    unreadable = Refusal(
        "We could not parse the JSON body of your request. The OpenAI API expects a JSON payload."
    )
    body = parse_json(await request.body() or b"{}", refusal=unreadable)
    if not isinstance(body, dict):
        raise unreadable
    return body


def _json(content: Mapping[str, object], status: int = HTTPStatus.OK) -> Response:
    # ASCII only: a lone surrogate, which JSON can hold, could not be sent as UTF-8.
    return Response(json.dumps(content), status, media_type="application/json")


async def refused(request: Request, failure: Exception) -> Response:
    """Answer in OpenAI's shape what could not be answered otherwise."""
    place = f"{request.method} {shown(request.url.path)}"
    match failure:
        case Refusal():
            refusal = failure
        case HTTPException(status_code=HTTPStatus.METHOD_NOT_ALLOWED):
            refusal = Refusal(f"Not allowed: {place}.", status=HTTPStatus.METHOD_NOT_ALLOWED)
        case _:
            refusal = Refusal(f"Invalid URL ({place})", status=HTTPStatus.NOT_FOUND)
    return _json({"error": refusal.error}, refusal.status)


class OpenAIHeaders:
    """Adds the headers that OpenAI sends with every HTTP answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on, and put the headers on the answer."""
        began = time.perf_counter()

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["openai-version"] = "2020-10-01"
                headers["openai-organization"] = "sandbox"
                headers["openai-processing-ms"] = str(round(1000 * (time.perf_counter() - began)))
                headers["x-request-id"] = openai_id("req")
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)
