"""Service keys as they are shown: their form, and who is recognised by them."""

import re
import string
from dataclasses import replace

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from app.base.errors import InsufficientScope, InvalidRequest, InvalidToken
from app.base.ids import id_of, is_id
from app.identity.callers import Origin
from app.identity.end_users import EndUsers
from app.identity.service_keys import WHAT_TO_DO, read_key, service_keys, write_key
from app.runtime import Runtime
from tests.clock import StandingClock
from tests.keys import asking_for, bearer_of, new_key, shown
from tests.log_rows import rows

ID = "key_7TS4GKMW4TWNJ1Y2E8K57Z3PA8"
BASE62 = string.digits + string.ascii_letters
GENUINE = write_key(ID, environment="live")
SCANNED = re.compile(r"\brtk_(?:live|sandbox)_[0-9A-HJKMNP-TV-Z]{26}_[0-9A-Za-z]{49}\b")

MALFORMED = {
    "cut short": GENUINE[:-1],
    "with a character more": GENUINE + "0",
    "without its secret": GENUINE[: GENUINE.rindex("_") + 1],
    "the prefix alone": "rtk_",
    "of no environment": GENUINE.replace("_live_", "_test_"),
    "in capitals": GENUINE[:9] + GENUINE[9:].upper(),
    "with another id": GENUINE.replace("7TS4", "7TS5"),
    "with a letter that ids do not have": GENUINE.replace("7TS4", "7TSU"),
    "with another checksum": GENUINE[:-6] + "000000",
    "with a character that only looks the same": GENUINE[:-1] + "\u0430",
    "with a newline": GENUINE + "\n",
    "with a NUL": GENUINE[:-1] + "\0",
    "two of them": f"{GENUINE} {GENUINE}",
    "very long": "rtk_live_" + "A" * 10_000,
}


# The form -----------------------------------------------------------------------------------


@given(st.sampled_from(["live", "sandbox"]), st.binary(min_size=26, max_size=26))
def test_what_is_written_can_be_read_and_found_by_scanners(environment: str, bits: bytes) -> None:
    key_id = id_of("key", bits)

    text = write_key(key_id, environment=environment)

    assert read_key(text) == (environment, key_id)
    assert SCANNED.findall(f"KEY={text};") == [text]


def test_two_keys_share_neither_secret_nor_checksum() -> None:
    first, second = (write_key(ID, environment="live").rpartition("_")[2] for _ in range(2))

    assert first[:43] != second[:43]
    assert first[43:] != second[43:]


@given(st.integers(0, len(GENUINE) - 1), st.characters())
def test_a_key_with_any_other_character_in_it_is_none(place: int, other: str) -> None:
    text = GENUINE[:place] + other + GENUINE[place + 1 :]

    assert (read_key(text) is None) == (text != GENUINE)


@given(
    st.integers(0, 41).map(lambda place: place + GENUINE.rindex("_") + 1),
    st.sampled_from(BASE62),
)
def test_a_slip_of_the_pen_in_the_secret_is_noticed(place: int, other: str) -> None:
    text = GENUINE[:place] + other + GENUINE[place + 1 :]
    swapped = GENUINE[:place] + GENUINE[place + 1] + GENUINE[place] + GENUINE[place + 2 :]

    assert {read_key(slip) for slip in (text, swapped)} <= {None, ("live", ID)}
    assert all(read_key(slip) is None for slip in (text, swapped) if slip != GENUINE)


@given(st.text() | st.text(BASE62 + "_").map("rtk_live_".__add__))
def test_a_reader_takes_anything_and_believes_nothing(text: str) -> None:
    assert read_key(text) is None


# Who is recognised --------------------------------------------------------------------------


async def show(runtime: Runtime, text: str, *, scope: str | None = "mint") -> None:
    await runtime.callers.authenticate(f"Bearer {text}", Origin(ip="192.0.2.9"), scope=scope)


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED)
async def test_what_cannot_be_a_key_is_refused_without_a_look_into_the_database(
    text: str, runtime: Runtime
) -> None:
    lose = sa.text("ALTER TABLE service_keys RENAME TO lost")
    await runtime.database.alter(lambda tx: tx.execute(lose).close())

    with pytest.raises(InvalidToken, match="no complete service key"):
        await show(runtime, text)

    with pytest.raises(sa.exc.DBAPIError):  # whoever looks notices
        await show(runtime, GENUINE)
    [row] = await rows(runtime.database)
    assert (row["action"], row["reason"]) == ("service_key.verify", "service_key_malformed")
    assert "actor" not in row


async def test_a_key_of_the_sandbox_is_told_where_it_belongs(runtime: Runtime) -> None:
    with pytest.raises(InvalidToken, match=r"rtk_sandbox_… is for the sandbox"):
        await show(runtime, write_key(ID, environment="sandbox"))


