"""Tokens of external issuers: what is taken, and every known trick against what is taken."""

import asyncio
import hashlib
import hmac
import json
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from app.base.errors import InsufficientScope, InvalidToken
from app.base.metrics import Metrics
from app.identity.external_tokens import ExternalClaims, ExternalTokens
from app.identity.issuer_settings import Issuer, Roles, read_issuers
from app.identity.issuers import Issuers
from app.settings import Settings
from tests.clock import StandingClock
from tests.conftest import START
from tests.forged_tokens import UNIX_NOW, compact, encode
from tests.oidc_provider import (
    RSA_KEYS,
    Provider,
    SigningKey,
    auth0_claims,
    clerk_claims,
    keycloak_claims,
    providing,
    supabase_claims,
)

KEYCLOAK = "http://localhost:8080"
PRESETS = (
    "supabase:abcdefghijklmnopqrst",
    "auth0:shop.eu.auth0.com:https://api.example.com/",
    f"keycloak:{KEYCLOAK}:shop:realtime",
    "clerk:clerk.example.com:https://app.example.com,https://www.example.com",
)
SHAPES: dict[str, dict[str, Any]] = {
    "supabase": supabase_claims("abcdefghijklmnopqrst", UNIX_NOW),
    "auth0": auth0_claims("shop.eu.auth0.com", "https://api.example.com/", UNIX_NOW),
    "keycloak": keycloak_claims(KEYCLOAK, "shop", "realtime", UNIX_NOW),
    "clerk": clerk_claims("clerk.example.com", "https://app.example.com", UNIX_NOW),
}
HEADERS: dict[str, dict[str, Any]] = {
    "clerk": {"cat": "cl_B7d4PD111AAA"},
    "auth0": {"typ": "at+jwt"},
}
FOREIGN_SECRET = b"super-secret-jwt-token-with-at-least-32-characters-long"


@dataclass
class Bench:
    """Issuers of every kind, whose keys are those of three providers, and who checks tokens."""

    runner: asyncio.Runner
    clock: StandingClock
    rsa: Provider
    """Signs with RS256, as `configured` says, and publishes a key for ES256 as well."""

    elliptic: Provider
    """Signs with ES256."""

    tokens: ExternalTokens

    def verify(self, token: str) -> ExternalClaims:
        return self.runner.run(self.tokens.verify(token))

    def taken(self, token: str) -> bool:
        """Tell whether *token* is taken; anything but a refusal gets out and fails the test."""
        try:
            self.verify(token)
        except (InvalidToken, InsufficientScope):
            return False
        return True

    def refusal(self, token: str) -> tuple[str, str]:
        """Return what the caller is told, and what the log is."""
        with capture_logs() as lines, pytest.raises(InvalidToken) as caught:
            self.verify(token)
        return caught.value.detail, "; ".join(str(line["reason"]) for line in lines)


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    clock = StandingClock(START)
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()

        async def set_up() -> Bench:
            one, other = [await stack.enter_async_context(providing(clock)) for _ in range(2)]
            one.keys.insert(0, SigningKey(kid="curve"))
            other.keys = [SigningKey(kid="first")]  # names of keys are not secret, nor unique
            settings = Settings(_env_file=None, issuers=PRESETS)
            presets = [
                issuer.model_copy(update={"jwks_uri": f"{one.url}/jwks"})
                for issuer in read_issuers(settings)
            ]
            configured = [
                Issuer.model_validate(one.table(algorithms=["RS256"])),
                Issuer.model_validate(other.table(algorithms=["ES256"])),
            ]
            issuers = Issuers(
                [*configured, *presets], anywhere=False, clock=clock, metrics=Metrics()
            )
            stack.push_async_callback(issuers.aclose)
            await issuers.refresh()
            return Bench(runner, clock, one, other, ExternalTokens(issuers, clock=clock))

        yield runner.run(set_up())
        runner.run(stack.aclose())


