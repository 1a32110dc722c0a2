"""What the sandbox refuses, in OpenAI's words and shapes.

The same refusal is an HTTP body, an ``error`` event in a session, or the event before the socket is
closed, depending on where it comes up.
"""

from http import HTTPStatus

from app.minting.json_shape import Fault, shown

_SHORTEST_SHOWN_KEY = 16  # characters; of a shorter key nothing is repeated


class Refusal(Exception):
    """OpenAI would not do this.

    Args:
        message: OpenAI's sentence.
        code: OpenAI's code; some refusals have none.
        param: The member at fault, dotted.
        kind: OpenAI's ``type`` of the error.
        status: What an HTTP route answers.
        close_code: What a WebSocket is closed with when it was not let in.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        kind: str = "invalid_request_error",
        status: HTTPStatus = HTTPStatus.BAD_REQUEST,
        close_code: int = 4000,
    ) -> None:
        self.message = message
        self.code = code
        self.param = param
        self.kind = kind
        self.status = status
        self.close_code = close_code
        super().__init__(message)

    @property
    def error(self) -> dict[str, str | None]:
        """The ``error`` object, without the ``event_id`` that events add."""
        return {
            "type": self.kind,
            "code": self.code,
            "message": self.message,
            "param": self.param,
        }

    @property
    def close_reason(self) -> str:
        """What OpenAI says in the close frame: type and code, or the type alone."""
        return f"{self.kind}.{self.code}" if self.code else self.kind


def refusal_of(fault: Fault) -> Refusal:
    """Return the refusal that *fault* leads to."""
    return Refusal(fault.message, code=fault.code, param=fault.param)


def incorrect_api_key(key: str) -> Refusal:
    """Return the refusal of a bad credential. Like OpenAI's, it repeats the ends of the key."""
    masked = f"{key[:8]}********{key[-4:]}" if len(key) >= _SHORTEST_SHOWN_KEY else "********"
    return Refusal(
        f"Incorrect API key provided: {masked}. You can find your API key at"
        " https://platform.openai.com/account/api-keys.",
        code="invalid_api_key",
        status=HTTPStatus.UNAUTHORIZED,
        close_code=3000,
    )


def missing_credential() -> Refusal:
    """Return the refusal of a request without a credential."""
    return Refusal(
        "Missing bearer or basic authentication in header",
        status=HTTPStatus.UNAUTHORIZED,
        close_code=3000,
    )


def beta_disabled() -> Refusal:
    """Return the refusal of everything that belongs to the beta, off since 2026-05-12."""
    return Refusal(
        "The Realtime beta API shape is disabled. Use POST /v1/realtime/client_secrets and the GA"
        " session object, without the header OpenAI-Beta: realtime=v1.",
        code="beta_api_shape_disabled",
    )


def invalid_model(model: str) -> Refusal:
    """Return the refusal to connect to a model that is unknown or no realtime model."""
    return Refusal(
        f'Model "{shown(model)}" is not supported in realtime mode.',
        code="invalid_model",
        param="model",
    )


def missing_model() -> Refusal:
    """Return the refusal to connect when nothing says to which model."""
    return Refusal(
        "You must provide a model parameter, for example"
        " wss://api.openai.com/v1/realtime?model=gpt-realtime-2.1-mini.",
        code="missing_model",
        param="model",
    )


def item_not_found(item_id: str, param: str) -> Refusal:
    """Return the refusal of an id that names no item of the conversation."""
    return Refusal(
        f"Item with item_id '{shown(item_id)}' not found.", code="item_not_found", param=param
    )
