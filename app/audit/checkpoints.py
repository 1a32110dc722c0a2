"""What is signed about the log: which row it had at which moment, for whoever looks later.

A checkpoint is a text and an Ed25519 signature over that very text. It says that the log of this
installation had a row `seq` with this hash at this time; as the hash covers every row before, so
does the checkpoint. Four kinds say it for different reasons:

=========== ====================================================================================
checkpoint  now and then, while rows arrive
accepted    the operator says that the log is meant as it is; what was signed before counts no more
pruned      the rows up to here were taken out on purpose; the log goes on behind it
exported    the rows of a file begin behind this one, or end with it
=========== ====================================================================================
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, Literal, get_args

import sqlalchemy as sa
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

from app.audit import chain
from app.audit.events import audit_events
from app.base.clock import from_unix_microseconds
from app.base.db import installation, metadata
from app.base.keys import derive_key

Kind = Literal["checkpoint", "accepted", "pruned", "exported"]

FORMAT = "realtime-tokens/checkpoint/1"

PURPOSE = "checkpoint-ed25519-1"
"""Names the key among those that are derived from the installation's secret."""

UNKNOWN_KEY = "signed by a key that is not known here"
"""What is wrong with a checkpoint of a stranger, or of the time before another ``SECRET_KEY``."""

AT_ONCE = 100
"""Checkpoints that are looked through at once."""

audit_checkpoints = sa.Table(
    "audit_checkpoints",
    metadata,
    sa.Column("at", sa.BigInteger, primary_key=True, autoincrement=False),  # Unix µs
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("signed", sa.Text, nullable=False),  # compact JSON, signed as it stands
    sa.Column("signature", sa.LargeBinary(64), nullable=False),
    sa.Index("ix_audit_checkpoints_kind_at", "kind", "at"),
    sa.Index("ix_audit_checkpoints_seq", "seq"),
)


class Unreadable(ValueError):
    """This is no checkpoint, or a public key cannot be read; the message says why."""


