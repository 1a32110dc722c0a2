"""One WebSocket connection: a session, from ``session.created`` until somebody hangs up."""

import asyncio
import base64
import binascii
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketDisconnected

from app.base.clock import Clock
from app.sandbox.audio import encoding_of
from app.sandbox.client_events import check_event, read_event
from app.sandbox.conversation import Conversation, Item, client_item
from app.sandbox.errors import Refusal
from app.sandbox.ids import openai_id
from app.sandbox.listening import (
    InputAudioBuffer,
    NobodySpoke,
    Noticed,
    SpeechStarted,
    SpeechStopped,
)
from app.sandbox.responses import Response
from app.sandbox.session import for_response, shown_as, updated
from app.sandbox.transcribing import transcribe

MOST_AUDIO_BYTES = 15 * 1024 * 1024  # in one event
MOST_RESPONSES = 8  # at the same time: one in the conversation, the others out of band
MOST_WAITING_TRANSCRIPTIONS = 32  # beyond, the client is read no further until some are done


async def refuse(websocket: WebSocket, refusal: Refusal) -> None:
    """Tell an accepted *websocket* why it may not stay, and close it."""
    try:
        await websocket.send_text(_event("error", error={**refusal.error, "event_id": None}))
        await websocket.close(refusal.close_code, refusal.close_reason)
    except WebSocketDisconnect:
        pass  # it did not wait for the reason


