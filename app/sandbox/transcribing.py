"""Transcription of what the user says, beside and independent of the answers."""

import re
from collections.abc import Mapping
from typing import Any

from app.sandbox.answers import transcript
from app.sandbox.conversation import Item
from app.sandbox.responses import Send, obfuscated

_BILLED_BY_TIME = ("whisper-1", "gpt-transcribe", "gpt-live-transcribe", "gpt-realtime-whisper")
_NAMES_LANGUAGES = "gpt-transcribe"
_EVENT = "conversation.item.input_audio_transcription"


async def transcribe(
    item: Item, *, send: Send, transcription: Mapping[str, Any], with_logprobs: bool
) -> None:
    """Transcribe *item*, a user item with audio: some deltas, then the whole.

    Args:
        item: Gets its transcript.
        send: Where events go.
        transcription: ``audio.input.transcription`` of the session when the audio was committed.
        with_logprobs: The session includes log probabilities; only models billed by token give any.
    """
    model = transcription["model"]
    by_time = model in _BILLED_BY_TIME
    place = {"item_id": item.id, "content_index": 0}
    words = re.findall(r"\S+\s*", transcript(item.audio_ms))
    logprobs = (
        [{"token": word, "logprob": 0.0, "bytes": list(word.encode())} for word in words]
        if with_logprobs and not by_time
        else None
    )
    for index, word in enumerate(words):
        certain = {"logprobs": [logprobs[index]]} if logprobs else {}
        await send(f"{_EVENT}.delta", **place, **obfuscated(word), **certain)
    item.body["content"][0]["transcript"] = "".join(words)
    members: dict[str, Any] = {"transcript": "".join(words)}
    if logprobs:
        members["logprobs"] = logprobs
    if model == _NAMES_LANGUAGES:
        members["languages"] = [{"code": "en"}]
    if by_time:
        members["usage"] = {"type": "duration", "seconds": item.audio_ms / 1000}
    else:
        members["usage"] = {
            "type": "tokens",
            "total_tokens": item.audio_tokens + len(words),
            "input_tokens": item.audio_tokens,
            "input_token_details": {"text_tokens": 0, "audio_tokens": item.audio_tokens},
            "output_tokens": len(words),
        }
    await send(f"{_EVENT}.completed", **place, **members)
