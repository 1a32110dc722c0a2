"""The known tricks against JWTs, and anything else: nothing is taken, nothing crashes."""

import hmac
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st

from app.base.errors import InvalidToken
from tests.forged_tokens import (
    CLAIMS,
    GENUINE,
    HEADER,
    ISSUER,
    KID,
    ORDER,
    PRIVATE_KEY,
    SECRET,
    SIGN_IN,
    STRANGER,
    TOKENS,
    UNIX_NOW,
    USER,
    access_tokens,
    assert_refused,
    compact,
    decode,
    encode,
    forge,
    r_and_s,
    sign,
)

# The algorithm and the key


def hmac_signed(alg: str, key: bytes) -> str:
    signing_input = f"{encode(compact({**HEADER, 'alg': alg}))}.{encode(compact(CLAIMS))}"
    return f"{signing_input}.{encode(hmac.digest(key, signing_input.encode(), 'sha256'))}"


def rsa_signed() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    signing_input = f"{encode(compact({**HEADER, 'alg': 'RS256'}))}.{encode(compact(CLAIMS))}"
    signature = key.sign(signing_input.encode(), padding.PKCS1v15(), hashes.SHA256())
    return f"{signing_input}.{encode(signature)}"


def public_bytes(encoding: serialization.Encoding) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return PRIVATE_KEY.public_key().public_bytes(encoding, form)


def jwk_of(key: ec.EllipticCurvePrivateKey) -> dict[str, str]:
    numbers = key.public_key().public_numbers()
    x, y = (encode(number.to_bytes(32, "big")) for number in (numbers.x, numbers.y))
    return {"kty": "EC", "crv": "P-256", "x": x, "y": y}


UNSIGNED = [
    f"{encode(compact({**HEADER, 'alg': alg}))}.{encode(compact(CLAIMS))}."
    for alg in ("none", "None", "NONE", "nOnE", "")
]
FOREIGN_ALGORITHMS = {
    "HS256 with the public key as PEM": hmac_signed(
        "HS256", public_bytes(serialization.Encoding.PEM)
    ),
    "HS256 with the public key as DER": hmac_signed(
        "HS256", public_bytes(serialization.Encoding.DER)
    ),
    "HS256 with the public key as JWK": hmac_signed("HS256", compact(TOKENS.jwks()["keys"][0])),
    "HS256 with an empty key": hmac_signed("HS256", b""),
    "HS256 under the header ES256": hmac_signed("ES256", public_bytes(serialization.Encoding.PEM)),
    "RS256 with the sender's own key": rsa_signed(),
    "ES256 with the sender's own key under our kid": forge(key=STRANGER),
    "ES256 with the sender's own key in jwk": forge(
        {**HEADER, "jwk": jwk_of(STRANGER)}, key=STRANGER
    ),
}


@pytest.mark.parametrize("token", UNSIGNED)
def test_an_unsigned_token_is_refused(token: str) -> None:
    assert_refused(token)


@pytest.mark.parametrize("trick", FOREIGN_ALGORITHMS)
def test_a_token_signed_by_anyone_else_is_refused(trick: str) -> None:
    assert_refused(FOREIGN_ALGORITHMS[trick])


def test_a_token_of_another_installation_is_refused() -> None:
    other = access_tokens(secret=SECRET + b"!")

    assert_refused(other.issue(user_id=USER, scope="mint", sign_in_id=SIGN_IN).token)