async def test_a_key_that_nobody_has_made_and_one_with_another_secret_are_refused_alike(
    runtime: Runtime,
) -> None:
    ours = await new_key(runtime)
    for text in (GENUINE, write_key(ours.key.id, environment="live")):
        with pytest.raises(InvalidToken) as caught:
            await show(runtime, text)
        assert caught.value.detail == WHAT_TO_DO["service_key_unknown"]

    denied = await rows(runtime.database, outcome="denied")
    assert [row["reason"] for row in denied] == ["service_key_unknown"] * 2
    assert all("actor" not in row for row in denied)  # knowing an id shows nothing


async def test_the_holder_alone_is_told_that_a_key_has_expired_or_is_revoked(
    runtime: Runtime, clock: StandingClock
) -> None:
    expired = await new_key(runtime, lifetime_days=1)
    revoked = await new_key(runtime)
    await runtime.key_ring.revoke(revoked.key.id, by=None)
    clock.advance(days=1)

    for new, fault in ((expired, "expired"), (revoked, "revoked")):
        with pytest.raises(InvalidToken, match=fault):
            await shown(runtime, new)
        with pytest.raises(InvalidToken, match="not valid"):
            await show(runtime, write_key(new.key.id, environment="live"))

    told = [row for row in await rows(runtime.database, outcome="denied") if "actor" in row]
    assert [(row["actor"], row["credential"], row["reason"]) for row in told] == [
        (expired.key.id, expired.key.id, "service_key_expired"),
        (revoked.key.id, revoked.key.id, "service_key_revoked"),
    ]


async def test_a_key_is_good_until_the_last_moment(runtime: Runtime, clock: StandingClock) -> None:
    new = await new_key(runtime, lifetime_days=1)
    clock.advance(days=1, microseconds=-1)
    await shown(runtime, new)

    clock.advance(microseconds=1)

    with pytest.raises(InvalidToken, match="expired"):
        await shown(runtime, new)


@pytest.mark.parametrize(
    ("scopes", "wanted", "told"),
    [
        (["mint:on-behalf"], "audit:read", "audit:read"),
        (["audit:read"], "mint", "mint:on-behalf"),
        (["mint:on-behalf", "audit:read"], "admin", "admin"),
        (["mint:on-behalf", "audit:read"], None, "whoever has signed in"),
    ],
)
async def test_a_key_lacks_what_it_was_not_given_and_what_no_key_has(
    runtime: Runtime, scopes: list[str], wanted: str | None, told: str
) -> None:
    new = await new_key(runtime, *scopes)

    with pytest.raises(InsufficientScope, match=told):
        await shown(runtime, new, scope=wanted)

    [row] = await rows(runtime.database, outcome="denied")
    assert (row["actor"], row["reason"]) == (new.key.id, "insufficient_scope")


async def test_extra_blanks_before_a_key_do_no_harm(runtime: Runtime) -> None:
    new = await new_key(runtime)

    await show(runtime, f"  {new.text.get_secret_value()} ")


async def test_the_database_has_a_digest_and_not_the_key(runtime: Runtime) -> None:
    new = await new_key(runtime)

    stored = await runtime.database.read(lambda tx: tx.execute(service_keys.select()).one())
    secret = new.text.get_secret_value().rpartition("_")[2]
    assert secret not in str(stored)
    assert secret[:43] not in repr(new)
    assert secret not in repr(await shown(runtime, new))


# On whose behalf ----------------------------------------------------------------------------


async def test_an_end_user_has_one_pseudonym_whatever_key_asks(runtime: Runtime) -> None:
    one, other = await new_key(runtime), await new_key(runtime)

    names = [
        (await asking_for(runtime, new, user)).user_id
        for new in (one, other)
        for user in ("17", "18", "1７")  # noqa: RUF001 - users are taken as they are
    ]

    assert names[:3] == names[3:]
    assert len(set(names)) == 3
    assert all(is_id(name, "eus") for name in names)


async def test_another_installation_gives_other_pseudonyms(runtime: Runtime) -> None:
    caller = await asking_for(runtime, await new_key(runtime), "17")

    assert caller.user_id != EndUsers(b"another").pseudonym_of("17")


@pytest.mark.parametrize("user", ["", "x" * 129, "a\nb", "\0", "\ud800", "\u202e", "\u200b"])
async def test_an_end_user_that_cannot_be_is_refused(runtime: Runtime, user: str) -> None:
    new = await new_key(runtime)

    with pytest.raises(InvalidRequest) as caught:
        await asking_for(runtime, new, user)

    assert [error.field for error in caught.value.errors] == ["user"]


async def test_a_caller_on_behalf_of_somebody_keeps_the_credential(runtime: Runtime) -> None:
    new = await new_key(runtime, profiles=["default"])
    backend = await shown(runtime, new)

    caller = runtime.callers.on_behalf_of(backend, "x" * 128)

    assert replace(caller, user_id=backend.user_id) == backend
    assert (backend.user_id, backend.credential) == (new.key.id, new.key.id)
    assert (caller.role, caller.profiles) == ("user", frozenset({"default"}))
    assert "Authorization" in bearer_of(new)
