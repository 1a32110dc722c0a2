"""Identifiers: a prefix that says what is named, and a ULID or 130 bits that a key gave."""

import os
import re
import time
from collections import deque

AT_ONCE = 64
"""Identifiers for which the system is asked for random octets together."""

_DIGITS = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ" * 8  # Crockford's 32, for each value of a byte
_PATTERN = re.compile(r"[a-z]{3}_[0-9A-HJKMNP-TV-Z]{26}")
_PLAIN = re.compile(r"(?!ek_|sk-|rtc_|rtk_|rtr_|rts_|eyJ)[A-Za-z0-9._-]{1,64}")


_SPARE: deque[str] = deque()
"""Random digits for the next identifiers: each call for some lets go of Python's lock."""

os.register_at_fork(after_in_child=_SPARE.clear)  # or two processes would have the same

_PAIRS = [chr(high) + chr(low) for high in _DIGITS[:32] for low in _DIGITS[:32]]
"""The two digits for each ten bits."""


def new_id(prefix: str) -> str:
    """Return a new identifier such as ``usr_01KAJ…``.

    Behind the prefix stands a ULID (https://github.com/ulid/spec): the present millisecond, of 48
    bits, and 80 random bits. So those that are made together stand together in every index of the
    log, whose pages would else be written for each of them.

    Args:
        prefix: Three lower-case letters that say what is named.
    """
    ms = time.time_ns() // 1_000_000
    late, later = _PAIRS[ms >> 10 & 1023], _PAIRS[ms & 1023]
    made = f"{_PAIRS[ms >> 40]}{_PAIRS[ms >> 30 & 1023]}{_PAIRS[ms >> 20 & 1023]}{late}{later}"
    return f"{prefix}_{made}{_random_digits()}"


def _random_digits() -> str:
    """Return 16 digits; any thread may ask."""
    try:
        return _SPARE.pop()
    except IndexError:
        many = os.urandom(16 * AT_ONCE).translate(_DIGITS).decode("ascii")
        _SPARE.extend(many[start : start + 16] for start in range(16, len(many), 16))
        return many[:16]


def id_of(prefix: str, octets: bytes) -> str:
    """Return the identifier that these 26 *octets* give: the same for the same."""
    # 5 bits from each byte: 26 digits hold 130.
    return f"{prefix}_{octets.translate(_DIGITS).decode('ascii')}"


def is_id(text: str, prefix: str) -> bool:
    """Tell whether *text* has the form of an identifier with *prefix*."""
    return text.startswith(prefix + "_") and _PATTERN.fullmatch(text) is not None


def is_plain(text: str) -> bool:
    """Tell whether a name that a stranger gave may be kept and repeated.

    It is short, of letters, digits and ``._-``, and does not begin like a secret: what is written
    into the audit log stands there for ever.
    """
    return _PLAIN.fullmatch(text) is not None
