"""Access tokens with one fault each.

``forge`` signs with the installation's own private key, derived here a second time with
cryptography alone. So it is the fault that gets a forged token refused, not its signature.
"""

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from app.base.errors import InvalidToken
from app.base.keys import derive_key
from app.identity.access_tokens import AccessTokens

NOW = datetime(2026, 11, 20, 12, 0, 0, 250_000, tzinfo=UTC)
UNIX_NOW = 1_795_176_000
ISSUER = "https://tokens.example.com"
SECRET = b"an installation's secret, 32 bytes or more"
KID = "S9MgYq8iBhbRJpQ2EfNSULOE39SAb8zkP8QJdXSnK44"
USER = "usr_0000000000000000000000000A"
SIGN_IN = "sgn_0000000000000000000000000B"
ORDER = ec.SECP256R1().group_order


def access_tokens(
    *,
    secret: bytes = SECRET,
    key_generation: int = 1,
    issuer: str = ISSUER,
    later: timedelta = timedelta(),
) -> AccessTokens:
    return AccessTokens(
        secret=secret,
        key_generation=key_generation,
        issuer=issuer,
        ttl_seconds=600,
        clock=lambda: NOW + later,
    )


def private_key() -> ec.EllipticCurvePrivateKey:
    wide = int.from_bytes(derive_key(SECRET, "access-token-es256-1", length=48), "big")
    return ec.derive_private_key(wide % (ORDER - 1) + 1, ec.SECP256R1())


TOKENS = access_tokens()
GENUINE = TOKENS.issue(user_id=USER, scope="mint audit:read", sign_in_id=SIGN_IN).token
PRIVATE_KEY = private_key()
STRANGER = ec.generate_private_key(ec.SECP256R1())

HEADER: dict[str, Any] = {"alg": "ES256", "typ": "at+jwt", "kid": KID}
CLAIMS: dict[str, Any] = {
    "iss": ISSUER,
    "aud": ISSUER,
    "sub": USER,
    "jti": "jti_0000000000000000000000000C",
    "iat": UNIX_NOW,
    "exp": UNIX_NOW + 600,
    "scope": "mint audit:read",
    "sid": SIGN_IN,
}


def encode(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def decode(segment: str) -> bytes:
    return base64.urlsafe_b64decode(segment + "==")


def compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def r_and_s(signing_input: str, key: ec.EllipticCurvePrivateKey = PRIVATE_KEY) -> tuple[int, int]:
    der = key.sign(signing_input.encode(), ec.ECDSA(hashes.SHA256()))
    r, s = decode_dss_signature(der)
    return r, min(s, ORDER - s)


def sign(signing_input: str, key: ec.EllipticCurvePrivateKey = PRIVATE_KEY) -> str:
    r, s = r_and_s(signing_input, key)
    return f"{signing_input}.{encode(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def forge(
    header: Any = HEADER, claims: Any = CLAIMS, key: ec.EllipticCurvePrivateKey = PRIVATE_KEY
) -> str:
    """Return a well-signed token; bytes are taken as they are, anything else as JSON."""
    parts = (part if isinstance(part, bytes) else compact(part) for part in (header, claims))
    return sign(".".join(encode(part) for part in parts), key)


def assert_refused(token: str, tokens: AccessTokens = TOKENS) -> None:
    with pytest.raises(InvalidToken) as refusal:
        tokens.verify(token)

    assert refusal.value.detail == InvalidToken().detail