WRONG_ALGORITHMS: list[Any] = [
    "none",
    "HS256",
    "RS256",
    "es256",
    "ES384",
    "ES512",
    "ES256K",
    "EdDSA",
    "PS256",
    "ES256 ",
]
WRONG_ALGORITHMS += ["", "ES256\0", None, True, 256, ["ES256"], {"ES256": 1}]
WRONG_TYPES: list[Any] = ["JWT", "AT+JWT", "application/at+jwt", "at+jwt ", "", None, ["at+jwt"]]
WRONG_KEY_IDS: list[Any] = [
    "../../../../dev/null",
    "/dev/null",
    "' OR '1'='1",
    "\0",
    "",
    KID + "\0",
]
WRONG_KEY_IDS += [None, 0, [KID], {KID: KID}, "x" * 1000]
HEADERS: list[Any] = [
    *({**HEADER, "alg": alg} for alg in WRONG_ALGORITHMS),
    *({**HEADER, "typ": typ} for typ in WRONG_TYPES),
    *({**HEADER, "kid": kid} for kid in WRONG_KEY_IDS),
    *({name: HEADER[name] for name in HEADER if name != missing} for missing in HEADER),
    {**HEADER, "crit": ["exp"]},
    {**HEADER, "crit": ["b64"], "b64": False},
    {**HEADER, "crit": []},
    {**HEADER, "b64": True},
    {**HEADER, "jku": "https://attacker.example/jwks.json"},
    {**HEADER, "x5u": "https://attacker.example/cert.pem"},
    {**HEADER, "x5c": ["MIIB"]},
    {**HEADER, "jwk": jwk_of(PRIVATE_KEY)},
    {**HEADER, "zip": "DEF"},
    {**HEADER, "cty": "JWT"},
    {**HEADER, "enc": "A256GCM", "alg": "dir"},
    {**HEADER, "alg": "PBES2-HS256+A128KW", "p2c": 2**31 - 1},
    {"kid": KID, "alg": "ES256", "typ": "at+jwt"},
    {"ALG": "ES256", "typ": "at+jwt", "kid": KID},
    compact(HEADER)[:-1] + b',"alg":"none"}',
    b'{"alg":"none",' + compact(HEADER)[1:],
    compact(HEADER).replace(b'"ES256"', b'"\\u0045S256"'),
    compact(HEADER) + b" ",
    compact(HEADER) + b"\0",
    b"\xef\xbb\xbf" + compact(HEADER),
    compact(HEADER).decode().encode("utf-16"),
    json.dumps(HEADER).encode(),
    b"\xff\xfe\xfd",
    b"[" * 2000,
    b'{"a":' * 500 + b"1" + b"}" * 500,
    b"",
    b"null",
    [HEADER],
    "header",
    CLAIMS,
]  # fmt: skip


@pytest.mark.parametrize("header", HEADERS)
def test_any_other_header_is_refused_although_we_signed_it(header: Any) -> None:
    assert_refused(forge(header))


# The claims


NOT_THE_CLAIM: dict[str, list[Any]] = {
    "iss": ["", "https://tokens.example.com/", "https://tokens.example.com.evil.example", [ISSUER]],
    "aud": ["", "HTTPS://TOKENS.EXAMPLE.COM", [ISSUER], [ISSUER, "https://other.example"]],
    "sub": ["", "usr_", USER.lower(), SIGN_IN, USER + " ", USER + "\n", "usr_" + "\u0661" * 26],
    "jti": ["", "jti_", USER, "jti_0000000000000000000000000\ud800"],
    "sid": ["", "sgn_", USER, SIGN_IN + "\0"],
    "scope": ["", " ", " mint", "mint ", "mint  admin", "mint\tadmin", "mint\u00a0admin", 'm"int'],
    "iat": [float(UNIX_NOW), str(UNIX_NOW), UNIX_NOW + 6, UNIX_NOW - 3001, -1, 10**300, 1e300],
    "exp": [
        UNIX_NOW,
        UNIX_NOW - 1,
        UNIX_NOW + 600.5,
        str(UNIX_NOW + 600),
        UNIX_NOW + 3601,
        10**300,
        float("nan"),
    ],
}
NEVER_A_CLAIM: list[Any] = [None, True, 0, 1.5, [], {}]
WRONG_CLAIMS: list[tuple[str, Any]] = [
    *((name, value) for name, values in NOT_THE_CLAIM.items() for value in values),
    *((name, [CLAIMS[name]]) for name in CLAIMS),
    *((name, value) for name in CLAIMS for value in NEVER_A_CLAIM),
]


@pytest.mark.parametrize(("name", "value"), WRONG_CLAIMS)
def test_a_wrong_claim_is_refused_although_we_signed_it(name: str, value: Any) -> None:
    assert_refused(forge(claims={**CLAIMS, name: value}))


@pytest.mark.parametrize("missing", CLAIMS)
def test_a_missing_claim_is_refused(missing: str) -> None:
    assert_refused(forge(claims={name: CLAIMS[name] for name in CLAIMS if name != missing}))


@pytest.mark.parametrize("extra", ["nbf", "admin", "role", "", "ISS"])
def test_an_additional_claim_is_refused(extra: str) -> None:
    assert_refused(forge(claims={**CLAIMS, extra: 1}))


