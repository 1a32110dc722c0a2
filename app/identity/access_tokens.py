"""Our own access tokens: short-lived JWTs for the people who signed in here (RFC 9068).

A token is taken when it is, byte for byte, one that this module would write, and nothing in it is
parsed before its signature has been checked (docs/decisions/0003-strict-token-wrapper.md).
"""

import hashlib
import json
import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from app.base.clock import Clock
from app.base.errors import InvalidToken
from app.base.ids import is_id, new_id
from app.base.keys import derive_key
from app.identity.jose import es256_key, from_base64url, to_base64url

MAX_TTL_SECONDS = 3600
MAX_TOKEN_LENGTH = 4096
CLOCK_SKEW_SECONDS = 5
"""How far the clocks of two instances may be apart before a fresh token is refused."""

_EXPIRED = "The access token has expired. Get a new one at POST /auth/token."

_CURVE = ec.SECP256R1()
_ORDER = _CURVE.group_order
_SIGNATURE_BYTES = 64  # r and s, 32 bytes each (RFC 7518 section 3.4)

_CLAIM_NAMES = ("iss", "aud", "sub", "jti", "iat", "exp", "scope", "sid")  # in our order
_SCOPE = re.compile(r"[!#-\[\]-~]+(?: [!#-\[\]-~]+)*")  # RFC 6749 section 3.3
_compact_json = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """An access token on its way to the one who signed in."""

    token: str = field(repr=False)
    jti: str
    expires_at: datetime
    expires_in: int
    """Seconds, as in RFC 6749 section 5.1."""


@dataclass(frozen=True, slots=True)
class Claims:
    """What a verified access token says; instants in Unix seconds, names as in RFC 7519."""

    sub: str
    """The user, ``usr_…``."""

    scope: frozenset[str]

    sid: str
    """The sign-in it came from, ``sgn_…``."""

    jti: str
    iat: int
    exp: int


class AccessTokens:
    """Issues and verifies access tokens.

    Args:
        secret: The installation's secret; instances that share it accept each other's tokens.
        key_generation: The key that signs, 1 or more. Tokens of the one before are still taken.
        issuer: ``PUBLIC_URL``; ``iss`` and ``aud`` of every token.
        ttl_seconds: Lifetime of the tokens issued, 1 to 3600.
        clock: Tells the present.
    """

    def __init__(
        self, *, secret: bytes, key_generation: int = 1, issuer: str, ttl_seconds: int, clock: Clock
    ) -> None:
        self._issuer = issuer
        self._ttl_seconds = ttl_seconds
        self._clock = clock
        live = [n for n in (key_generation, key_generation - 1) if n >= 1]
        keys = [_SigningKey(secret, purpose=f"access-token-es256-{n}") for n in live]
        self._signing_key = keys[0]
        # By the encoded header, which names the key: whoever writes another header (other alg,
        # typ or kid, crit, jku, jwk, a second spelling of the same) finds no key.
        self._keys = {key.header: key for key in keys}

    def wrote(self, token: str) -> bool:
        """Tell whether *token* claims to be one of ours, and `verify` is who decides about it."""
        return token.partition(".")[0] in self._keys

    def issue(
        self, *, user_id: str, scope: str, sign_in_id: str, until: datetime | None = None
    ) -> IssuedToken:
        """Return a new token for the user *user_id*.

        Args:
            user_id: ``usr_…``.
            scope: One or more scopes, one space between them.
            sign_in_id: ``sgn_…``; revoking that sign-in ends the token's use.
            until: When the sign-in ends by itself, if that is known; the token ends no later.
        """
        issued_at = self._clock().replace(microsecond=0)
        expires_at = issued_at + timedelta(seconds=self._ttl_seconds)
        if until is not None:
            expires_at = min(expires_at, until.replace(microsecond=0))
        jti = new_id("jti")
        claims = {
            "iss": self._issuer,
            "aud": self._issuer,
            "sub": user_id,
            "jti": jti,
            "iat": int(issued_at.timestamp()),
            "exp": int(expires_at.timestamp()),
            "scope": scope,
            "sid": sign_in_id,
        }
        payload = to_base64url(_compact_json(claims).encode())
        signing_input = f"{self._signing_key.header}.{payload}"
        signature = to_base64url(self._signing_key.sign(signing_input))
        expires_in = int((expires_at - issued_at).total_seconds())
        return IssuedToken(f"{signing_input}.{signature}", jti, expires_at, expires_in)

    def verify(self, token: str) -> Claims:
        """Return what *token* says, if it is one of ours and still good.

        Args:
            token: Anything a stranger may have sent.

        Raises:
            InvalidToken: It is not, and the message says only whether it has expired.
        """
        # Step 1: nothing of the token is believed or parsed until its signature is good.
        if len(token) > MAX_TOKEN_LENGTH or not token.isascii():
            raise InvalidToken
        signing_input, _, signature = token.rpartition(".")
        header, _, payload = signing_input.partition(".")
        key = self._keys.get(header)
        if key is None or not key.verifies(signing_input, signature):
            raise InvalidToken

        # Step 2: we signed it, and it is spelt as we spell it. That rules out repeated members,
        # NaN, other number forms and stray bytes without looking for them.
        try:
            octets = from_base64url(payload)
            claims = json.loads(octets)
            as_we_write_it = _compact_json(claims).encode() == octets
        except (ValueError, RecursionError):
            raise InvalidToken from None
        if not as_we_write_it:
            raise InvalidToken

        # Step 3: it is an access token for this service, and its time is now.
        match claims:
            case {
                "iss": self._issuer,
                "aud": self._issuer,
                "sub": str(sub),
                "jti": str(jti),
                "iat": int(iat),  # True is an int to Python, but long past
                "exp": int(exp),
                "scope": str(scope),
                "sid": str(sid),
            } if tuple(claims) == _CLAIM_NAMES:
                pass
            case _:
                raise InvalidToken
        now = int(self._clock().timestamp())
        if not (
            is_id(sub, "usr")
            and is_id(sid, "sgn")
            and is_id(jti, "jti")
            and _SCOPE.fullmatch(scope)
            and iat <= now + CLOCK_SKEW_SECONDS
            and 0 < exp - iat <= MAX_TTL_SECONDS
        ):
            raise InvalidToken
        if exp <= now:
            raise InvalidToken(_EXPIRED)
        return Claims(sub, frozenset(scope.split(" ")), sid, jti, iat, exp)

    def jwks(self) -> dict[str, Any]:
        """Return the public keys as a JWK Set (RFC 7517), the one that signs first."""
        return {"keys": [dict(key.jwk) for key in self._keys.values()]}


