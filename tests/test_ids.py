import re
import string
import time

import pytest

from app.base.ids import is_id, new_id

CROCKFORD = set(string.digits + string.ascii_uppercase) - set("ILOU")
IN_ORDER = sorted(CROCKFORD)


def milliseconds_of(name: str) -> int:
    return sum(IN_ORDER.index(digit) * 32**place for place, digit in enumerate(name[13:3:-1]))


def test_of_100_000_ids_no_two_share_as_much_as_a_half_of_what_is_random() -> None:
    digits = [new_id("tst")[-16:] for _ in range(100_000)]

    # 40 bits each: with half of them missing, some pair would be alike.
    assert len({each[:8] for each in digits}) >= 99_990
    assert len({each[8:] for each in digits}) >= 99_990


def test_every_digit_behind_the_time_is_random() -> None:
    digits = [new_id("tst")[-16:] for _ in range(10_000)]

    places = [set(place) for place in zip(*digits, strict=True)]

    assert all(place == CROCKFORD for place in places)


def test_ids_are_in_the_order_of_the_milliseconds_in_which_they_were_made() -> None:
    before = time.time_ns() // 1_000_000
    ids = []
    for _ in range(5):
        ids.append(new_id("tst"))
        time.sleep(0.002)
    after = time.time_ns() // 1_000_000

    made = [milliseconds_of(each) for each in ids]
    assert ids == sorted(ids)
    assert before <= made[0] < made[-1] <= after


def test_the_time_is_written_as_a_ulid_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for ms, digits in ((1_469_918_176_385, "01ARYZ6S41"), (2**48 - 1, "7ZZZZZZZZZ"), (0, "0" * 10)):
        monkeypatch.setattr(time, "time_ns", lambda ms=ms: ms * 1_000_000)

        assert new_id("tst")[4:14] == digits


def test_an_id_has_its_prefix_and_26_digits_that_are_easily_told_apart() -> None:
    name = new_id("usr")

    assert re.fullmatch(r"usr_[0-9A-HJKMNP-TV-Z]{26}", name)
    assert is_id(name, "usr")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "usr_",
        "sgn_01M7YSSC285KZ11P1XE7FKMWK6",
        "usr_01M7YSSC285KZ11P1XE7FKMWK",
        "usr_01M7YSSC285KZ11P1XE7FKMWK60",
        "usr_01M7YSSC285KZ11P1XE7FKMWK6\n",
        "usr_01m7yssc285kz11p1xe7fkmwk6",
        "usr-01M7YSSC285KZ11P1XE7FKMWK6",
        "usr_" + "U" * 26,
    ],
    ids=repr,
)
def test_what_has_another_form_is_no_id(text: str) -> None:
    assert not is_id(text, "usr")