@dataclass(frozen=True, slots=True)
class LogName:
    """Which log it is: its environment, and when its database was made, in Unix µs."""

    environment: str
    installation: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What was said of a row, and the proof of who said it."""

    kind: Kind
    log: LogName
    seq: int  # 0 stands before the first row
    row_hash: bytes
    at: int  # Unix µs
    key: str  # names the key that signed
    signed: str  # all of this, as it was signed
    signature: bytes

    @classmethod
    def read(cls, signed: object, signature: object) -> "Checkpoint":
        """Read what was signed; whether the signature is good is another question.

        Raises:
            Unreadable: It is something else.
        """
        try:
            said = json.loads(signed) if isinstance(signed, str) else None
        except (ValueError, RecursionError):
            said = None
        if not isinstance(said, dict) or not isinstance(signature, bytes):
            raise Unreadable("is no checkpoint")
        if said.get("format") != FORMAT:
            raise Unreadable(f"is not of the format {FORMAT}")
        numbers = [said.get(name) for name in ("installation", "seq", "at")]
        words = [said.get(name) for name in ("environment", "key", "row_hash", "kind")]
        if not (
            all(type(number) is int and 0 <= number < 2**53 for number in numbers)  # JSON's
            and all(isinstance(word, str) for word in words)
            and said["kind"] in get_args(Kind)
        ):
            raise Unreadable("has members of another type than a checkpoint's")
        try:
            row_hash = bytes.fromhex(said["row_hash"])
        except ValueError:
            raise Unreadable("has a row_hash that is not hexadecimal") from None
        return cls(
            kind=said["kind"],
            log=LogName(said["environment"], said["installation"]),
            seq=said["seq"],
            row_hash=row_hash,
            at=said["at"],
            key=said["key"],
            signed=str(signed),
            signature=signature,
        )

    @classmethod
    def read_line(cls, line: str | bytes) -> "Checkpoint":
        """Read a line of a file, as `line` writes it.

        Raises:
            Unreadable: It is something else.
        """
        try:
            members = json.loads(line)
            signature = base64.b64decode(members["signature"], validate=True)
            return cls.read(members["checkpoint"], signature)
        except json.JSONDecodeError:
            raise Unreadable("is not JSON") from None
        except Unreadable:
            raise
        except (TypeError, KeyError, RecursionError, ValueError):  # Base64, UTF-8, long numbers
            raise Unreadable("is no checkpoint") from None

    @property
    def line(self) -> str:
        """The checkpoint as one line of JSON, without a newline."""
        members = {
            "checkpoint": self.signed,
            "signature": base64.b64encode(self.signature).decode(),
        }
        return json.dumps(members, separators=(",", ":"))

    @property
    def head(self) -> chain.Head:
        """The row that it speaks of."""
        return chain.Head(self.seq, self.row_hash)

    @property
    def when(self) -> str:
        """When it was signed, for a message."""
        return f"{from_unix_microseconds(self.at):%Y-%m-%d %H:%M:%S} UTC"

    @property
    def row(self) -> dict[str, Any]:
        """What stands in the table `audit_checkpoints`."""
        names = ("at", "kind", "seq", "signed", "signature")
        return {name: getattr(self, name) for name in names}


class PublicKey:
    """Tells whether a checkpoint was signed by the holder of its private half."""

    def __init__(self, key: Ed25519PublicKey) -> None:
        self._key = key
        self._raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw)

    @classmethod
    def read(cls, pem: bytes) -> "PublicKey":
        """Read what `pem` wrote.

        Raises:
            Unreadable: It is something else.
        """
        try:
            key = load_pem_public_key(pem)
        except ValueError:
            raise Unreadable("holds no public key in PEM") from None
        if not isinstance(key, Ed25519PublicKey):
            raise Unreadable("holds a public key of another kind than Ed25519")
        return cls(key)

    @property
    def pem(self) -> str:
        """The key as a file has it (RFC 8410)."""
        return self._key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    @property
    def jwk(self) -> dict[str, str]:
        """The key as RFC 8037 has it, with its name as `kid`."""
        return {**self._members, "kid": self.id, "alg": "EdDSA", "use": "sig"}

    @property
    def _members(self) -> dict[str, str]:
        return {"crv": "Ed25519", "kty": "OKP", "x": _base64url(self._raw)}

    @cached_property
    def id(self) -> str:
        """Name of the key: its thumbprint (RFC 7638)."""
        text = json.dumps(self._members, separators=(",", ":"), sort_keys=True)
        return _base64url(hashlib.sha256(text.encode()).digest())

    def signed(self, checkpoint: Checkpoint) -> bool:
        """Tell whether the signature of *checkpoint* is by this key."""
        try:
            self._key.verify(checkpoint.signature, checkpoint.signed.encode())
        except (InvalidSignature, UnicodeEncodeError):
            return False
        return True


class Authority:
    """Judges who signed: what a checkpoint is worth depends on it.

    Args:
        keys: Of everybody who may sign.
        log: The only log that may be spoken of; None for any.
    """

    def __init__(self, *keys: PublicKey, log: LogName | None = None) -> None:
        self._keys = {key.id: key for key in keys}
        self._log = log

    def fault(self, checkpoint: Checkpoint) -> str | None:
        """Return why *checkpoint* is worth nothing; None when it is good."""
        key = self._keys.get(checkpoint.key)
        if key is None:
            return f"{UNKNOWN_KEY} ({checkpoint.key})"
        if not key.signed(checkpoint):
            return "not signed by the key that it names"
        if self._log is not None and checkpoint.log != self._log:
            return "of the log of another installation"
        return None


class Signer:
    """Signs for one installation.

    Args:
        secret: The installation's, see `derive_key`.
    """

    def __init__(self, secret: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(derive_key(secret, PURPOSE, length=32))
        self.public_key = PublicKey(self._key.public_key())

    def sign(self, kind: Kind, log: LogName, head: chain.Head, *, at: int) -> Checkpoint:
        """Return a checkpoint of *head*, signed.

        Args:
            kind: See the module.
            log: Which it is.
            head: The row that the log had.
            at: Unix µs.
        """
        members = {
            "format": FORMAT,
            "kind": kind,
            "environment": log.environment,
            "installation": log.installation,
            "seq": head.seq,
            "row_hash": head.row_hash.hex(),
            "at": at,
            "key": self.public_key.id,
        }
        signed = json.dumps(members, separators=(",", ":"))
        return Checkpoint.read(signed, self._key.sign(signed.encode()))


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


# In the database --------------------------------------------------------------------------------


def log_name(tx: sa.Connection) -> LogName:
    """Return which log the database holds."""
    row = tx.execute(sa.select(installation.c.environment, installation.c.created_at)).one()
    return LogName(row.environment, row.created_at)


def head_of(tx: sa.Connection) -> chain.Head:
    """Return the last row of the log; `chain.BEGINNING` when there is none."""
    c = audit_events.c
    row = tx.execute(sa.select(c.seq, c.row_hash).order_by(c.seq.desc()).limit(1)).first()
    return chain.Head(row.seq, row.row_hash) if row else chain.BEGINNING


def read_row(row: sa.Row[Any]) -> Checkpoint:
    """Read a row of `audit_checkpoints`.

    Raises:
        Unreadable: It is no checkpoint, or its columns say something else than what was signed.
    """
    one = Checkpoint.read(row.signed, row.signature)
    if one.row != dict(row._mapping):  # noqa: SLF001 - SQLAlchemy's documented name
        raise Unreadable("does not say what the columns beside it say")
    return one


def readable(rows: Iterable[sa.Row[Any]]) -> Iterator[Checkpoint]:
    """Give those of the *rows* of `audit_checkpoints` that can be read."""
    for row in rows:
        with suppress(Unreadable):
            yield read_row(row)


def newest(tx: sa.Connection, key: PublicKey, kind: Kind | None = None) -> Checkpoint | None:
    """Return the checkpoint that *key* signed last, of this *kind* or of any."""
    authority = Authority(key, log=log_name(tx))
    signed = (one for one in _backwards(tx, kind=kind) if authority.fault(one) is None)
    return next(signed, None)


def pruned_up_to(tx: sa.Connection) -> int:
    """Return the last row that was pruned, whoever says so; 0 for none."""
    c = audit_checkpoints.c
    return tx.scalar(sa.select(sa.func.max(c.seq)).where(c.kind == "pruned")) or 0


def page(tx: sa.Connection, *, limit: int, before: int | None = None) -> Sequence[Checkpoint]:
    """Return up to *limit* checkpoints, newest first, those signed earlier than *before* (µs)."""
    return list(islice(_backwards(tx, before=before), limit))


def _backwards(
    tx: sa.Connection, *, kind: Kind | None = None, before: int | None = None
) -> Iterator[Checkpoint]:
    """Give what can be read, newest first; somebody may have put anything in between."""
    c = audit_checkpoints.c
    wanted = audit_checkpoints.select().order_by(c.at.desc()).limit(AT_ONCE)
    if kind is not None:
        wanted = wanted.where(c.kind == kind)
    if before is not None:
        wanted = wanted.where(c.at < before)
    rows = tx.execute(wanted).all()
    while rows:
        yield from readable(rows)
        rows = tx.execute(wanted.where(c.at < rows[-1].at)).all()
