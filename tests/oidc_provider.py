"""An identity provider of the tests' own: signs tokens, and publishes its keys on loopback.

Its claims have the shapes of what Supabase, Auth0, Keycloak and Clerk give to a frontend.
"""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from app.base.clock import Clock, system_clock
from tests.forged_tokens import compact, encode
from tests.upstreams import Server, http, http_json, listening

RSA_KEYS = [rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2)]
"""Making one takes a while; whoever needs no more than two shares them."""

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
Answer = Callable[[], Awaitable[bytes]]


class SigningKey:
    """A key with its name."""

    def __init__(self, private: PrivateKey | None = None, kid: str | None = None) -> None:
        self.private = private or ec.generate_private_key(ec.SECP256R1())
        self.kid = kid or secrets.token_hex(8)

    @property
    def algorithm(self) -> str:
        return "RS256" if isinstance(self.private, rsa.RSAPrivateKey) else "ES256"

    @property
    def jwk(self) -> dict[str, Any]:
        """The public half as issuers publish it."""
        named = {"kid": self.kid, "use": "sig", "alg": self.algorithm}
        numbers = self.private.public_key().public_numbers()
        if isinstance(numbers, rsa.RSAPublicNumbers):
            return {"kty": "RSA", "n": number(numbers.n), "e": number(numbers.e), **named}
        x, y = (encode(part.to_bytes(32, "big")) for part in (numbers.x, numbers.y))
        return {"kty": "EC", "crv": "P-256", "x": x, "y": y, **named}

    def sign(self, signing_input: str) -> str:
        """Return the whole token."""
        octets = signing_input.encode()
        if isinstance(self.private, rsa.RSAPrivateKey):
            signature = self.private.sign(octets, padding.PKCS1v15(), hashes.SHA256())
        else:
            der = self.private.sign(octets, ec.ECDSA(hashes.SHA256()))
            signature = b"".join(part.to_bytes(32, "big") for part in decode_dss_signature(der))
        return f"{signing_input}.{encode(signature)}"

    def token(self, claims: Any, header: Any = None, **members: Any) -> str:
        """Return a signed token; bytes are taken as they are, anything else as JSON."""
        if header is None:
            header = {"alg": self.algorithm, "typ": "JWT", "kid": self.kid} | members
        parts = (part if isinstance(part, bytes) else compact(part) for part in (header, claims))
        return self.sign(".".join(encode(part) for part in parts))


