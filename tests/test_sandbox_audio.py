"""Sound in the sandbox: the telephone's encodings and the tones."""

import math
import struct

import pytest

from app.sandbox.audio import encoding_of, spoken
from app.sandbox.g711 import A_LAW, MU_LAW, Law

PCM = encoding_of({"type": "audio/pcm", "rate": 24000})


@pytest.mark.parametrize(
    ("law", "code", "level"),
    [
        (MU_LAW, 0xFF, 0),
        (MU_LAW, 0x80, 32_124),
        (MU_LAW, 0x00, -32_124),
        (MU_LAW, 0x8F, 16_764),
        (A_LAW, 0xD5, 8),
        (A_LAW, 0x55, -8),
        (A_LAW, 0xAA, 32_256),
        (A_LAW, 0x2A, -32_256),
    ],
)
def test_codes_stand_for_the_levels_of_the_standard(law: Law, code: int, level: int) -> None:
    assert law.decode(bytes([code])) == [level]


@pytest.mark.parametrize("law", [MU_LAW, A_LAW])
def test_each_code_encodes_its_own_level(law: Law) -> None:
    assert law.decode(law.encode(law.levels)) == list(law.levels)


@pytest.mark.parametrize("law", [MU_LAW, A_LAW])
def test_encoding_is_off_by_a_few_percent_at_most(law: Law) -> None:
    samples = range(-32_000, 32_001, 61)

    for sample, decoded in zip(samples, law.decode(law.encode(samples)), strict=True):
        assert abs(sample - decoded) <= max(16, abs(sample) * 0.04)


@pytest.mark.parametrize("kind", ["audio/pcm", "audio/pcmu", "audio/pcma"])
def test_loudness_is_the_same_in_every_encoding(kind: str) -> None:
    encoding = encoding_of({"type": kind})
    audio = encoding.encode([8_000 * math.sin(n / 10) for n in range(8_000)])

    assert encoding.loudness(audio) == pytest.approx(8_000 * 2 / math.pi / 32_767, rel=0.02)


def test_a_word_is_one_soft_tone_that_swells_and_fades() -> None:
    sound = spoken("hello", voice="alloy", speed=1.0, encoding=PCM)
    samples = struct.unpack(f"<{len(sound) // 2}h", sound)

    assert len(samples) == 0.3 * 24_000
    assert 5_000 < max(samples) < 7_000
    assert max(map(abs, samples[:100] + samples[-100:])) < 400


def test_voices_differ_and_a_voice_always_sounds_the_same() -> None:
    marin, cedar, again = (
        spoken("hello", voice=voice, speed=1.0, encoding=PCM)
        for voice in ("marin", "cedar", "marin")
    )

    assert marin == again != cedar
