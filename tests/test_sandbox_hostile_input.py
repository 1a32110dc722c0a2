"""Whatever JSON a client of the sandbox makes up is taken or refused, and nothing else."""

import contextlib

from hypothesis import given, settings
from hypothesis import strategies as st

from app.sandbox.client_events import check_event
from app.sandbox.errors import Refusal
from app.sandbox.session import in_force, updated

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
SESSION_TYPES = st.sampled_from(["realtime", "transcription"])
MEMBERS = st.sampled_from(["type", "id", "role", "content", "item", "session", "response", "input"])


@settings(max_examples=50)
@given(
    kind=st.sampled_from(["session.update", "conversation.item.create", "response.create"]),
    members=st.dictionaries(MEMBERS, JSON_VALUES | st.dictionaries(MEMBERS, JSON_VALUES)),
    session_type=SESSION_TYPES,
)
def test_nothing_that_json_can_hold_breaks_the_check_of_events(
    kind: str, members: dict[str, object], session_type: str
) -> None:
    with contextlib.suppress(Refusal):
        check_event({**members, "type": kind}, session_type=session_type)


@settings(max_examples=50)
@given(
    wanted=st.fixed_dictionaries(
        {"type": SESSION_TYPES | JSON_VALUES},
        optional=dict.fromkeys(
            ("audio", "tools", "tracing", "model", "output_modalities"), JSON_VALUES
        ),
    ),
    session_type=SESSION_TYPES,
)
def test_nothing_that_json_can_hold_breaks_an_update(
    wanted: dict[str, object], session_type: str
) -> None:
    with contextlib.suppress(Refusal):
        updated(in_force({"type": session_type}), wanted, has_spoken=True)
