"""The input audio buffer: how much was heard, and where speech begins and ends.

The audio itself is not kept, only how long it is: a frame of 20 ms is heard and forgotten. Time is
counted in audio, not by a clock, as in the real API.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from app.sandbox.audio import encoding_of
from app.sandbox.errors import Refusal
from app.sandbox.ids import openai_id

_FRAME_MS = 20
_LEAST_COMMITTED_MS = 100
_LOUDNESS_AT_FULL_THRESHOLD = 0.02  # mean level, of full scale; half of it at the default of 0.5
_SEMANTIC_THRESHOLD = 0.5
_SEMANTIC_PADDING_MS = 300
_SEMANTIC_PATIENCE_MS = {"low": 1_200, "medium": 600, "auto": 600, "high": 300}


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """Somebody began to speak."""

    item_id: str
    audio_start_ms: int


@dataclass(frozen=True, slots=True)
class SpeechStopped:
    """Somebody stopped speaking; the buffer holds what was said and is to be committed."""

    item_id: str
    audio_end_ms: int


@dataclass(frozen=True, slots=True)
class NobodySpoke:
    """The user was silent for the whole idle timeout; the buffer holds that silence."""

    item_id: str
    audio_start_ms: int
    audio_end_ms: int


Noticed: TypeAlias = SpeechStarted | SpeechStopped | NobodySpoke


@dataclass(frozen=True, slots=True)
class Utterance:
    """What was committed: a stretch of audio that becomes a user item."""

    item_id: str
    duration_ms: int


class InputAudioBuffer:
    """Hears audio in the session's input format."""

    def __init__(self) -> None:
        self._item_id = openai_id("item")  # of the item that the next commit makes
        self._heard_ms = 0  # since the session began
        self._buffered_ms = 0  # since the last commit or clear
        self._partial_frame = b""
        self._speaking = False
        self._silent_ms = 0  # since the last loud frame of the speech
        self._idle_from_ms: int | None = None

    def append(self, audio: bytes, *, audio_input: Mapping[str, Any]) -> Iterator[Noticed]:
        """Hear *audio*; give what turn detection notices, at the moment it does.

        After ``SpeechStopped`` and ``NobodySpoke`` the buffer is to be committed before going on.

        Args:
            audio: Any number of bytes; a part of a frame waits for its rest.
            audio_input: ``audio.input`` of the session in force.
        """
        encoding = encoding_of(audio_input["format"])
        detection = audio_input["turn_detection"]
        frame_bytes = _FRAME_MS * encoding.bytes_per_ms
        audio = self._partial_frame + audio
        whole = len(audio) - len(audio) % frame_bytes
        for start in range(0, whole, frame_bytes):
            self._heard_ms += _FRAME_MS
            self._buffered_ms += _FRAME_MS
            if detection is not None:
                loudness = encoding.loudness(audio[start : start + frame_bytes])
                threshold = detection.get("threshold", _SEMANTIC_THRESHOLD)
                loud = loudness > threshold * _LOUDNESS_AT_FULL_THRESHOLD
                yield from self._detect(loud=loud, detection=detection)
        self._partial_frame = audio[whole:]

    def commit(self) -> Utterance:
        """Empty the buffer and return what was in it.

        Raises:
            Refusal: There is less than 100 ms in it, and turn detection found no speech either.
        """
        if not self._speaking and self._buffered_ms < _LEAST_COMMITTED_MS:
            raise Refusal(
                "Error committing input audio buffer: buffer too small. Expected at least"
                f" {_LEAST_COMMITTED_MS}ms of audio, but buffer only has"
                f" {self._buffered_ms:.2f}ms of audio.",
                code="input_audio_buffer_commit_empty",
            )
        utterance = Utterance(self._item_id, self._buffered_ms)
        self.clear()
        return utterance

    def clear(self) -> None:
        """Forget what is in the buffer, and any speech that is going on."""
        self._item_id = openai_id("item")
        self._buffered_ms = 0
        self._partial_frame = b""
        self._speaking = False
        self._idle_from_ms = None

    def expect_user(self, *, after_ms: int) -> None:
        """Let the idle timeout begin: an answer was given whose playback takes *after_ms*."""
        self._idle_from_ms = self._heard_ms + after_ms

    def _detect(self, *, loud: bool, detection: Mapping[str, Any]) -> Iterator[Noticed]:
        timeout_ms = detection.get("idle_timeout_ms") or math.inf
        if self._speaking:
            self._silent_ms = 0 if loud else self._silent_ms + _FRAME_MS
            if not loud and self._silent_ms >= _patience_ms(detection):
                yield SpeechStopped(self._item_id, audio_end_ms=self._heard_ms)
        elif loud:
            # The speech takes along what came shortly before it; older silence is dropped.
            padding_ms = detection.get("prefix_padding_ms", _SEMANTIC_PADDING_MS)
            self._buffered_ms = min(self._buffered_ms, padding_ms + _FRAME_MS)
            self._speaking = True
            self._silent_ms = 0
            self._idle_from_ms = None
            yield SpeechStarted(self._item_id, audio_start_ms=self._heard_ms - self._buffered_ms)
        elif self._idle_from_ms is not None and self._heard_ms >= self._idle_from_ms + timeout_ms:
            yield NobodySpoke(
                self._item_id, audio_start_ms=self._idle_from_ms, audio_end_ms=self._heard_ms
            )


def _patience_ms(detection: Mapping[str, Any]) -> int:
    """Return how much silence ends a turn. The sandbox cannot tell meaning, so that is all."""
    if detection["type"] == "semantic_vad":
        return _SEMANTIC_PATIENCE_MS[detection["eagerness"]]
    silence_ms: int = detection["silence_duration_ms"]
    return silence_ms
