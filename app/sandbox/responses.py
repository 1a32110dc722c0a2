"""One response of the stand-in model, from ``response.created`` to ``rate_limits.updated``.

The order of the events is the one captured from the real service.
"""

import asyncio
import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from app.sandbox.answers import answer, wanted_call
from app.sandbox.audio import encoding_of, spoken
from app.sandbox.conversation import Conversation, Item
from app.sandbox.ids import openai_id

StopReason: TypeAlias = Literal["client_cancelled", "turn_detected"]

_MS_PER_OUTPUT_TOKEN = 50  # of audio
_TOKENS = 15_000_000  # per minute; the sandbox never runs out
_PADDED_TO = 16  # characters of a delta and its obfuscation: a multiple of it


@dataclass(frozen=True, slots=True)
class _Medium:
    """How a part is called in events; the sound of speech has events of its own besides."""

    part: str
    member: str
    event: str


_MEDIA = {
    "text": _Medium("text", "text", "response.output_text"),
    "audio": _Medium("audio", "transcript", "response.output_audio_transcript"),
}


class Send(Protocol):
    """Sends a server event."""

    async def __call__(self, kind: str, /, **members: object) -> None:
        """Send the event of *kind* with *members*; its id is added."""


def obfuscated(delta: str) -> dict[str, str]:
    """Return the members of a text delta, padded so that its length on the wire says less."""
    padding = _PADDED_TO - len(delta) % _PADDED_TO
    return {"delta": delta, "obfuscation": openai_id("")[1 : padding + 1]}


