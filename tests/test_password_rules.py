"""Which passwords may be set, and what is said of the others."""

import secrets

import pytest

from app.base.errors import FieldError, InvalidRequest
from app.identity.password_rules import PasswordRules
from tests.conftest import PASSWORD

EMAIL = "grace.hopper@navy.example.com"
RULES = PasswordRules("https://voice.acme-corp.test:8443/tokens")
RANDOM = "7KQ2M8Z6T0V9N7R5P3S1W8XHJ0"
KEYS = "".join(chr(0x1F511 + 7 * n % 40) for n in range(40))  # 40 pictures, in no order
COMPOSED = "\u00c5ngstr\u00f6m \u00fcber alle W\u00e4nde"
EASY = "is too easy to guess."
NAMED = "must not hold a part of the e-mail address, or the name of this service"


def reason_against(password: str, email: str = EMAIL) -> str:
    with pytest.raises(InvalidRequest) as refusal:
        RULES.check(password, email=email)

    (error,) = refusal.value.errors
    assert error == FieldError("password", error.reason)
    assert not password or password not in f"{refusal.value} {error.reason}"
    return error.reason


@pytest.mark.parametrize(
    "password",
    [
        PASSWORD,
        RANDOM,
        RANDOM[:15],
        (RANDOM * 10)[:15] + RANDOM[::-1] * 9 + "2468135",
        KEYS[:15],
        COMPOSED,
        "e\u0301" + RANDOM[:14],
        "  leading and trailing blanks  ",
        "\u043a\u043e\u0440\u043e\u0432\u0430 \u0436\u0443\u043a \u0434\u043e\u043c 1961",
    ],
)
def test_15_to_256_characters_of_any_kind_may_be_set(password: str) -> None:
    RULES.check(password, email=EMAIL)


def test_the_longest_has_256_code_points() -> None:
    longest = secrets.token_hex(128)

    RULES.check(longest, email=EMAIL)
    assert reason_against(longest + "x") == "takes at most 256 characters"


@pytest.mark.parametrize(
    "password",
    ["", RANDOM[:14], "e\u0301" * 14, KEYS[:14], "\u00e9" * 14],
)
def test_what_has_fewer_than_15_code_points_as_it_is_hashed_is_too_short(password: str) -> None:
    assert reason_against(password) == "needs at least 15 characters"


@pytest.mark.parametrize("password", [RANDOM + "\ud800", RANDOM + "\U000e0fff"])
def test_what_unicode_does_not_assign_is_refused(password: str) -> None:
    assert reason_against(password).startswith("holds a character that Unicode does not assign")


@pytest.mark.parametrize(
    ("password", "why"),
    [
        ("x" * 15, 'Repeats like "aaa" are easy to guess.'),
        (" " * 20, 'Repeats like "aaa" are easy to guess.'),
        ("passwordpassword", "Repeats like"),
        ("password12345678", ""),
        ("P@ssw0rdP@ssw0rd", "Repeats like"),
        ("Passwort12345678", ""),
        ("qwertyuiopasdfgh", ""),
        ("1qaz2wsx3edc4rfv", ""),
        ("123456789012345678", "Sequences like abc or 6543 are easy to guess."),
        ("abcdefghijklmnop", ""),
        ("iloveyouiloveyou", "Repeats like"),
        ("letmeinletmeinletmein", "Repeats like"),
        ("thisisapassword", ""),
        ("mypasswordis123", ""),
    ],
)
def test_what_others_would_try_first_is_refused_with_the_reason(password: str, why: str) -> None:
    reason = reason_against(password)

    assert reason.startswith(EASY)
    assert why in reason
    assert reason.endswith(
        "Four or more words that have nothing to do with one another make a good one."
    )


@pytest.mark.parametrize(
    "named",
    [
        "grace",
        "Hopper",
        "g r a c e",
        "gracehopper",
        "navy",
        "eXample",
        "acme-corp",
        "ACME corp",
        "voice",
        "Realtime Tokens",
        "realtime-tokens",
    ],
)
def test_what_is_named_after_the_user_or_the_service_is_refused(named: str) -> None:
    assert reason_against(f"{RANDOM[:12]} {named} {RANDOM[12:]}") == NAMED


@pytest.mark.parametrize("email", ["al@x.com", "com@com.com", "a.b.c@d.e.f.com"])
def test_short_parts_of_an_address_are_in_too_many_words_to_count(email: str) -> None:
    RULES.check("alarming combat of abacus and comet", email=email)


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "http://localhost:8000", "http://[::1]"])
def test_every_public_url_will_do(url: str) -> None:
    PasswordRules(url).check(PASSWORD, email=EMAIL)


def test_passwords_that_the_sandbox_makes_may_be_set() -> None:
    rules = PasswordRules("http://127.0.0.1:8000")
    for _ in range(200):
        for email in ("admin@example.com", "demo@example.com"):
            rules.check(secrets.token_hex(12), email=email)
