"""Access tokens: what is issued, and how long it is good. ``test_token_attacks`` has the rest."""

import hashlib
import json
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from app.base.errors import InvalidToken
from app.base.ids import is_id
from app.identity.access_tokens import Claims
from tests.forged_tokens import (
    CLAIMS,
    GENUINE,
    HEADER,
    KID,
    ORDER,
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
)


def test_a_token_says_who_may_do_what_until_when() -> None:
    issued = TOKENS.issue(user_id=USER, scope="mint audit:read", sign_in_id=SIGN_IN)

    assert is_id(issued.jti, "jti")
    assert issued.expires_in == 600
    assert issued.expires_at == datetime(2026, 11, 20, 12, 10, tzinfo=UTC)
    assert TOKENS.verify(issued.token) == Claims(
        sub=USER,
        scope=frozenset({"mint", "audit:read"}),
        sid=SIGN_IN,
        jti=issued.jti,
        iat=UNIX_NOW,
        exp=UNIX_NOW + 600,
    )


def test_header_and_claims_are_exactly_those_promised() -> None:
    header, claims, _ = GENUINE.split(".")

    assert json.loads(decode(header)) == HEADER
    assert json.loads(decode(claims)) == {**CLAIMS, "jti": TOKENS.verify(GENUINE).jti}


def test_every_token_has_its_own_jti() -> None:
    ids = {TOKENS.issue(user_id=USER, scope="mint", sign_in_id=SIGN_IN).jti for _ in range(20)}

    assert len(ids) == 20


def test_the_token_stays_out_of_the_repr() -> None:
    issued = TOKENS.issue(user_id=USER, scope="mint", sign_in_id=SIGN_IN)

    assert issued.token not in repr(issued)


def test_another_implementation_verifies_it_with_the_published_key() -> None:
    (published,) = TOKENS.jwks()["keys"]
    x, y = (int.from_bytes(decode(published[name]), "big") for name in ("x", "y"))
    key = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    signing_input, _, signature = GENUINE.rpartition(".")
    r, s = (
        int.from_bytes(half, "big") for half in (decode(signature)[:32], decode(signature)[32:])
    )

    key.verify(encode_dss_signature(r, s), signing_input.encode(), ec.ECDSA(hashes.SHA256()))


def test_the_published_key_has_its_public_half_alone_and_its_thumbprint_as_kid() -> None:
    (published,) = TOKENS.jwks()["keys"]
    essence = {name: published[name] for name in ("crv", "kty", "x", "y")}

    assert set(published) == {"alg", "crv", "kid", "kty", "use", "x", "y"}
    assert published["alg"] == "ES256"
    assert published["use"] == "sig"
    assert published["kid"] == encode(hashlib.sha256(compact(essence)).digest())


def test_the_key_stays_the_same_from_release_to_release() -> None:
    (published,) = TOKENS.jwks()["keys"]

    assert published["kid"] == KID


def test_tokens_signed_before_a_rotation_stay_good_until_the_next_one() -> None:
    before, after, later = (access_tokens(key_generation=n) for n in (1, 2, 3))
    issued = after.issue(user_id=USER, scope="mint", sign_in_id=SIGN_IN).token

    assert before.verify(GENUINE) == after.verify(GENUINE)
    assert after.verify(issued) == later.verify(issued)
    assert_refused(GENUINE, later)
    assert_refused(issued, before)


def test_both_live_keys_are_published_the_one_that_signs_first() -> None:
    kids = [
        [key["kid"] for key in access_tokens(key_generation=n).jwks()["keys"]] for n in range(1, 5)
    ]

    assert [len(live) for live in kids] == [1, 2, 2, 2]
    assert [live[1] for live in kids[1:]] == [live[0] for live in kids[:-1]]
    assert len({live[0] for live in kids}) == 4
    issued = access_tokens(key_generation=4).issue(user_id=USER, scope="mint", sign_in_id=SIGN_IN)
    assert json.loads(decode(issued.token.partition(".")[0]))["kid"] == kids[3][0]


def test_instances_with_one_secret_take_each_others_tokens() -> None:
    assert access_tokens().verify(GENUINE).sub == USER


def test_forge_is_taken_when_it_has_no_fault() -> None:
    assert TOKENS.verify(forge()).sub == USER


def test_signatures_are_issued_with_the_smaller_s() -> None:
    for _ in range(20):
        token = TOKENS.issue(user_id=USER, scope="mint", sign_in_id=SIGN_IN).token
        s = int.from_bytes(decode(token.rpartition(".")[2])[32:], "big")

        assert s <= ORDER // 2


@pytest.mark.parametrize(
    ("later", "detail"),
    [
        (timedelta(seconds=599), None),
        (
            timedelta(seconds=600),
            "The access token has expired. Get a new one at POST /auth/token.",
        ),
        (timedelta(days=4000), "The access token has expired. Get a new one at POST /auth/token."),
        (timedelta(seconds=-5), None),
        (timedelta(seconds=-6), InvalidToken().detail),
    ],
)
def test_a_token_is_good_from_its_issue_until_it_expires(
    later: timedelta, detail: str | None
) -> None:
    tokens = access_tokens(later=later)

    try:
        tokens.verify(GENUINE)
    except InvalidToken as refusal:
        assert refusal.detail == detail  # noqa: PT017 - half of the rows are not refused
    else:
        assert detail is None


def test_a_stranger_is_not_told_that_a_token_has_expired() -> None:
    assert_refused(forge(key=STRANGER), access_tokens(later=timedelta(days=1)))


def test_a_token_under_another_public_url_is_refused() -> None:
    assert_refused(GENUINE, access_tokens(issuer="https://elsewhere.example.com"))


@pytest.mark.parametrize("length", [4096, 4097, 10_000_000])
def test_a_token_may_have_4096_characters_and_no_more(length: int) -> None:
    # Scopes fill it up; they come in threes of bytes so that base64 meets the length exactly.
    empty = len(forge(claims={**CLAIMS, "scope": ""}))
    filled = forge(claims={**CLAIMS, "scope": "x" * ((length - empty) * 3 // 4)})
    token = filled if len(filled) == length else filled.ljust(length, "A")

    if length <= 4096:
        assert len(token) == 4096
        assert TOKENS.verify(token).sub == USER
    else:
        assert_refused(token)
