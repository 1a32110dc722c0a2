"""Identifiers: a prefix that says what is named, and 130 bits, mostly random ones."""

import os
import re

_DIGITS = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ" * 8  # Crockford's 32, for each value of a byte
_PATTERN = re.compile(r"[a-z]{3}_[0-9A-HJKMNP-TV-Z]{26}")
_PLAIN = re.compile(r"(?!ek_|sk-|rtc_|rtk_|rtr_|rts_|eyJ)[A-Za-z0-9._-]{1,64}")


def new_id(prefix: str) -> str:
    """Return a new identifier such as ``usr_7ZK…``; its order says nothing.

    Args:
        prefix: Three lower-case letters that say what is named.
    """
    return id_of(prefix, os.urandom(26))


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
