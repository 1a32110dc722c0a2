"""JOSE in a strict dialect: spellings, JSON, public keys. The only module that uses python-jose.

Of python-jose it takes the keys alone: its readers of tokens and of key sets accept what they
should refuse (docs/decisions/0003-strict-token-wrapper.md).
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jose import jwk
from jose.backends.base import Key

Algorithm: TypeAlias = Literal["RS256", "ES256"]
Json: TypeAlias = dict[str, Any]

MOST_KEYS = 20
RSA_BITS = range(2048, 8192 + 1)
"""Fewer are not safe (RFC 7518 section 3.3); with more a check takes milliseconds."""

_LARGEST_RSA_EXPONENT = 2**32 - 1
_COORDINATE_BYTES = 32  # of P-256; also of each half of a signature (RFC 7518 section 3.4)


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that proves signatures of one algorithm, whatever the header of a token says."""

    algorithm: Algorithm
    signature_bytes: int
    key: Key

    def verifies(self, signing_input: str, signature: bytes) -> bool:
        """Tell whether *signature* is one over *signing_input*, which is ASCII."""
        return len(signature) == self.signature_bytes and self.key.verify(
            signing_input.encode("ascii"), signature
        )


def es256_key(private_key: ec.EllipticCurvePrivateKey) -> Key:
    """Return python-jose's key of *private_key*, which is on P-256."""
    return jwk.construct(private_key, "ES256")  # type: ignore[arg-type]  # the stubs forget key objects


def key_set(document: Mapping[str, Any], algorithms: Sequence[Algorithm]) -> dict[str, PublicKey]:
    """Return the keys of a JWK Set by their `kid`: those that can prove one of *algorithms*.

    Keys of other types and for other uses are left out, and so are those without a `kid`.

    Raises:
        ValueError: It is no key set, has more than 20 keys, two of one name, a private or a
            symmetric one, or none that can be used. The message says which, and quotes nothing.

    Source: RFC 7517 sections 4 and 5, RFC 7518 section 6.
    """
    keys = document.get("keys")
    if not isinstance(keys, list) or not all(isinstance(key, dict) for key in keys):
        raise ValueError("is no key set")
    if len(keys) > MOST_KEYS:
        raise ValueError(f"has more than {MOST_KEYS} keys")
    if any(key.get("kty") == "oct" or "d" in key or "k" in key for key in keys):
        raise ValueError("publishes a secret: a symmetric or a private key")
    named = [key for key in keys if isinstance(key.get("kid"), str)]
    if len({key["kid"] for key in named}) < len(named):
        raise ValueError("has two keys with the same kid")
    read = {key["kid"]: _public_key(key) for key in named}
    usable = {kid: key for kid, key in read.items() if key and key.algorithm in algorithms}
    if not usable:
        raise ValueError(
            f"has no key for {' or '.join(algorithms)}; an issuer that signs with a shared secret"
            " (HS256) has none and cannot be used"
        )
    return usable


def _public_key(described: Mapping[str, Any]) -> PublicKey | None:
    """Return the key that a JWK describes; None when it is not one of ours to use."""
    try:
        match described:
            case {"kty": "RSA", "n": str(n), "e": str(e)}:
                key = _rsa_key(int.from_bytes(from_base64url(n)), int.from_bytes(from_base64url(e)))
            case {"kty": "EC", "crv": "P-256", "x": str(x), "y": str(y)}:
                key = _p256_key(from_base64url(x), from_base64url(y))
            case _:
                return None
    except ValueError:  # no base64url, or no point of the curve
        return None
    operations = described.get("key_ops", ["verify"])
    meant = (
        key is not None
        and described.get("use", "sig") == "sig"
        and described.get("alg", key.algorithm) == key.algorithm
        and isinstance(operations, list)
        and "verify" in operations
    )
    return key if meant else None


def _rsa_key(n: int, e: int) -> PublicKey | None:
    if n.bit_length() not in RSA_BITS or e > _LARGEST_RSA_EXPONENT:
        return None
    key = jwk.construct(rsa.RSAPublicNumbers(e, n).public_key(), "RS256")  # type: ignore[arg-type]  # as above
    return PublicKey("RS256", (n.bit_length() + 7) // 8, key)


def _p256_key(x: bytes, y: bytes) -> PublicKey | None:
    if not len(x) == len(y) == _COORDINATE_BYTES:
        return None
    point = ec.EllipticCurvePublicNumbers(int.from_bytes(x), int.from_bytes(y), ec.SECP256R1())
    key = jwk.construct(point.public_key(), "ES256")  # type: ignore[arg-type]  # as above
    return PublicKey("ES256", 2 * _COORDINATE_BYTES, key)


def json_object(octets: bytes) -> Json:
    """Return the JSON object that *octets* are, in UTF-8.

    Raises:
        ValueError: They are something else, or an object with a member twice, with NaN or an
            infinity, or nested too deep to be read.
    """
    try:
        read = json.loads(
            octets.decode(), object_pairs_hook=_each_member_once, parse_constant=_refuse_constant
        )
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(read, dict):
        raise ValueError("not an object")  # noqa: TRY004 - to the caller it is one fault of many
    return read


def _each_member_once(members: list[tuple[str, Any]]) -> Json:
    read = dict(members)
    if len(read) < len(members):
        raise ValueError("a member twice")
    return read


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def to_base64url(octets: bytes) -> str:
    """Return *octets* as RFC 7515 section 2 writes them."""
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode("ascii")


def from_base64url(text: str) -> bytes:
    """Return the bytes that *text* stands for.

    Raises:
        ValueError: *text* is not the one way to write them (RFC 7515 section 2: no padding, no
            characters from outside the alphabet, unused bits zero).
    """
    octets = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if to_base64url(octets) != text:
        raise ValueError("not canonical base64url")
    return octets
