"""What the sandbox says: canned, always the same, and of some use to a newcomer."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from app.sandbox.conversation import Item

_LONGEST_ECHO = 200  # characters of the user's words that are said back


def answer(conversation: Sequence[Item], *, model: str) -> str:
    """Return what to say to the last thing that the user, or a tool, has contributed."""
    heard = _last_from_outside(conversation)
    if heard is None:
        return "This is the sandbox: nobody has said anything yet, so say hello."
    if heard.body["type"] == "function_call_output":
        said = f"your function returned {_cut(heard.words) or 'nothing'}"
    elif heard.audio_ms:
        said = f"I heard {heard.audio_ms / 1000:.1f} seconds of speech"
    else:
        said = f"you said “{_cut(heard.words)}”"
    return f"This is the sandbox: {said}. With an OpenAI key, {model} answers here."


def transcript(audio_ms: int) -> str:
    """Return what stands for the words in *audio_ms* of speech; the sandbox knows no words."""
    return f"This stands for {audio_ms / 1000:.1f} seconds of speech."


def wanted_call(
    conversation: Sequence[Item], settings: Mapping[str, Any]
) -> tuple[str, str] | None:
    """Return name and JSON arguments of the function to call now, or None to speak instead.

    A function is called when ``tool_choice`` forces it, or when the user says its name. What a
    function has returned is always answered in words, so that a client that loops comes to an end.

    Args:
        conversation: What has been said so far.
        settings: The session in force, as overridden for this response.
    """
    functions = {tool["name"]: tool for tool in settings["tools"] if tool["type"] == "function"}
    choice = settings["tool_choice"]
    last = _last_from_outside(conversation)
    if choice == "none" or (last and last.body["type"] == "function_call_output"):
        return None
    if isinstance(choice, Mapping):
        named = [str(choice.get("name"))]
    elif choice == "required":
        named = list(functions)
    else:
        named = re.findall(r"[\w-]+", last.words) if last else []
    for name in named:
        if name in functions:
            return name, json.dumps(_arguments(functions[name].get("parameters", {})))
    return None


def _last_from_outside(conversation: Sequence[Item]) -> Item | None:
    for item in reversed(conversation):
        if item.body.get("role") == "user" or item.body["type"] == "function_call_output":
            return item
    return None


def _cut(words: str) -> str:
    return words if len(words) <= _LONGEST_ECHO else f"{words[:_LONGEST_ECHO]}…"


def _arguments(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments for *parameters*, a JSON Schema that nobody has checked."""
    properties = parameters.get("properties")
    if not isinstance(properties, Mapping):
        return {}
    return {name: _argument(schema) for name, schema in properties.items()}


def _argument(schema: Any) -> Any:
    if not isinstance(schema, Mapping):
        return None
    options = schema.get("enum")
    if isinstance(options, list) and options:
        return options[0]
    return _PLAIN_VALUES.get(str(schema.get("type")))


_PLAIN_VALUES: dict[str, Any] = {
    "string": "sandbox",
    "number": 0,
    "integer": 0,
    "boolean": False,
    "array": [],
    "object": {},
}
