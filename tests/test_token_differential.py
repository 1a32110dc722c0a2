"""A second opinion on access tokens: joserfc, which has no code in common with our wrapper.

Whatever the wrapper takes, joserfc takes too and reads the same in it; what we issue, both take.
The other way round it does not hold and need not: we take one spelling of a token, joserfc many.
"""

from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from app.base.errors import InvalidToken
from app.identity.access_tokens import CLOCK_SKEW_SECONDS, Claims
from tests.forged_tokens import (
    CLAIMS,
    HEADER,
    ISSUER,
    ORDER,
    PRIVATE_KEY,
    SIGN_IN,
    STRANGER,
    TOKENS,
    UNIX_NOW,
    USER,
    access_tokens,
    decode,
    encode,
    forge,
)

pytestmark = pytest.mark.slow


def second_opinion(token: str, *, now: int = UNIX_NOW) -> Claims:
    """Return what *token* says by RFC 7515, 7519 and 9068, as far as those are ours.

    Raises:
        JoseError, ValueError: It is not good.
    """
    published = KeySet.import_key_set(TOKENS.jwks())  # type: ignore[arg-type]  # ours is a plain dict
    read = jwt.decode(token, published, algorithms=["ES256"])
    present: jwt.ClaimsOption = {"essential": True}
    jwt.JWTClaimsRegistry(
        now,
        leeway=CLOCK_SKEW_SECONDS,
        iss={"essential": True, "value": ISSUER},
        aud={"essential": True, "value": ISSUER},
        **dict.fromkeys(("sub", "jti", "iat", "exp", "scope", "sid"), present),
    ).validate(read.claims)
    if read.header["typ"] != "at+jwt":
        raise ValueError("another kind of token")
    if read.claims["exp"] <= now:
        raise ValueError("no leeway for what has expired")
    return Claims(
        sub=read.claims["sub"],
        scope=frozenset(read.claims["scope"].split(" ")),
        sid=read.claims["sid"],
        jti=read.claims["jti"],
        iat=read.claims["iat"],
        exp=read.claims["exp"],
    )


def ids(prefix: str) -> st.SearchStrategy[str]:
    digits = st.text("0123456789ABCDEFGHJKMNPQRSTVWXYZ", min_size=26, max_size=26)
    return digits.map(lambda text: f"{prefix}_{text}")


scopes = st.lists(
    st.sampled_from(["mint", "audit:read", "admin", "!", "~"]), min_size=1, max_size=4
)


@given(user=ids("usr"), sign_in=ids("sgn"), scopes=scopes, seconds=st.integers(-(10**9), 10**9))
def test_every_token_we_issue_is_taken_by_both_and_says_the_same_to_both(
    user: str, sign_in: str, scopes: list[str], seconds: int
) -> None:
    tokens = access_tokens(later=timedelta(seconds=seconds))

    issued = tokens.issue(user_id=user, scope=" ".join(scopes), sign_in_id=sign_in)

    ours = tokens.verify(issued.token)
    assert ours == second_opinion(issued.token, now=UNIX_NOW + seconds)
    assert (ours.sub, ours.sid, ours.jti) == (user, sign_in, issued.jti)
    assert ours.scope == set(scopes)


def mostly(usual: Any, *others: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from([usual] * 12 + [*others])


junk = st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.just([ISSUER])


def spliced(draw: st.DrawFn, text: str) -> str:
    """Return *text* with up to three characters anywhere replaced by up to three others."""
    start = draw(st.integers(0, len(text)))
    put = draw(st.text("ABCwxyz019-_.=+/ \n", max_size=3))
    return text[:start] + put + text[start + draw(st.integers(0, 3)) :]


def mirrored(token: str) -> str:
    """Return *token* with the other signature that its signature gives away."""
    signing_input, _, signature = token.rpartition(".")
    r, s = decode(signature)[:32], int.from_bytes(decode(signature)[32:], "big")
    return f"{signing_input}.{encode(r + (ORDER - s).to_bytes(32, 'big'))}"


@st.composite
def tokens(draw: st.DrawFn) -> str:
    """Give a token with a few faults, or with none, signed after them or before."""
    header: dict[str, Any] = dict(HEADER)
    claims: dict[str, Any] = {
        "iss": draw(mostly(ISSUER, "https://elsewhere.example.com")),
        "aud": draw(mostly(ISSUER, [ISSUER], "https://elsewhere.example.com")),
        "sub": draw(ids("usr") | mostly(USER, SIGN_IN, "")),
        "jti": draw(ids("jti")),
        "iat": UNIX_NOW + draw(st.integers(-3600, 7)),
        "exp": UNIX_NOW + draw(mostly(60, -1, 0, 1, 3601)),
        "scope": " ".join(draw(scopes)),
        "sid": draw(ids("sgn")),
    }
    for part in draw(mostly(None, header, claims)), draw(mostly(None, claims)):
        if part is not None:
            name = draw(st.sampled_from([*HEADER, *CLAIMS, "crit", "b64", "nbf", "jwk"]))
            part[name] = draw(junk)
    claims.pop(draw(mostly("none", "aud", "exp")), None)
    token = forge(header, claims, draw(mostly(PRIVATE_KEY, STRANGER)))
    match draw(mostly("whole", "mirrored", "spliced", "another's payload")):
        case "mirrored":
            return mirrored(token)
        case "spliced":
            return spliced(draw, token)
        case "another's payload":
            first, _, last = token.split(".")
            return f"{first}.{forge(claims=claims | {'scope': 'admin'}).split('.')[1]}.{last}"
        case _:
            return token


def test_whatever_we_take_the_other_takes_and_reads_the_same() -> None:
    judged: Counter[tuple[bool, bool]] = Counter()

    @settings(max_examples=800)
    @given(tokens())
    def judge(token: str) -> None:
        try:
            ours = TOKENS.verify(token)
        except InvalidToken:
            ours = None
        try:
            theirs = second_opinion(token)
        except (JoseError, ValueError, TypeError, AttributeError, KeyError):
            theirs = None
        judged[ours is not None, theirs is not None] += 1
        assert ours is None or ours == theirs

    judge()

    both, neither, other_alone = judged[True, True], judged[False, False], judged[False, True]
    assert min(both, neither, other_alone) > 50, judged  # it compared something