@pytest.mark.parametrize(
    "payload",
    [
        compact(CLAIMS)[:-1] + b',"scope":"admin"}',
        b'{"sub":"usr_00000000000000000000000009",' + compact(CLAIMS)[1:],
        json.dumps(CLAIMS).encode(),
        compact(dict(reversed(CLAIMS.items()))),
        compact(CLAIMS) + b"\n",
        compact(CLAIMS).replace(b'"sub"', b'"\\u0073ub"'),
        compact(CLAIMS).replace(str(UNIX_NOW).encode(), b"1.795176e9"),
        compact(CLAIMS).replace(str(UNIX_NOW).encode(), b"NaN"),
        b"\xef\xbb\xbf" + compact(CLAIMS),
        compact(CLAIMS).decode().encode("utf-16"),
        compact(CLAIMS).decode().encode("utf-32-le"),
        b"\xff" + compact(CLAIMS),
        b"[" * 2500,
        b'{"a":' * 400 + b"1" + b"}" * 400,
        b"1" * 2500,
        b"",
        b"null",
        b'"claims"',
        compact([CLAIMS]),
        compact(HEADER),
        GENUINE.encode(),
    ],
)
def test_a_payload_we_would_not_write_is_refused_although_we_signed_it(payload: bytes) -> None:
    assert_refused(forge(claims=payload))


# The signature and the spelling


def with_signature(signature: bytes) -> str:
    return f"{GENUINE.rpartition('.')[0]}.{encode(signature)}"


def signatures() -> Iterator[tuple[str, bytes]]:
    signing_input, _, segment = GENUINE.rpartition(".")
    genuine = decode(segment)
    r, s = int.from_bytes(genuine[:32], "big"), int.from_bytes(genuine[32:], "big")

    def raw(r: int, s: int) -> bytes:
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    yield "none", b""
    yield "zero", bytes(64)
    yield "zero r", raw(0, s)
    yield "zero s", raw(r, 0)
    yield "r of the order", raw(ORDER, s)
    yield "s of the order", raw(r, ORDER)
    yield "all ones", b"\xff" * 64
    yield "mirrored s", raw(r, ORDER - s)
    yield "swapped r and s", raw(s, r)
    yield "DER", encode_dss_signature(r, s)
    yield "cut short", genuine[:-1]
    yield "one byte more", genuine + b"\0"
    yield "one byte before", b"\0" + genuine
    yield "half", genuine[:32]
    yield "twice", genuine * 2
    yield "one bit flipped", genuine[:40] + bytes([genuine[40] ^ 1]) + genuine[41:]
    yield "over the payload alone", raw(*r_and_s(signing_input.partition(".")[2]))


SIGNATURES = dict(signatures())


@pytest.mark.parametrize("trick", SIGNATURES)
def test_no_other_signature_is_taken(trick: str) -> None:
    assert_refused(with_signature(SIGNATURES[trick]))


def test_parts_of_two_good_tokens_do_not_make_a_third() -> None:
    one, other = forge().split("."), forge(claims={**CLAIMS, "scope": "admin"}).split(".")

    assert_refused(".".join([*one[:2], other[2]]))
    assert_refused(".".join([one[0], other[1], one[2]]))
    assert_refused(".".join([one[1], one[0], one[2]]))


