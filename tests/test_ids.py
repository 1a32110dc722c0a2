import re
import string

import pytest

from app.base.ids import is_id, new_id

CROCKFORD = set(string.digits + string.ascii_uppercase) - set("ILOU")


def test_of_100_000_ids_no_two_share_as_much_as_a_half() -> None:
    digits = [new_id("tst").removeprefix("tst_") for _ in range(100_000)]

    # 65 bits each: with half of them missing, some pair would be alike.
    assert len({each[:13] for each in digits}) == 100_000
    assert len({each[13:] for each in digits}) == 100_000


def test_every_digit_is_random() -> None:
    digits = [new_id("tst").removeprefix("tst_") for _ in range(10_000)]

    places = [set(place) for place in zip(*digits, strict=True)]

    assert all(place == CROCKFORD for place in places)


def test_an_id_has_its_prefix_and_26_digits_that_are_easily_told_apart() -> None:
    name = new_id("usr")

    assert re.fullmatch(r"usr_[0-9A-HJKMNP-TV-Z]{26}", name)
    assert is_id(name, "usr")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "usr_",
        new_id("sgn"),
        new_id("usr")[:-1],
        new_id("usr") + "0",
        new_id("usr") + "\n",
        new_id("usr").lower(),
        new_id("usr").replace("_", "-"),
        "usr_" + "U" * 26,
    ],
    ids=repr,
)
def test_what_has_another_form_is_no_id(text: str) -> None:
    assert not is_id(text, "usr")
