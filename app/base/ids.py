"""Identifiers: a prefix that says what is named, and 128 bits, mostly random ones."""

import base64
import os
import re

_TO_CROCKFORD = bytes.maketrans(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", b"0123456789ABCDEFGHJKMNPQRSTVWXYZ"
)
_PATTERN = re.compile(r"[a-z]{3}_[0-9A-HJKMNP-TV-Z]{26}")


def new_id(prefix: str) -> str:
    """Return a new identifier such as ``usr_7ZK…``; its order says nothing.

    Args:
        prefix: Three lower-case letters that say what is named.
    """
    return id_of(prefix, os.urandom(16))


def id_of(prefix: str, bits: bytes) -> str:
    """Return the identifier with these *bits*, 16 bytes: the same for the same."""
    digits = base64.b32encode(bits)[:26].translate(_TO_CROCKFORD)
    return f"{prefix}_{digits.decode('ascii')}"


def is_id(text: str, prefix: str) -> bool:
    """Tell whether *text* has the form of an identifier with *prefix*."""
    return text.startswith(prefix + "_") and _PATTERN.fullmatch(text) is not None
