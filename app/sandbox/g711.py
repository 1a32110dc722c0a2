"""G.711: one byte per sample at 8 kHz, as telephones have it (``audio/pcmu``, ``audio/pcma``).

Decoding follows ITU-T G.711. Encoding takes the code whose level is nearest, by a search in the
decoded levels: slower than the usual bit tricks, and obviously right.
"""

import bisect
from collections.abc import Iterable, Sequence
from itertools import pairwise

RATE_HZ = 8_000


def _mu_law_level(code: int) -> int:
    inverted = ~code & 0xFF
    magnitude = ((((inverted & 0x0F) << 3) + 0x84) << ((inverted & 0x70) >> 4)) - 0x84
    return -magnitude if inverted & 0x80 else magnitude


def _a_law_level(code: int) -> int:
    toggled = code ^ 0x55
    segment = (toggled & 0x70) >> 4
    step = ((toggled & 0x0F) << 4) + 8
    magnitude = (step + 0x100) << (segment - 1) if segment else step
    return magnitude if toggled & 0x80 else -magnitude


class Law:
    """One of the two laws. Levels are 16-bit samples."""

    def __init__(self, levels: Sequence[int]) -> None:
        self.levels = tuple(levels)
        """The level of each of the 256 codes."""
        self._codes = sorted(range(256), key=self.levels.__getitem__)
        ordered = [self.levels[code] for code in self._codes]
        self._borders = [(low + high) / 2 for low, high in pairwise(ordered)]

    def encode(self, samples: Iterable[float]) -> bytes:
        """Return the codes nearest to *samples*."""
        return bytes(self._codes[bisect.bisect(self._borders, sample)] for sample in samples)

    def decode(self, codes: bytes) -> list[int]:
        """Return the levels that *codes* stand for."""
        return [self.levels[code] for code in codes]


MU_LAW = Law([_mu_law_level(code) for code in range(256)])
A_LAW = Law([_a_law_level(code) for code in range(256)])