class Connection:
    """Reads client events one by one; responses and transcriptions go on beside that.

    Args:
        websocket: Accepted, and nothing sent yet.
        session: The session in force.
        clock: Decides when the session has lasted long enough.
        delta_seconds: Pause after each delta of a response.
        longest: How long the session may last.
    """

    def __init__(
        self,
        websocket: WebSocket,
        session: dict[str, Any],
        *,
        clock: Clock,
        delta_seconds: float,
        longest: timedelta,
    ) -> None:
        self._websocket = websocket
        self._session = session
        self._session_id = openai_id("sess")
        self._clock = clock
        self._ends_at = clock() + longest
        self._delta_seconds = delta_seconds
        self._conversation = Conversation()
        self._buffer = InputAudioBuffer()
        self._responses: list[Response] = []
        self._to_transcribe: asyncio.Queue[tuple[Item, Mapping[str, Any]]] = asyncio.Queue(
            MOST_WAITING_TRANSCRIPTIONS
        )
        self._tasks = asyncio.TaskGroup()
        self._handlers: dict[str, Callable[[Mapping[str, Any]], Awaitable[None]]] = {
            "session.update": self._update_session,
            "input_audio_buffer.append": self._append_audio,
            "input_audio_buffer.commit": self._commit_audio,
            "input_audio_buffer.clear": self._clear_audio,
            "conversation.item.create": self._create_item,
            "conversation.item.truncate": self._truncate_item,
            "conversation.item.delete": self._delete_item,
            "conversation.item.retrieve": self._retrieve_item,
            "response.create": self._create_response,
            "response.cancel": self._cancel_response,
        }

    async def run(self) -> None:
        """Serve until the client leaves or the session has lasted long enough."""
        try:
            async with self._tasks:
                self._tasks.create_task(self._transcribe())
                await self._send_session("session.created")
                while True:
                    await self._handle(await self._receive())
        except* (WebSocketDisconnect, WebSocketDisconnected):
            pass  # every session ends so; leaving the task group has stopped what still went on

    async def _receive(self) -> str | None:
        """Return the next text frame, None for a binary one.

        Raises:
            WebSocketDisconnect: The client has left, or the session is over.
        """
        message = None
        while message is None:
            try:
                async with asyncio.timeout((self._ends_at - self._clock()).total_seconds()):
                    message = await self._websocket.receive()
            except TimeoutError:
                pass  # the clock that counts is asked below
            if self._clock() >= self._ends_at:
                expired = Refusal(
                    "Your session hit the maximum duration of 60 minutes.", code="session_expired"
                )
                await refuse(self._websocket, expired)
                raise WebSocketDisconnect
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message["code"])
        frame: str | None = message.get("text")
        return frame

    async def _handle(self, frame: str | None) -> None:
        event: Mapping[str, Any] = {}
        try:
            event = read_event(frame)
            check_event(event, session_type=self._session["type"])
            await self._handlers[event["type"]](event)
        except Refusal as refusal:
            event_id = event.get("event_id")
            named = event_id if isinstance(event_id, str) else None
            await self._send("error", error={**refusal.error, "event_id": named})

    async def _send(self, kind: str, /, **members: object) -> None:
        await self._websocket.send_text(_event(kind, **members))

    async def _send_session(self, kind: str) -> None:
        ends_at = int(self._ends_at.timestamp())
        shown = shown_as(self._session, session_id=self._session_id, expires_at=ends_at)
        await self._send(kind, session=shown)

    async def _update_session(self, event: Mapping[str, Any]) -> None:
        self._session = updated(
            self._session, event["session"], has_spoken=self._conversation.has_assistant_audio
        )
        await self._send_session("session.updated")

    async def _append_audio(self, event: Mapping[str, Any]) -> None:
        audio = _decoded(event["audio"])
        audio_input = self._session["audio"]["input"]
        bytes_per_second = 1_000 * encoding_of(audio_input["format"]).bytes_per_ms
        for start in range(0, len(audio), bytes_per_second):
            second = audio[start : start + bytes_per_second]
            for noticed in self._buffer.append(second, audio_input=audio_input):
                await self._react_to(noticed, audio_input["turn_detection"])
            await asyncio.sleep(0)  # five minutes of audio in one event must not hold up the others

    async def _react_to(self, noticed: Noticed, detection: Mapping[str, Any]) -> None:
        match noticed:
            case SpeechStarted():
                await self._send("input_audio_buffer.speech_started", **asdict(noticed))
                active = self._active_response()
                if active and detection.get("interrupt_response"):
                    await active.stop("turn_detected")
            case SpeechStopped():
                await self._send("input_audio_buffer.speech_stopped", **asdict(noticed))
                await self._add_utterance()
                if detection.get("create_response"):
                    self._start_response({})
            case NobodySpoke() if self._active_response() is None:
                await self._send("input_audio_buffer.timeout_triggered", **asdict(noticed))
                await self._add_utterance()
                self._start_response({})

    async def _commit_audio(self, _event: Mapping[str, Any]) -> None:
        await self._add_utterance()

    async def _add_utterance(self) -> None:
        """Make a user item of what the input audio buffer holds."""
        utterance = self._buffer.commit()
        item = Item(
            body={
                "id": utterance.item_id,
                "type": "message",
                "status": "completed",
                "role": "user",
                "content": [{"type": "input_audio", "transcript": None}],
            },
            audio_ms=utterance.duration_ms,
        )
        previous_item_id = self._conversation.add(item)
        await self._send(
            "input_audio_buffer.committed", previous_item_id=previous_item_id, item_id=item.id
        )
        await self._send_added(item, previous_item_id)
        if self._session["audio"]["input"]["transcription"]:
            await self._to_transcribe.put((item, self._session))

    async def _transcribe(self) -> None:
        while True:
            item, session = await self._to_transcribe.get()
            await transcribe(
                item,
                send=self._send,
                transcription=session["audio"]["input"]["transcription"],
                with_logprobs=bool(session["include"]),
            )

    async def _clear_audio(self, _event: Mapping[str, Any]) -> None:
        self._buffer.clear()
        await self._send("input_audio_buffer.cleared")

    async def _create_item(self, event: Mapping[str, Any]) -> None:
        item = self._client_item(event["item"])
        previous_item_id = self._conversation.add(item, after=event.get("previous_item_id"))
        await self._send_added(item, previous_item_id)

    async def _send_added(self, item: Item, previous_item_id: str | None) -> None:
        for kind in ("conversation.item.added", "conversation.item.done"):
            await self._send(kind, previous_item_id=previous_item_id, item=item.body)

    async def _truncate_item(self, event: Mapping[str, Any]) -> None:
        place = {name: event[name] for name in ("item_id", "content_index", "audio_end_ms")}
        self._conversation.truncate(**place)
        await self._send("conversation.item.truncated", **place)

    async def _delete_item(self, event: Mapping[str, Any]) -> None:
        self._conversation.delete(event["item_id"])
        await self._send("conversation.item.deleted", item_id=event["item_id"])

    async def _retrieve_item(self, event: Mapping[str, Any]) -> None:
        item = self._conversation.get(event["item_id"])
        await self._send("conversation.item.retrieved", item=item.body)

    async def _create_response(self, event: Mapping[str, Any]) -> None:
        self._start_response(event.get("response") or {})

    def _start_response(self, given: Mapping[str, Any]) -> None:
        """Answer, as *given*, the ``response`` of a ``response.create``, says.

        Raises:
            Refusal: The conversation is being answered already, too many responses are under way,
                or *given* refers to an item that is not there.
        """
        out_of_band = given.get("conversation") == "none"
        active = self._active_response()
        if active and not out_of_band:
            raise Refusal(
                f"Conversation already has an active response in progress: {active.id}. Wait until"
                " the response is finished before creating a new one.",
                code="conversation_already_has_active_response",
            )
        self._responses = [response for response in self._responses if not response.is_over]
        if len(self._responses) >= MOST_RESPONSES:
            raise Refusal(
                f"Too many responses in progress, at most {MOST_RESPONSES}.",
                code="rate_limit_exceeded",
            )
        response = Response(
            send=self._send,
            settings=for_response(self._session, given),
            context=self._context(given.get("input")),
            conversation=None if out_of_band else self._conversation,
            metadata=given.get("metadata"),
            delta_seconds=self._delta_seconds,
        )
        self._responses.append(response)
        self._tasks.create_task(self._respond(response))

    async def _respond(self, response: Response) -> None:
        await response.run()
        if response.is_conversational:
            self._buffer.expect_user(after_ms=response.audio_ms)

    def _context(self, given: Sequence[Mapping[str, Any]] | None) -> list[Item]:
        if given is None:
            return list(self._conversation.items)
        return [
            self._conversation.get(item["id"], param=f"response.input[{index}].id")
            if item["type"] == "item_reference"
            else self._client_item(item)
            for index, item in enumerate(given)
        ]

    async def _cancel_response(self, event: Mapping[str, Any]) -> None:
        response = self._active_response(event.get("response_id"))
        if response is None:
            raise Refusal(
                "Cancellation failed: no active response found", code="response_cancel_not_active"
            )
        await response.stop("client_cancelled")

    def _active_response(self, response_id: str | None = None) -> Response | None:
        """Return the response with *response_id*, else the conversation's, if it is under way."""
        for response in self._responses:
            wanted = response.id == response_id if response_id else response.is_conversational
            if wanted and not response.is_over:
                return response
        return None

    def _client_item(self, given: Mapping[str, Any]) -> Item:
        encoding = encoding_of(self._session["audio"]["input"]["format"])
        return client_item(given, bytes_per_ms=encoding.bytes_per_ms)


def _event(kind: str, /, **members: object) -> str:
    return json.dumps({"type": kind, "event_id": openai_id("event"), **members})


def _decoded(audio: str) -> bytes:
    try:
        decoded = base64.b64decode(audio, validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(
            "Invalid 'audio'. Expected base64-encoded audio bytes.",
            code="invalid_value",
            param="audio",
        ) from None
    if len(decoded) > MOST_AUDIO_BYTES:
        raise Refusal(
            f"Invalid 'audio': too long. Expected at most {MOST_AUDIO_BYTES} bytes of audio,"
            f" but got {len(decoded)} instead.",
            code="string_above_max_length",
            param="audio",
        )
    return decoded
