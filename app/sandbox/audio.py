"""Sound: how loud a piece of audio is, and the tones that stand for a voice."""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from app.minting.session_shape import PCM_RATE_HZ, VOICES
from app.sandbox import g711

_FULL_SCALE = 32_767
_LOUDNESS = 0.2  # of full scale
_WORD_SECONDS = 0.3
_LOWEST_HZ = 220.0  # of the first voice; each next one speaks a semitone higher
_SCALE = (0, 2, 4, 7, 9)  # semitones of the pentatonic scale: no two of its tones clash


@dataclass(frozen=True, slots=True)
class Encoding:
    """How samples become bytes. Without a law it is 16-bit PCM, little-endian."""

    rate_hz: int
    law: g711.Law | None = None

    @property
    def bytes_per_ms(self) -> int:
        """Bytes of one millisecond."""
        return self.rate_hz // 1000 * (1 if self.law else 2)

    def encode(self, samples: Sequence[float]) -> bytes:
        """Return the bytes of *samples*, each -32768 to 32767."""
        if self.law:
            return self.law.encode(samples)
        return struct.pack(f"<{len(samples)}h", *map(round, samples))

    def loudness(self, audio: bytes) -> float:
        """Return the mean level of *audio*, whole samples, from 0 to 1 of full scale."""
        samples: Sequence[int]
        if self.law:
            samples = self.law.decode(audio)
        else:
            samples = struct.unpack(f"<{len(audio) // 2}h", audio)
        return sum(map(abs, samples)) / (len(samples) * _FULL_SCALE) if samples else 0.0


_ENCODINGS = {
    "audio/pcm": Encoding(PCM_RATE_HZ),
    "audio/pcmu": Encoding(g711.RATE_HZ, g711.MU_LAW),
    "audio/pcma": Encoding(g711.RATE_HZ, g711.A_LAW),
}


def encoding_of(audio_format: Mapping[str, object]) -> Encoding:
    """Return the encoding of a session's ``format`` object."""
    return _ENCODINGS[str(audio_format["type"])]


def spoken(word: str, *, voice: str, speed: float, encoding: Encoding) -> bytes:
    """Return *word* as one soft tone: the same word always on the same pitch.

    Args:
        word: Any text.
        voice: Name of a voice; other names sound like the first one.
        speed: 0.25 to 1.5; the tone lasts 0.3 s at 1.
        encoding: How the samples are to be encoded.
    """
    semitones = _SCALE[sum(map(ord, word)) % len(_SCALE)]
    semitones += VOICES.index(voice) if voice in VOICES else 0
    return _tone(_LOWEST_HZ * 2 ** (semitones / 12), _WORD_SECONDS / speed, encoding)


@lru_cache(maxsize=64)  # a tone is at most 58 kB
def _tone(pitch_hz: float, seconds: float, encoding: Encoding) -> bytes:
    length = round(seconds * encoding.rate_hz)
    turn = 2 * math.pi * pitch_hz / encoding.rate_hz
    return encoding.encode(
        [
            # The sine of the sweep from 0 to pi lets the tone swell and fade, without a click.
            _FULL_SCALE * _LOUDNESS * math.sin(turn * n) * math.sin(math.pi * n / length)
            for n in range(length)
        ]
    )