class Response:
    """Answers once.

    Args:
        send: Where events go.
        settings: The session in force, as overridden for this response.
        context: What is answered to.
        conversation: Where the answer is added; None when the response is out of band.
        metadata: The client's, given back.
        delta_seconds: Pause after each delta, in which the response can be stopped.
    """

    def __init__(
        self,
        *,
        send: Send,
        settings: Mapping[str, Any],
        context: Sequence[Item],
        conversation: Conversation | None,
        metadata: Mapping[str, str] | None,
        delta_seconds: float,
    ) -> None:
        self.id = openai_id("resp")
        self.audio_ms = 0
        """How long the playback of what was said takes."""

        self._conversation = conversation
        self._send = send
        self._settings = settings
        self._context = context
        self._metadata = metadata
        self._delta_seconds = delta_seconds
        self._status = "in_progress"
        self._status_details: dict[str, str] | None = None
        self._output: list[dict[str, Any]] = []
        self._text_tokens = 0
        self._stop_asked = asyncio.Event()
        self._stop_reason: StopReason | None = None
        self._over = asyncio.Event()

    async def run(self) -> None:
        """Answer, to the end or until stopped."""
        try:
            await self._send("response.created", response=self._shown())
            if call := wanted_call(self._context, self._settings):
                await self._call(*call)
            else:
                await self._say(answer(self._context, model=self._settings["model"]))
            usage = self._usage()
            await self._send("response.done", response=self._shown(usage))
        finally:
            self._over.set()
        spare = {"name": "tokens", "limit": _TOKENS, "remaining": _TOKENS - usage["total_tokens"]}
        await self._send("rate_limits.updated", rate_limits=[{**spare, "reset_seconds": 0.001}])

    async def stop(self, reason: StopReason) -> None:
        """Break off, and return when ``response.done`` is sent."""
        self._stop_reason = self._stop_reason or reason
        self._stop_asked.set()
        await self._over.wait()

    @property
    def is_conversational(self) -> bool:
        """Whether the answer becomes part of the conversation."""
        return self._conversation is not None

    @property
    def is_over(self) -> bool:
        """Whether ``response.done`` is sent."""
        return self._over.is_set()

    async def _say(self, words: str) -> None:
        medium = _MEDIA[self._settings["output_modalities"][0]]
        content = {"type": f"output_{medium.part}", medium.member: ""}
        item = Item(
            body={
                "id": openai_id("item"),
                "type": "message",
                "status": "in_progress",
                "role": "assistant",
                "content": [],
            }
        )
        previous_item_id = await self._begin(item)
        place = {**self._place(item), "content_index": 0}
        await self._send(
            "response.content_part.added", **place, part={**content, "type": medium.part}
        )
        item.body["content"].append(content)
        for word in re.findall(r"\S+\s*", words):
            if self._is_full():
                self._settle("incomplete", "max_output_tokens")
                break
            content[medium.member] += word
            self._text_tokens += 1
            await self._send(f"{medium.event}.delta", **place, **obfuscated(word))
            if medium.part == "audio":
                await self._speak(word, item, place)
            if await self._is_stopped():
                break
        if medium.part == "audio":
            await self._send("response.output_audio.done", **place)
        said = {medium.member: content[medium.member]}
        await self._send(f"{medium.event}.done", **place, **said)
        await self._send("response.content_part.done", **place, part={"type": medium.part, **said})
        await self._end(item, previous_item_id)

    async def _speak(self, word: str, item: Item, place: Mapping[str, object]) -> None:
        output = self._settings["audio"]["output"]
        encoding = encoding_of(output["format"])
        sound = spoken(word.strip(), voice=self._voice, speed=output["speed"], encoding=encoding)
        await self._send(
            "response.output_audio.delta", **place, delta=base64.b64encode(sound).decode()
        )
        item.audio_ms += len(sound) // encoding.bytes_per_ms
        self.audio_ms = item.audio_ms

    async def _call(self, name: str, arguments: str) -> None:
        call_id = openai_id("call")
        item = Item(
            body={
                "id": openai_id("item"),
                "type": "function_call",
                "status": "in_progress",
                "call_id": call_id,
                "name": name,
                "arguments": "",
            },
            characters=len(arguments),
        )
        previous_item_id = await self._begin(item)
        place = {**self._place(item), "call_id": call_id}
        for piece in re.findall(r"\S+\s*", arguments):
            if self._is_full():
                self._settle("incomplete", "max_output_tokens")
                break
            item.body["arguments"] += piece
            self._text_tokens += 1
            await self._send("response.function_call_arguments.delta", **place, delta=piece)
            if await self._is_stopped():
                break
        written = item.body["arguments"]
        await self._send(
            "response.function_call_arguments.done", **place, name=name, arguments=written
        )
        await self._end(item, previous_item_id)

    async def _begin(self, item: Item) -> str | None:
        """Announce *item*; return the id of the item before it in the conversation."""
        await self._send(
            "response.output_item.added", response_id=self.id, output_index=0, item=item.body
        )
        if self._conversation is None:
            return None
        previous_item_id = self._conversation.add(item)
        await self._send(
            "conversation.item.added", previous_item_id=previous_item_id, item=item.body
        )
        return previous_item_id

    async def _end(self, item: Item, previous_item_id: str | None) -> None:
        """Announce that *item* is as it stays, and with it the whole output."""
        if self._status == "in_progress":
            self._status = "completed"
        item.body["status"] = "completed" if self._status == "completed" else "incomplete"
        self._output.append(item.body)
        if self._conversation is not None:
            await self._send(
                "conversation.item.done", previous_item_id=previous_item_id, item=item.body
            )
        await self._send(
            "response.output_item.done", response_id=self.id, output_index=0, item=item.body
        )

    async def _is_stopped(self) -> bool:
        """Pause, and tell whether to break off."""
        try:
            async with asyncio.timeout(self._delta_seconds):
                await self._stop_asked.wait()
        except TimeoutError:
            return False
        self._settle("cancelled", str(self._stop_reason))
        return True

    def _is_full(self) -> bool:
        limit = self._settings["max_output_tokens"]
        return limit != "inf" and self._text_tokens + self._audio_tokens >= int(limit)

    def _settle(self, status: str, reason: str) -> None:
        self._status = status
        self._status_details = {"type": status, "reason": reason}

    def _place(self, item: Item) -> dict[str, object]:
        return {"response_id": self.id, "item_id": item.id, "output_index": 0}

    @property
    def _audio_tokens(self) -> int:
        return -(-self.audio_ms // _MS_PER_OUTPUT_TOKEN)

    @property
    def _voice(self) -> str:
        voice = self._settings["audio"]["output"]["voice"]
        return str(voice["id"] if isinstance(voice, Mapping) else voice)

    def _shown(self, usage: Mapping[str, object] | None = None) -> dict[str, object]:
        output = self._settings["audio"]["output"]
        return {
            "object": "realtime.response",
            "id": self.id,
            "status": self._status,
            "status_details": self._status_details,
            "output": self._output,
            "conversation_id": self._conversation.id if self._conversation else None,
            "output_modalities": self._settings["output_modalities"],
            "max_output_tokens": self._settings["max_output_tokens"],
            "audio": {"output": {"format": output["format"], "voice": self._voice}},
            "usage": usage,
            "metadata": self._metadata,
        }

    def _usage(self) -> dict[str, Any]:
        text_in = len(self._settings["instructions"].split())
        text_in += sum(item.text_tokens for item in self._context)
        audio_in = sum(item.audio_tokens for item in self._context)
        nothing = {"text_tokens": 0, "audio_tokens": 0, "image_tokens": 0}
        tokens_out = self._text_tokens + self._audio_tokens
        return {
            "total_tokens": text_in + audio_in + tokens_out,
            "input_tokens": text_in + audio_in,
            "output_tokens": tokens_out,
            "input_token_details": {
                **nothing,
                "text_tokens": text_in,
                "audio_tokens": audio_in,
                "cached_tokens": 0,
                "cached_tokens_details": nothing,
            },
            "output_token_details": {
                "text_tokens": self._text_tokens,
                "audio_tokens": self._audio_tokens,
            },
        }