def number(value: int) -> str:
    return encode(value.to_bytes((value.bit_length() + 7) // 8, "big"))


class Provider:
    """Publishes what it is told to, at `/jwks` and by discovery."""

    def __init__(self, clock: Clock = system_clock) -> None:
        self.clock = clock
        self.keys = [SigningKey(RSA_KEYS[0], "first")]
        self.server = Server(self.serve)
        self.configuration: dict[str, Any] = {}
        """What discovery says in place of the truth."""

        self.answer: Answer | None = None
        """What comes in place of the keys: one whole HTTP answer."""

        self.asked: list[str] = []
        """The paths that were asked for."""

    @property
    def url(self) -> str:
        return self.server.url.removesuffix("/v1")

    @property
    def fetches(self) -> int:
        """How often its keys were asked for."""
        return self.asked.count("/jwks")

    def table(self, **members: Any) -> dict[str, Any]:
        """Return its table in `ISSUERS_FILE`."""
        return {
            "issuer": self.url,
            "jwks_uri": f"{self.url}/jwks",
            "algorithms": ["RS256", "ES256"],
            "audiences": ["realtime"],
        } | members

    def claims(self, **members: Any) -> dict[str, Any]:
        """Return what stands in a plain access token of it; None takes a claim out."""
        now = int(self.clock().timestamp())
        claims = {
            "iss": self.url,
            "aud": "realtime",
            "sub": "their-user-17",
            "iat": now,
            "exp": now + 600,
            "jti": "their-token-1",
        } | members
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, **members: Any) -> str:
        """Return a good token, signed with the newest key."""
        return self.keys[-1].token(self.claims(**members))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request."""
        await self.server.read(reader)
        path = self.server.requests[-1].line.split(" ")[1]
        self.asked.append(path)
        if path == "/.well-known/openid-configuration":
            told = {"issuer": self.url, "jwks_uri": f"{self.url}/jwks"} | self.configuration
            writer.write(http_json(200, told))
        elif path != "/jwks":
            writer.write(http(404, b""))
        elif self.answer is not None:
            writer.write(await self.answer())
        else:
            writer.write(http_json(200, {"keys": [key.jwk for key in self.keys]}))
        await writer.drain()


@asynccontextmanager
async def providing(clock: Clock = system_clock) -> AsyncIterator[Provider]:
    """Run a provider on loopback."""
    provider = Provider(clock)
    async with listening(provider.serve) as server:
        provider.server = server
        yield provider


def in_toml(tables: list[Mapping[str, Any]]) -> str:
    """Return the file of these issuers; TOML's values are JSON's, except for tables."""

    def value(of: Any) -> str:
        if isinstance(of, Mapping):
            return "{" + ", ".join(f"{json.dumps(k)} = {value(v)}" for k, v in of.items()) + "}"
        return json.dumps(of)

    lines = []
    for table in tables:
        lines += ["[[issuers]]", *(f"{name} = {value(of)}" for name, of in table.items())]
    return "\n".join(lines) + "\n"


def supabase_claims(project: str, now: int) -> dict[str, Any]:
    """Return what Supabase gives to a user who has signed in."""
    return {
        "iss": f"https://{project}.supabase.co/auth/v1",
        "sub": "11111111-2222-4333-8444-555555555555",
        "aud": "authenticated",
        "exp": now + 3600,
        "iat": now,
        "email": "ada@example.com",
        "phone": "",
        "app_metadata": {"provider": "email", "providers": ["email"]},
        "user_metadata": {"email_verified": True},
        "role": "authenticated",
        "aal": "aal1",
        "amr": [{"method": "password", "timestamp": now}],
        "session_id": "99999999-8888-4777-8666-555555555555",
        "is_anonymous": False,
    }


def auth0_claims(domain: str, audience: str, now: int) -> dict[str, Any]:
    """Return the access token of an Auth0 API, for a single-page application."""
    return {
        "iss": f"https://{domain}/",
        "sub": "auth0|5f7c8ec7c33c6c004bbafe82",
        "aud": [audience, f"https://{domain}/userinfo"],
        "iat": now,
        "exp": now + 86_400,
        "scope": "openid profile email",
        "azp": "my_client_id",
        "permissions": ["read:realtime"],
    }


def keycloak_claims(url: str, realm: str, audience: str, now: int) -> dict[str, Any]:
    """Return the access token of a Keycloak realm that has an audience mapper."""
    return {
        "exp": now + 300,
        "iat": now,
        "auth_time": now - 20,
        "jti": "onrtac:41d0e0b5-0c3d-4b71-9ab8-0d4e2a6f3b11",
        "iss": f"{url}/realms/{realm}",
        "aud": [audience, "account"],
        "sub": "f:5f7c8ec7:ada",
        "typ": "Bearer",
        "azp": "frontend",
        "sid": "6a2f1b0e-52f3-4a5c-9c5d-0a1b2c3d4e5f",
        "acr": "1",
        "allowed-origins": ["https://app.example.com"],
        "realm_access": {"roles": ["offline_access", "realtime-auditor"]},
        "resource_access": {"account": {"roles": ["manage-account"]}},
        "scope": "openid profile email",
        "preferred_username": "ada",
    }


def clerk_claims(domain: str, origin: str, now: int) -> dict[str, Any]:
    """Return a Clerk session token, version 2."""
    return {
        "azp": origin,
        "exp": now + 60,
        "fva": [7, -1],
        "iat": now,
        "iss": f"https://{domain}",
        "jti": "9b1d2f3a4c5e6f708192",
        "nbf": now - 10,
        "sid": "sess_2GbDB4enNdCa5vS1zpC3Xzg9tK9",
        "sts": "active",
        "sub": "user_2GIpXOEpVyJw51rkZn9Kmnc6Sxr",
        "v": 2,
    }