# What the four products give


@pytest.mark.parametrize("product", SHAPES)
def test_the_access_token_of_each_product_is_taken(bench: Bench, product: str) -> None:
    claims = SHAPES[product]

    said = bench.verify(bench.rsa.keys[-1].token(claims, **HEADERS.get(product, {})))

    assert (said.issuer, said.subject, said.role) == (claims["iss"], claims["sub"], "user")
    if "jti" in claims:
        assert said.credential == claims["jti"]
    else:
        assert said.credential.startswith("sha256:")
        assert len(said.credential) == 39


WRONG: dict[str, list[dict[str, Any]]] = {
    "supabase": [
        {"role": "anon"},
        {"role": "service_role"},
        {"role": None},
        {"is_anonymous": True},
        {"is_anonymous": None},
        {"is_anonymous": 0},
        {"aud": "anon"},
        {"iss": "https://abcdefghijklmnopqrsu.supabase.co/auth/v1"},
        {"iss": "https://abcdefghijklmnopqrst.supabase.co/auth/v1/"},
    ],
    "auth0": [
        {"aud": "my_client_id", "nonce": "n-0S6_WzA2Mj"},  # an ID token
        {"aud": ["https://shop.eu.auth0.com/userinfo"]},
        {"aud": "https://api.example.com"},
        {"aud": None},
        {"iss": "https://shop.eu.auth0.com"},
    ],
    "keycloak": [
        {"typ": "ID"},
        {"typ": "Refresh"},
        {"typ": None},
        {"aud": "account"},
        {"iss": f"{KEYCLOAK}/realms/master"},
        {"cnf": {"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}},
    ],
    "clerk": [
        {"azp": "https://evil.example"},
        {"azp": "https://app.example.com/"},
        {"azp": ["https://app.example.com"]},
        {"azp": None},
        {"aud": "another-service"},
        {"sts": "pending"},
        {"nbf": UNIX_NOW + 31},
    ],
}
WRONG_SHAPES = [(product, change) for product, changes in WRONG.items() for change in changes]


@pytest.mark.parametrize(("product", "change"), WRONG_SHAPES)
def test_what_is_not_for_us_is_refused_although_it_is_well_signed(
    bench: Bench, product: str, change: dict[str, Any]
) -> None:
    claims = {n: v for n, v in (SHAPES[product] | change).items() if v is not None}

    assert not bench.taken(bench.rsa.keys[-1].token(claims, **HEADERS.get(product, {})))


def test_a_shared_secret_is_refused_and_the_caller_told_why(bench: Bench) -> None:
    header = {"alg": "HS256", "typ": "JWT", "kid": "first"}
    signing_input = f"{encode(compact(header))}.{encode(compact(SHAPES['supabase']))}"
    signature = hmac.digest(FOREIGN_SECRET, signing_input.encode(), hashlib.sha256)

    told, logged = bench.refusal(f"{signing_input}.{encode(signature)}")

    assert "shared secret (HS256)" in told
    assert "RS256 or ES256" in told
    assert logged == "alg is not of this issuer"


# Time


@pytest.mark.parametrize(
    ("times", "told"),
    [
        ({"exp": UNIX_NOW - 29}, None),
        ({"exp": UNIX_NOW - 30}, "has expired"),
        ({"iat": UNIX_NOW + 30}, None),
        ({"iat": UNIX_NOW + 31}, "not valid"),
        ({"nbf": UNIX_NOW + 30}, None),
        ({"nbf": UNIX_NOW + 31}, "not valid"),
        ({"iat": UNIX_NOW - 86_430}, None),
        ({"iat": UNIX_NOW - 86_431}, "has expired"),
        ({"exp": 2**53}, None),
        ({"exp": 2**53 + 1}, "not valid"),
    ],
)
def test_a_token_has_its_time(bench: Bench, times: dict[str, int], told: str | None) -> None:
    token = bench.rsa.token(**times)

    assert bench.taken(token) == (told is None)
    assert told is None or told in bench.refusal(token)[0]


# Roles


ROLES: dict[str, Any] = {
    "claim": ["realm_access", "roles"],
    "admin": ["boss"],
    "auditor": ["eye", "ear"],
}


@pytest.mark.parametrize(
    ("claim", "role"),
    [
        ({"roles": ["boss", "eye"]}, "admin"),
        ({"roles": ["x", "ear"]}, "auditor"),
        ({"roles": "x eye y"}, "auditor"),
        ({"roles": ["BOSS", "boss ", {"boss": 1}, ["boss"], None, 1]}, "user"),
        ({"roles": {"boss": True}}, "user"),
        ({"roles": "bossy"}, "user"),
        ({"roles": True}, "user"),
        ({}, "user"),
        (["boss"], "user"),
        ("boss", "user"),
    ],
)
def test_a_role_is_given_by_the_exact_value_at_the_exact_place(claim: Any, role: str) -> None:
    assert Roles(**ROLES).role_of({"realm_access": claim, "roles": ["boss"]}) == role


def test_where_users_need_a_value_nobody_else_has_a_role() -> None:
    roles = Roles(**ROLES, user=["voice"])

    assert roles.role_of({"realm_access": {"roles": ["voice"]}}) == "user"
    assert roles.role_of({"realm_access": {"roles": ["other"]}}) is None


# The key and the algorithm


def public_bytes(key: SigningKey, encoding: serialization.Encoding) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.private.public_key().public_bytes(encoding, form)


def hmac_signed(key: SigningKey, claims: Any, secret: bytes, *, alg: str = "HS256") -> str:
    signing_input = f"{encode(compact({'alg': alg, 'kid': key.kid}))}.{encode(compact(claims))}"
    return f"{signing_input}.{encode(hmac.digest(secret, signing_input.encode(), 'sha256'))}"


def forgeries(bench: Bench) -> Iterator[tuple[str, str]]:
    rsa, elliptic = bench.rsa, bench.elliptic
    key, claims = rsa.keys[-1], rsa.claims()
    pem, der = serialization.Encoding.PEM, serialization.Encoding.DER
    for alg in ("none", "None", "NONE", "", None):
        header = {"alg": alg, "kid": key.kid}
        yield f"unsigned, {alg}", f"{encode(compact(header))}.{encode(compact(claims))}."
    yield "HS256 with the public key as PEM", hmac_signed(key, claims, public_bytes(key, pem))
    yield "HS256 with the public key as DER", hmac_signed(key, claims, public_bytes(key, der))
    yield "HS256 with the JWK", hmac_signed(key, claims, compact(key.jwk))
    yield "HMAC under RS256", hmac_signed(key, claims, public_bytes(key, pem), alg="RS256")
    stranger, other = SigningKey(RSA_KEYS[1], key.kid), SigningKey(kid="first")
    yield "a stranger's key under a known name", stranger.token(claims)
    yield "a stranger's key in jwk", stranger.token(claims, jwk=stranger.jwk)
    yield "a stranger's key by jku", stranger.token(claims, jku="https://evil.example/jwks")
    yield "a stranger's ES256 key", other.token(claims)
    yield "the other issuer's key for this issuer", elliptic.keys[0].token(claims)
    yield "this issuer's key for the other", key.token(elliptic.claims())
    yield "a published key of an algorithm that is not configured", rsa.keys[0].token(claims)
    curve = SigningKey(rsa.keys[0].private, "first")
    yield "the other issuer's key under a name that both have", curve.token(elliptic.claims())
    es256_header = {"alg": "RS256", "kid": "curve"}
    yield "a curve's key under RS256", rsa.keys[0].token(claims, es256_header)
    yield "an RSA key under ES256", key.token(claims, {"alg": "ES256", "kid": key.kid})
    signing_input = f"{encode(compact({'alg': 'RS256', 'kid': key.kid}))}.{encode(compact(claims))}"
    pss = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=32)
    signature = RSA_KEYS[0].sign(signing_input.encode(), pss, hashes.SHA256())
    yield "a PSS signature", f"{signing_input}.{encode(signature)}"
    sha512 = RSA_KEYS[0].sign(signing_input.encode(), padding.PKCS1v15(), hashes.SHA512())
    yield "an RS512 signature", f"{signing_input}.{encode(sha512)}"
    for name, bad in {
        "nothing": b"", "zeros": bytes(256), "ones": b"\xff" * 256, "a longer one": bytes(257),
    }.items():  # fmt: skip
        yield f"{name} as signature", f"{signing_input}.{encode(bad)}"
    der_signature = ec.generate_private_key(ec.SECP256R1()).sign(b"", ec.ECDSA(hashes.SHA256()))
    curve_input = elliptic.token().rpartition(".")[0]
    for name, bad in {
        "zeros": bytes(64), "nothing": b"", "DER": der_signature, "ones": b"\xff" * 64,
    }.items():  # fmt: skip
        yield f"{name} as signature on a curve", f"{curve_input}.{encode(bad)}"


def test_nobody_but_the_issuer_itself_signs_for_it(bench: Bench) -> None:
    tried = dict(forgeries(bench))

    assert bench.taken(bench.rsa.token())
    assert bench.taken(bench.elliptic.token())
    assert [trick for trick, token in tried.items() if bench.taken(token)] == []
    assert len(tried) == 28


def test_where_both_algorithms_are_taken_the_header_names_that_of_the_key(bench: Bench) -> None:
    curve, claims = bench.rsa.keys[0], SHAPES["supabase"]

    assert bench.taken(curve.token(claims))
    assert not bench.taken(curve.token(claims, {"alg": "RS256", "kid": curve.kid}))


# The header and the spelling


WRONG_KEY_IDS: list[Any] = ["", "../../dev/null", "' OR '1'='1", "\0", None, 0, ["first"], {}]
WRONG_HEADERS: list[Any] = [
    *({"alg": alg} for alg in ("rs256", "RS512", "PS256", "ES256", "EdDSA", ["RS256"], None, 1)),
    *({"typ": typ} for typ in ("ID", "id+jwt", "logout+jwt", "dpop+jwt", "JWE", "", 1, ["JWT"])),
    *({"kid": kid} for kid in WRONG_KEY_IDS),
    {"crit": ["exp"]},
    {"crit": []},
    {"b64": False, "crit": ["b64"]},
    {"b64": True},
    {"zip": "DEF"},
    {"enc": "A256GCM"},
    {"jku": "https://evil.example"},
    {"x5u": "https://evil.example"},
    {"x5c": ["MIIB"]},
    {"jwk": {}},
    {"p2c": 2**31},
    {"padding": "x" * 1024},
]


@pytest.mark.parametrize("change", WRONG_HEADERS)
def test_a_header_that_wants_something_else_is_refused(bench: Bench, change: Any) -> None:
    assert not bench.taken(bench.rsa.keys[-1].token(bench.rsa.claims(), **change))


@pytest.mark.parametrize("missing", ["alg", "kid"])
def test_a_header_that_says_too_little_is_refused(bench: Bench, missing: str) -> None:
    header = {"alg": "RS256", "typ": "JWT", "kid": "first"}
    del header[missing]

    assert not bench.taken(bench.rsa.keys[-1].token(bench.rsa.claims(), header))


HEADER = compact({"alg": "RS256", "typ": "JWT", "kid": "first"})
SPOILT: list[Callable[[bytes], bytes]] = [
    lambda text: text[:-1] + b',"iss":"https://evil.example","alg":"none"}',
    lambda text: b'{"alg":"none","iss":"https://evil.example",' + text[1:],
    lambda text: text[:-1] + b',"extra":NaN}',
    lambda text: text[:-1] + b',"extra":-Infinity}',
    lambda text: text[:-1] + b',"extra":{"a":1,"a":2}}',
    lambda text: text[:-1] + b',"extra":' + b"9" * 5000 + b"}",
    lambda text: text[:-1] + b',"extra":' + b"[" * 1500 + b"]" * 1500 + b"}",
    lambda text: text + b"\0",
    lambda text: text + text,
    lambda text: b"\xef\xbb\xbf" + text,
    lambda text: text.decode().encode("utf-16"),
    lambda text: b"\xff" + text,
    lambda _: b"[" * 5000,
    lambda _: b"",
    lambda _: b"null",
    lambda _: b"[]",
    lambda _: b'"text"',
]


@pytest.mark.parametrize("spoil", SPOILT)
def test_json_that_two_readers_might_read_differently_is_refused(
    bench: Bench, spoil: Callable[[bytes], bytes]
) -> None:
    claims, sign = compact(bench.rsa.claims()), bench.rsa.keys[-1].token

    assert bench.taken(sign(claims, HEADER))
    assert not bench.taken(sign(spoil(claims), HEADER))
    assert not bench.taken(sign(claims, spoil(HEADER)))


def spellings(token: str) -> Iterator[str]:
    header, payload, signature = token.split(".")
    yield from (token + tail for tail in ("=", "==", ".", ".e30", "\n", " ", "\0", "\ud800", "é"))
    yield from (head + token for head in ("=", ".", " ", "\n", "Bearer "))
    yield f"{header}.{payload}"
    yield f"{header}..{signature}"
    yield f"{header}.{payload}.{signature[:-1]}{'B' if signature[-1] == 'A' else 'A'}"
    yield f"{header}.{payload[:9]}\n{payload[9:]}.{signature}"
    yield f"{header}.{payload}.{signature[:9]}+{signature[10:]}"
    yield json.dumps({"protected": header, "payload": payload, "signature": signature})
    yield from ("", ".", "..", "...", "." * 9000, token * 20, "a" * 100_000)


def test_a_token_has_one_spelling(bench: Bench) -> None:
    assert [other for other in spellings(bench.rsa.token()) if bench.taken(other)] == []


@pytest.mark.parametrize("more", [0, 1])
def test_a_token_may_have_8192_characters_and_no_more(bench: Bench, more: int) -> None:
    # In threes of bytes the encoded payload grows in fours of characters.
    claims = bench.rsa.claims(scope="")
    head, payload, signature = bench.rsa.keys[-1].token(claims).split(".")
    room = 8192 - len(head) - len(signature) - 2
    fill = room * 3 // 4 - len(compact(claims)) + more
    token = bench.rsa.keys[-1].token(claims | {"scope": "x" * fill})

    assert payload
    assert (len(token) > 8192) == bool(more)
    assert bench.taken(token) == (not more)


# The claims


WRONG_VALUES: dict[str, list[Any]] = {
    "aud": [None, "other", ["other"], [], ["realtime", 1], [["realtime"]], {"realtime": 1}, True],
    "sub": [None, "", 17, ["their-user-17"], "x" * 256, "a\nb", "ü", "\ud800", "a\0", True],
    "iat": [None, "1795176000", float(UNIX_NOW), True, -1, 10**300, [UNIX_NOW]],
    "exp": [None, str(UNIX_NOW + 600), UNIX_NOW + 600.5, False, 1e300, {}, 10**300],
    "nbf": ["now", float(UNIX_NOW), True, -1, []],
    "iss": [None, "", ["x"], {}, 1, "https://evil.example"],
    "at_hash": ["x"],
    "c_hash": [""],
    "events": [{}],
    "cnf": [{}],
}
WRONG_CLAIMS = [(name, value) for name, values in WRONG_VALUES.items() for value in values]


@pytest.mark.parametrize(("name", "value"), WRONG_CLAIMS)
def test_a_wrong_claim_is_refused_although_the_issuer_signed_it(
    bench: Bench, name: str, value: Any
) -> None:
    assert not bench.taken(bench.rsa.token(**{name: value}))


ID_OF_A_SERVICE_KEY = "key_4KQ2M8Z6T0V9N7R5P3S1W8XHJ0"


@pytest.mark.parametrize(
    "jti", ["", "with blank", "ü", "x" * 129, 7, None, ["x"], "a\nb", ID_OF_A_SERVICE_KEY]
)
def test_an_odd_jti_is_not_repeated_anywhere(bench: Bench, jti: Any) -> None:
    token = bench.rsa.token(jti=jti)

    digest = hashlib.sha256(token.encode()).hexdigest()
    assert bench.verify(token).credential == f"sha256:{digest[:32]}"


def test_the_log_says_what_is_wrong_and_nothing_of_the_token(bench: Bench) -> None:
    told, logged = bench.refusal(bench.rsa.token(aud="canary"))

    assert logged == "aud has none of the audiences"
    assert "canary" not in told


def test_a_stranger_learns_nothing_about_the_issuers(bench: Bench) -> None:
    with capture_logs() as lines, pytest.raises(InvalidToken) as caught:
        bench.verify(bench.rsa.token(iss="https://evil.example"))

    assert caught.value.detail == InvalidToken().detail
    assert lines == []


# Whatever arrives


@hypothesis_settings(max_examples=120)
@given(text=st.text() | st.text("ey.-_=AB \n\0\ud800", max_size=60))
def test_text_of_any_kind_is_refused_and_never_crashes(bench: Bench, text: str) -> None:
    assert not bench.taken(text)
    assert not bench.taken(bench.rsa.token()[:150] + text)


def json_values(names: list[str]) -> st.SearchStrategy[Any]:
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(names) | st.text(), inner, max_size=3)
        ),
        max_leaves=8,
    )


