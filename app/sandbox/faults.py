"""The sandbox alone, for the tests of other projects: OpenAI, and beside it OpenAI on a bad day.

A fault is an address, so that whatever can be pointed at OpenAI can be pointed at a fault, many at
a time and with nothing to reset: ``/faults/slow_down/v1`` is an API that refuses everything as
``slow_down``. Whole seconds may stand behind the name: ``/faults/slow_down/7/v1`` also says
``Retry-After: 7``.
"""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from http import HTTPStatus

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from app.base.clock import Clock
from app.sandbox.app import (
    Habits,
    OpenAIHeaders,
    SandboxModel,
    create_sandbox,
    refused,
    subprotocol_of,
)
from app.sandbox.client_secrets import ClientSecrets
from app.sandbox.connection import refuse
from app.sandbox.errors import Refusal

SLOW_SECONDS = 10  # unless the address says otherwise
SHORT_SESSION = timedelta(seconds=2)  # until it has expired

_UNAUTHENTICATED = 3000  # close code of a WebSocket; also without the permission
_NO_MODEL = 4004
_GOING_AWAY = 1001


def _limited(message: str, code: str, *, kind: str = "rate_limit_error") -> Refusal:
    return Refusal(message, code=code, kind=kind, status=HTTPStatus.TOO_MANY_REQUESTS)


def _out_of_money(message: str, code: str) -> Refusal:
    return _limited(f"{message} Check your plan and billing.", code, kind="insufficient_quota")


_REFUSALS = (
    Refusal(
        "Incorrect API key provided: sk-proj-********abcd. You can find your API key at"
        " https://platform.openai.com/account/api-keys.",
        code="invalid_api_key",
        status=HTTPStatus.UNAUTHORIZED,
        close_code=_UNAUTHENTICATED,
    ),
    Refusal(
        "Your IP address is not on the allow-list of this project.",
        code="ip_not_authorized",
        status=HTTPStatus.UNAUTHORIZED,
        close_code=_UNAUTHENTICATED,
    ),
    Refusal(
        "Country, region, or territory not supported.",
        code="unsupported_country_region_territory",
        kind="request_forbidden",
        status=HTTPStatus.FORBIDDEN,
        close_code=_UNAUTHENTICATED,
    ),
    Refusal(
        "You have insufficient permissions for this operation. Missing scopes: api.model.request.",
        code="insufficient_permissions",
        status=HTTPStatus.FORBIDDEN,
        close_code=_UNAUTHENTICATED,
    ),
    Refusal(
        "The model `gpt-realtime-2.1-mini` does not exist or you do not have access to it.",
        code="model_not_found",
        param="model",
        status=HTTPStatus.NOT_FOUND,
        close_code=_NO_MODEL,
    ),
    _limited("Rate limit reached for requests per minute.", "rate_limit_exceeded"),
    _limited("Your traffic grew too fast. Lower your rate, then grow slowly.", "slow_down"),
    _out_of_money("You exceeded your current quota.", "insufficient_quota"),
    _out_of_money("Your credit balance is used up.", "credit_balance_exhausted"),
    _out_of_money(
        "Your organization's spend limit is reached.", "organization_spend_limit_exceeded"
    ),
    _out_of_money("Your project's spend limit is reached.", "project_spend_limit_exceeded"),
    _out_of_money(
        "Your organization's usage limit is reached.", "organization_usage_limit_exceeded"
    ),
    Refusal(
        "The server had an error while processing your request. Sorry about that!",
        code="server_error",
        kind="server_error",
        status=HTTPStatus.INTERNAL_SERVER_ERROR,
    ),
    Refusal(
        "The engine is currently overloaded, please try again later.",
        code="server_is_overloaded",
        kind="service_unavailable_error",
        status=HTTPStatus.SERVICE_UNAVAILABLE,
    ),
)

_WITH_SECONDS = ("slow", *(str(refusal.code) for refusal in _REFUSALS))

FAULTS = (*_WITH_SECONDS, "cut_off", "single_use", "bare_address", "session_expired")
"""The names that an address may have."""


def create_stand_in(*, api_key: str, clock: Clock, models: Sequence[SandboxModel]) -> Starlette:
    """Return the sandbox at ``/v1`` and each fault at ``/faults/…/v1``.

    They share one memory: a client secret minted at one address is good at the others.

    Args:
        api_key: The one standard key it takes.
        clock: Ages client secrets and sessions.
        models: What exists; whatever is shut down is left out.
    """
    sandbox = partial(
        create_sandbox, api_key=api_key, clock=clock, models=models, secrets=ClientSecrets()
    )
    sound = sandbox()
    faults: dict[str, ASGIApp] = {
        **{str(refusal.code): _refusing(refusal) for refusal in _REFUSALS},
        "slow": _Slow(sound),
        "cut_off": _CutOff(sound),
        "single_use": sandbox(habits=Habits(single_use=True)),
        "bare_address": sandbox(habits=Habits(bare_address=True)),
        "session_expired": sandbox(habits=Habits(longest_session=SHORT_SESSION)),
    }
    return Starlette(
        routes=[
            Mount("/v1", sound),
            *(Mount(f"/faults/{name}/v1", fault) for name, fault in faults.items()),
            *(Mount(f"/faults/{name}/{{seconds:int}}/v1", faults[name]) for name in _WITH_SECONDS),
        ]
    )


def _refusing(refusal: Refusal) -> Starlette:
    """Return an API that does nothing but refuse."""

    async def refuse_request(request: Request) -> Response:
        answer = await refused(request, refusal)
        if "seconds" in request.path_params:
            answer.headers["Retry-After"] = str(request.path_params["seconds"])
        return answer

    async def refuse_connection(websocket: WebSocket) -> None:
        await websocket.accept(subprotocol=subprotocol_of(websocket))
        await refuse(websocket, refusal)

    return Starlette(
        routes=[
            Route("/{path:path}", refuse_request, methods=["GET", "POST"]),
            WebSocketRoute("/{path:path}", refuse_connection),
        ],
        middleware=[Middleware(OpenAIHeaders)],
    )


class _Slow:
    """Lets every answer, and every WebSocket, wait."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(scope["path_params"].get("seconds", SLOW_SECONDS))
        await self._app(scope, receive, send)


class _CutOff:
    """Breaks off in the middle: of an HTTP answer, of the first response in a session."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_half(message: Message) -> None:
            match message:
                case {"type": "http.response.body", "body": body}:
                    # What was announced never comes, so the server closes the connection.
                    await send({**message, "body": body[: len(body) // 2], "more_body": True})
                case {"type": "websocket.send", "text": str(event)} if '.delta"' in event:
                    await send(message)
                    await send({"type": "websocket.close", "code": _GOING_AWAY})
                    raise WebSocketDisconnect(_GOING_AWAY)
                case _:
                    await send(message)

        await self._app(scope, receive, send_half)
