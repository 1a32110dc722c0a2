"""The events a client may send, and what they must look like."""

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from app.minting.json_shape import (
    FLAG,
    NULL,
    OBJECT,
    TEXT,
    Shape,
    array,
    either,
    integer,
    mapping,
    one_of,
    record,
    text,
    unsupported_value,
    variants,
)
from app.minting.session_shape import (
    AUDIO_FORMAT,
    MAX_OUTPUT_TOKENS,
    MODALITIES,
    PROMPT,
    REASONING,
    TOOL_CHOICE,
    TOOLS,
    VOICE,
    response_conflicts,
)
from app.sandbox.errors import Refusal, refusal_of

_DEEPEST = 100  # levels of JSON

_ID = text(longest=32)

_ITEM_MEMBERS = {
    "id": _ID,
    "object": one_of("realtime.item"),
    "type": TEXT,
    "status": one_of("completed", "incomplete", "in_progress"),
}

_INPUT_TEXT = record({"type": TEXT, "text": TEXT}, required=["text"])
_TRANSCRIPT = either(TEXT, NULL)


def _message(role: str, content: Mapping[str, Shape]) -> dict[str, Shape]:
    members = {**_ITEM_MEMBERS, "role": TEXT, "content": array(variants(content))}
    return {role: record(members, required=["content"])}


_ITEMS: dict[str, Shape] = {
    "message": variants(
        {
            **_message("system", {"input_text": _INPUT_TEXT}),
            **_message(
                "user",
                {
                    "input_text": _INPUT_TEXT,
                    "input_audio": record(
                        {"type": TEXT, "audio": TEXT, "transcript": _TRANSCRIPT},
                        required=["audio"],
                    ),
                    "input_image": record(
                        {"type": TEXT, "image_url": TEXT, "detail": one_of("auto", "low", "high")},
                        required=["image_url"],
                    ),
                },
            ),
            **_message(
                "assistant",
                {
                    "output_text": _INPUT_TEXT,
                    "output_audio": record(
                        {"type": TEXT, "audio": TEXT, "transcript": _TRANSCRIPT}
                    ),
                },
            ),
        },
        told_by="role",
    ),
    "function_call": record(
        {**_ITEM_MEMBERS, "call_id": TEXT, "name": TEXT, "arguments": TEXT},
        required=["name", "arguments"],
    ),
    "function_call_output": record(
        {**_ITEM_MEMBERS, "call_id": TEXT, "output": TEXT}, required=["call_id", "output"]
    ),
}

_REFERENCE = record({"type": TEXT, "id": _ID}, required=["id"])

_RESPONSE = record(
    {
        "instructions": TEXT,
        "output_modalities": MODALITIES,
        "audio": record({"output": record({"format": AUDIO_FORMAT, "voice": VOICE})}),
        "tools": TOOLS,
        "tool_choice": TOOL_CHOICE,
        "parallel_tool_calls": FLAG,
        "reasoning": REASONING,
        "max_output_tokens": MAX_OUTPUT_TOKENS,
        "conversation": one_of("auto", "none"),
        "metadata": either(mapping(text(longest=512), most=16), NULL),
        "prompt": PROMPT,
        "input": array(variants({**_ITEMS, "item_reference": _REFERENCE})),
    }
)


def _event(members: Mapping[str, Shape] = {}, *, optional: Mapping[str, Shape] = {}) -> Shape:
    return record(
        {"type": TEXT, "event_id": text(longest=512), **members, **optional},
        required=list(members),
    )


_EVENTS = {
    "session.update": _event({"session": OBJECT}),  # looked into by session.updated()
    "input_audio_buffer.append": _event({"audio": TEXT}),
    "input_audio_buffer.commit": _event(),
    "input_audio_buffer.clear": _event(),
    "conversation.item.create": _event(
        {"item": variants(_ITEMS)}, optional={"previous_item_id": either(TEXT, NULL)}
    ),
    "conversation.item.truncate": _event(
        {"item_id": TEXT, "content_index": integer(0), "audio_end_ms": integer(0)}
    ),
    "conversation.item.delete": _event({"item_id": TEXT}),
    "conversation.item.retrieve": _event({"item_id": TEXT}),
    "response.create": _event(optional={"response": either(_RESPONSE, NULL)}),
    "response.cancel": _event(optional={"response_id": either(TEXT, NULL)}),
}

# As OpenAI lists them: two belong to translation sessions, which the sandbox does not have.
_LISTED = (
    "session.update",
    "session.close",
    "input_audio_buffer.append",
    "session.input_audio_buffer.append",
    *list(_EVENTS)[2:],
)


def read_event(frame: str | None) -> dict[str, Any]:
    """Return the event in *frame*, a text frame, or None for a binary one; not yet checked.

    Raises:
        Refusal: There is no event in it.
    """
    if frame is None:
        raise Refusal(
            "Expected a text WebSocket message; binary frames are not supported.",
            code="invalid_event",
        )
    event = parse_json(
        frame, refusal=Refusal("Invalid event: failed to parse JSON value.", code="invalid_json")
    )
    if not isinstance(event, dict) or not isinstance(event.get("type"), str):
        raise Refusal(
            "Invalid event: expected a JSON object with a string 'type'.", code="invalid_event"
        )
    return event


def check_event(event: Mapping[str, Any], *, session_type: str) -> None:
    """Check that *event* may be sent in a session of *session_type*.

    Raises:
        Refusal: The event is unknown, misshapen, or of no use in this session.
    """
    kind = event["type"]
    if kind not in _EVENTS:
        raise refusal_of(unsupported_value("type", kind, _LISTED))
    for fault in _EVENTS[kind].faults(event, ""):
        raise refusal_of(fault)
    for fault in response_conflicts(event.get("response") or {}, at="response"):
        raise refusal_of(fault)
    if session_type == "transcription" and kind.startswith("response."):
        raise Refusal(
            f"The event '{kind}' is not supported in transcription sessions.",
            code="invalid_event",
            param="type",
        )


def parse_json(document: str | bytes, *, refusal: Refusal) -> Any:
    """Return the value in *document*.

    Raises:
        Refusal: *refusal*, when it is not JSON, or nested or long beyond reason.
    """
    try:
        value = json.loads(document, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise refusal from None
    if _is_deep(value):
        raise refusal
    return value


def _is_deep(value: Any) -> bool:
    """Tell whether *value* nests so deep that writing it again might not succeed."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(_DEEPEST):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