class _SigningKey:
    """A P-256 key, the header of the tokens it signs, and its public half as a JWK.

    The private scalar is derived from *secret* with 128 bits more than the order has, which makes
    the bias of the reduction negligible (FIPS 186-5 appendix A.2.1).
    """

    def __init__(self, secret: bytes, *, purpose: str) -> None:
        extra_random = int.from_bytes(derive_key(secret, purpose, length=48), "big")
        private_key = ec.derive_private_key(extra_random % (_ORDER - 1) + 1, _CURVE)
        self._private = es256_key(private_key)
        self._public = self._private.public_key()

        public = self._public.to_dict()
        # RFC 7638: the required members of an EC key, in this order, without spaces.
        essence = _compact_json({name: public[name] for name in ("crv", "kty", "x", "y")})
        kid = to_base64url(hashlib.sha256(essence.encode()).digest())
        self.jwk = {**public, "kid": kid, "use": "sig"}
        header = {"alg": "ES256", "typ": "at+jwt", "kid": kid}
        self.header = to_base64url(_compact_json(header).encode())

    def sign(self, signing_input: str) -> bytes:
        """Return ``r ‖ s`` over *signing_input*, with the smaller of the two values of ``s``."""
        signature = self._private.sign(signing_input.encode("ascii"))
        s = int.from_bytes(signature[32:], "big")
        return signature[:32] + min(s, _ORDER - s).to_bytes(32, "big")

    def verifies(self, signing_input: str, signature: str) -> bool:
        """Tell whether *signature*, in base64url, is one that ``sign`` gave for *signing_input*.

        Whoever has a signature can turn it into a second good one by negating ``s``. Only the
        smaller ``s`` is taken, so that a token has one spelling.
        """
        try:
            r_and_s = from_base64url(signature)
        except ValueError:
            return False
        return (
            len(r_and_s) == _SIGNATURE_BYTES
            and int.from_bytes(r_and_s[32:], "big") <= _ORDER // 2
            and self._public.verify(signing_input.encode("ascii"), r_and_s)
        )
