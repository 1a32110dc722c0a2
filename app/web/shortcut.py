"""The mint past FastAPI, whose way to an endpoint costs more than the mint itself.

`app/web/realtime.py` declares the route, and there it is described. The answer is the same either
way, and `tests/test_shortcut.py` holds both to that; docs/performance.md has the figures.
"""

import json

from pydantic import TypeAdapter, ValidationError
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.base.errors import FieldError, InvalidRequest, Overloaded, Problem
from app.minting.admission import RETRY_AFTER_SECONDS
from app.runtime import Runtime
from app.web.callers import admit, take_no_parameters
from app.web.field_errors import field_errors, field_names
from app.web.problems import problem_response
from app.web.realtime import NOT_STORED, TokenRequest, TokenResponse, mint

PATH = "/realtime/token"

ONE_OF_MANY = "one_of_many"
"""In ``request.state.log``: a line a second is enough of these."""

_WISH: TypeAdapter[TokenRequest | None] = TypeAdapter(TokenRequest | None)
_ANSWER = TypeAdapter(TokenResponse)
_FIELDS = field_names(TokenRequest)


class Shortcut:
    """Answers ``POST /realtime/token``.

    It takes two things from before it: `BodyIntake` has the whole body, and it is JSON.

    Args:
        app: What answers everything else.
        public_url: For the problems, see ``problem_response``.
    """

    def __init__(self, app: ASGIApp, *, public_url: str) -> None:
        self.app = app
        self._public_url = public_url
        self._turn_away = _Overload(public_url)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; whatever is not a mint passes."""
        if scope["type"] != "http" or scope["path"] != PATH or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        runtime: Runtime = scope["state"]["runtime"]
        response: ASGIApp
        try:
            response = await _answer(scope, receive, runtime)
        except Overloaded:
            response = self._turn_away
        except Problem as problem:
            response = problem_response(problem, scope, public_url=self._public_url)
        await response(scope, receive, send)


class _Overload:
    """The answer to those who are too many, put into words once.

    They come by the thousand while mints are under way, and each takes time from those.
    """

    def __init__(self, public_url: str) -> None:
        name = "req_" + "0" * 26
        scope = {"path": PATH, "state": {"request_id": name}}
        problem = Overloaded(retry_after_seconds=RETRY_AFTER_SECONDS)
        response = problem_response(problem, scope, public_url=public_url)
        self._status = response.status_code
        self._headers = [field for field in response.raw_headers if field[0] != b"content-length"]
        self._before, self._after = bytes(response.body).split(name.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del receive  # the signature is ASGI's
        scope["state"]["log"][ONE_OF_MANY] = True
        body = self._before + scope["state"]["request_id"].encode() + self._after
        headers = [*self._headers, (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": self._status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def _answer(scope: Scope, receive: Receive, runtime: Runtime) -> Response:
    # Step 1: while there is not even a place to wait, nothing is spent. The mint would find that
    # out itself, but only behind the check of a signature.
    runtime.admission.check()

    # Step 2: who asks, and for what.
    caller = await admit(scope, runtime, needs="mint")
    take_no_parameters(scope)
    message = await receive()
    wish = _read(message.get("body", b""))

    # Step 3: mint.
    answer = await mint(caller, runtime, wish)
    return Response(_ANSWER.dump_json(answer, by_alias=True), 200, NOT_STORED, "application/json")


def _read(body: bytes) -> TokenRequest | None:
    """Return what *body* wishes for.

    Raises:
        InvalidRequest: It is not what the route reads; says why, field by field.
    """
    if not body:
        return None
    try:
        return _WISH.validate_python(json.loads(body))
    except json.JSONDecodeError:
        raise InvalidRequest(errors=[FieldError("body", "is not valid JSON")]) from None
    except ValidationError as error:
        faults = [{**fault, "loc": ("body", *fault["loc"])} for fault in error.errors()]
        raise InvalidRequest(errors=field_errors(faults, known=_FIELDS)) from None
    except (ValueError, RecursionError):  # not UTF-8, a number of 5,000 digits, nested too deep
        raise InvalidRequest(errors=[FieldError("body", "cannot be read")]) from None