CLAIM_NAMES = ["iss", "aud", "sub", "iat", "exp", "nbf", "jti", "azp", "typ", "cnf", "role"]
HEADER_NAMES = ["alg", "kid", "typ", "crit", "jwk", "jku", "zip", "b64", "x5c"]


@pytest.mark.slow
@hypothesis_settings(max_examples=120)
@given(
    claims=st.dictionaries(st.sampled_from(CLAIM_NAMES) | st.text(), json_values(CLAIM_NAMES)),
    header=st.dictionaries(st.sampled_from(HEADER_NAMES) | st.text(), json_values(HEADER_NAMES)),
)
def test_whatever_the_issuer_signs_is_taken_or_refused_and_never_crashes(
    bench: Bench, claims: dict[str, Any], header: dict[str, Any]
) -> None:
    key = bench.rsa.keys[-1]
    full_header = {"alg": "RS256", "kid": key.kid} | header
    full_claims = bench.rsa.claims() | claims
    token = key.token(full_claims, full_header)

    if bench.taken(token):
        assert full_header["alg"] == "RS256"
        assert full_header["kid"] == key.kid
        assert not {"crit", "jwk", "jku", "zip", "b64", "x5c"} & full_header.keys()
        assert full_claims["iss"] == bench.rsa.url
        assert full_claims["aud"] == "realtime" or "realtime" in full_claims["aud"]
        assert type(full_claims["exp"]) is type(full_claims["iat"]) is int
        assert "cnf" not in full_claims


@hypothesis_settings(max_examples=120)
@given(start=st.integers(0, 700), length=st.integers(0, 3), put=st.text("ABCwxyz-_.=é", max_size=3))
def test_a_good_token_that_is_changed_anywhere_is_refused(
    bench: Bench, start: int, length: int, put: str
) -> None:
    good = bench.rsa.token()
    changed = good[:start] + put + good[start + length :]

    assert bench.taken(changed) == (changed == good)
