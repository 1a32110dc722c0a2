"""The one secret of an installation, and the keys that are derived from it."""

import os
import secrets
from pathlib import Path

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

MINIMUM_SECRET_BYTES = 32


class SecretFault(Exception):
    """The installation's secret cannot be used; the message says why."""


def derive_key(secret: bytes, purpose: str, *, length: int = 32) -> bytes:
    """Return the key for *purpose*; another purpose gives an unrelated key.

    Args:
        secret: The installation's secret, at least 32 bytes.
        purpose: A stable name; changing it changes the key.
        length: Bytes wanted, 1 to 8160 (RFC 5869).
    """
    return HKDF(algorithm=SHA256(), length=length, salt=None, info=purpose.encode()).derive(secret)


def read_or_make_secret(path: Path) -> bytes:
    """Return the secret in *path*; when there is none yet, make it, readable by its owner only.

    Two processes that start at once agree: the file appears whole or not at all.

    Raises:
        SecretFault: The file holds fewer than 32 bytes.
        OSError: The file cannot be read or written.
    """
    if not path.exists():
        draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            path.hardlink_to(draft)  # atomic, and refuses to replace
        except FileExistsError:
            pass  # another process was first: its secret is the one
        finally:
            draft.unlink()
        _sync_folder(path.parent)  # a database that survives a power cut needs its key
    secret = path.read_bytes().strip()
    if len(secret) < MINIMUM_SECRET_BYTES:
        raise SecretFault(f"{path} must hold at least {MINIMUM_SECRET_BYTES} characters")
    return secret


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
