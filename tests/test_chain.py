"""The walk along the chain meets rows of any shape, and names them."""

from typing import Any

import pytest

from app.audit import chain


def row(seq: int, previous: bytes, **stored: Any) -> chain.Row:
    """Return a row that fits, but for what *stored* says."""
    canon = f'{{"event_id":"evt_{seq}"}}'
    whole = chain.row_hash(previous, seq=seq, recorded_at=seq, canon=canon)
    fitting = {"seq": seq, "recorded_at": seq, "canon": canon, "row_hash": whole}
    return chain.Row(**{**fitting, **stored})


@pytest.mark.parametrize(
    "stored",
    [
        {"canon": "{"},
        {"canon": b"{}"},
        {"canon": None},
        {"canon": "[" * 100_000},
        {"recorded_at": -1},
        {"recorded_at": "yesterday"},
        {"recorded_at": 2**64},
        {"row_hash": "text"},
        {"row_hash": None},
        {"row_hash": b""},
    ],
)
def test_a_row_of_any_shape_is_named_and_the_walk_goes_on(stored: dict[str, Any]) -> None:
    first = row(1, chain.GENESIS)
    odd = row(2, first.row_hash, **stored)
    third = row(3, row(2, first.row_hash).row_hash)
    gap = row(5, third.row_hash)

    named = [fault.seq for fault in chain.faults([first, odd, third, gap])]

    assert named[0] == 2
    assert named[-1] == 4
    assert set(named) <= {2, 3, 4}


@pytest.mark.parametrize(
    "beside",
    [
        {"salt": b"s" * 16, "personal": "{}"},
        {"salt": "text", "personal": "{}"},
        {"salt": b"s" * 16, "personal": b"{}"},
        {"salt": b"s" * 16, "personal": None},
    ],
)
def test_personal_data_that_was_never_promised_is_named(beside: dict[str, Any]) -> None:
    assert [fault.seq for fault in chain.faults([row(1, chain.GENESIS, **beside)])] == [1]
