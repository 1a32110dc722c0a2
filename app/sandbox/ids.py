"""Identifiers that look like OpenAI's."""

import secrets
import string

_ALPHABET = string.ascii_letters + string.digits


def openai_id(prefix: str) -> str:
    """Return a new identifier such as ``item_Dx7Qm2pLr9Tz1aVbC3nE5``."""
    return f"{prefix}_{''.join(secrets.choice(_ALPHABET) for _ in range(21))}"