def other_spelling(segment: str) -> str:
    """Return *segment* with the unused bits of its last character set."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    respelt = segment[:-1] + alphabet[alphabet.index(segment[-1]) + 1]
    assert decode(respelt) == decode(segment)
    return respelt


def standard_alphabet() -> str:
    """Return a good token whose signature is then written with ``+`` and ``/``."""
    while True:
        signing_input, _, signature = forge().rpartition(".")
        if "-" in signature or "_" in signature:
            return f"{signing_input}.{signature.replace('-', '+').replace('_', '/')}"


def respelt(position: int, change: Callable[[str], str]) -> str:
    """Return a token whose segment at *position* is changed before it is signed."""
    segments = [encode(compact(HEADER)), encode(compact(CLAIMS))]
    segments[position] = change(segments[position])
    return sign(".".join(segments))


HEADER_SEGMENT, PAYLOAD_SEGMENT, SIGNATURE_SEGMENT = GENUINE.split(".")
SPELLINGS = {
    "unused bits in the signature": f"{GENUINE[:-86]}{other_spelling(SIGNATURE_SEGMENT)}",
    "unused bits in the payload": respelt(1, other_spelling),
    "padding behind the signature": GENUINE + "==",
    "padding behind the payload": respelt(1, lambda segment: segment + "="),
    "padding behind the header": respelt(0, lambda segment: segment + "="),
    "line break in the payload": respelt(1, lambda segment: segment[:40] + "\n" + segment[40:]),
    "full stop of the payload": respelt(1, lambda segment: segment + "."),
    "standard alphabet": standard_alphabet(),
    "blank before": " " + GENUINE,
    "line break behind": GENUINE + "\n",
    "blank in the signature": f"{GENUINE[:-4]} {GENUINE[-4:]}",
    "NUL behind": GENUINE + "\0",
    "a scheme before": "Bearer " + GENUINE,
    "quoted": f'"{GENUINE}"',
    "fullwidth digits": GENUINE.translate({digit: digit + 0xFEE0 for digit in range(0x30, 0x3A)}),
    "a surrogate": GENUINE + "\ud800",
    "a surrogate in the payload": f"{HEADER_SEGMENT}.\ud800{PAYLOAD_SEGMENT}.{SIGNATURE_SEGMENT}",
    "a byte that is no UTF-8": GENUINE + "\udcff",
    "four segments": GENUINE + ".AAAA",
    "five segments": f"{HEADER_SEGMENT}..AAAA.{PAYLOAD_SEGMENT}.{SIGNATURE_SEGMENT}",
    "two segments": f"{HEADER_SEGMENT}.{PAYLOAD_SEGMENT}",
    "one segment": HEADER_SEGMENT,
    "an empty header": f".{PAYLOAD_SEGMENT}.{SIGNATURE_SEGMENT}",
    "a detached payload": f"{HEADER_SEGMENT}..{SIGNATURE_SEGMENT}",
    "a full stop before": "." + GENUINE,
    "a full stop behind": GENUINE + ".",
    "nothing": "",
    "full stops": "..",
    "many full stops": "." * 4000,
    "twice": f"{GENUINE}.{GENUINE}",
    "JSON serialization": json.dumps(
        {"protected": HEADER_SEGMENT, "payload": PAYLOAD_SEGMENT, "signature": SIGNATURE_SEGMENT}
    ),
}  # fmt: skip


@pytest.mark.parametrize("trick", SPELLINGS)
def test_no_other_spelling_is_taken(trick: str) -> None:
    assert_refused(SPELLINGS[trick])


# Whatever arrives


def verified(token: str) -> bool:
    """Tell whether *token* is taken; anything but ``InvalidToken`` gets out and fails the test."""
    try:
        TOKENS.verify(token)
    except InvalidToken:
        return False
    return True


@settings(max_examples=300, deadline=None)
@given(st.text() | st.text("ey.-_=AB \n\0\ud800").map(lambda text: GENUINE[:200] + text))
def test_text_of_any_kind_is_refused_and_never_crashes(text: str) -> None:
    assert not verified(text)


@settings(max_examples=500, deadline=None)
@given(
    start=st.integers(0, len(GENUINE)),
    length=st.integers(0, 3),
    put=st.text(max_size=3) | st.text("ABCwxyz-_.=", max_size=3),
)
def test_a_good_token_that_is_changed_anywhere_is_refused(
    start: int, length: int, put: str
) -> None:
    changed = GENUINE[:start] + put + GENUINE[start + length :]

    assert verified(changed) == (changed == GENUINE)


def json_values() -> st.SearchStrategy[Any]:
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
    names = st.sampled_from([*HEADER, *CLAIMS]) | st.text()
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
        max_leaves=8,
    )


def altered(genuine: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Give *genuine* with some members replaced or added, or something else altogether."""
    members = st.dictionaries(
        st.sampled_from([*genuine]) | st.text(), json_values(), min_size=1, max_size=3
    )
    return members.map(lambda some: genuine | some) | json_values()


@settings(max_examples=300, deadline=None)
@given(altered(HEADER))
def test_any_header_but_ours_is_refused_although_we_signed_it(header: Any) -> None:
    assert verified(forge(header)) == (compact(header) == compact(HEADER))


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(altered(CLAIMS))
def test_any_claims_but_ours_are_refused_although_we_signed_them(claims: Any) -> None:
    ours = (
        isinstance(claims, dict)
        and isinstance(claims.get("scope"), str)
        and re.fullmatch(r"[!#-\[\]-~]+( [!#-\[\]-~]+)*", claims["scope"]) is not None
        and compact({**claims, "scope": 0}) == compact({**CLAIMS, "scope": 0})
    )

    assert verified(forge(claims=claims)) == ours
