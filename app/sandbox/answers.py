"""What the sandbox says: canned, always the same, and of some use to a newcomer."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from app.sandbox.arguments import arguments_for
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

    A function is called when ``tool_choice`` forces it, or when the user writes its name, as it is
    or as words: ``get_weather`` or "get weather". Of several, the first in ``tools`` is called.
    What a function has returned is answered in words, so that a client that loops comes to an end.

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
        wanted = [name for name in functions if name == choice.get("name")]
    elif choice == "required":
        wanted = list(functions)
    else:
        # A transcript only stands for what was said, so nobody is named in speech.
        words = _spelled(last.words) if last and not last.audio_ms else ""
        wanted = [name for name in functions if _spelled(name) in words]
    if not wanted:
        return None
    return wanted[0], json.dumps(arguments_for(functions[wanted[0]].get("parameters")))


def _spelled(text: str) -> str:
    """Return the words of *text*, a space before and after each, to find one text in another."""
    return "".join(f" {word} " for word in re.findall(r"[^\W_]+", text.casefold()))


def _last_from_outside(conversation: Sequence[Item]) -> Item | None:
    for item in reversed(conversation):
        if item.body.get("role") == "user" or item.body["type"] == "function_call_output":
            return item
    return None


def _cut(words: str) -> str:
    return words if len(words) <= _LONGEST_ECHO else f"{words[:_LONGEST_ECHO]}…"
