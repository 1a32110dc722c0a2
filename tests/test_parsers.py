"""What reads the words of strangers: whatever they say, it is understood or refused."""

from contextlib import suppress
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from starlette.datastructures import Headers

from app.audit.denials import network_of
from app.audit.search import Search
from app.base.errors import InvalidCursor, UnsupportedMediaType
from app.web.audit import EventQuery
from app.web.client_address import client_address
from app.web.door import _check_media_type, _request_id
from tests.conftest import START

pytestmark = pytest.mark.slow

TRUSTED = (ip_network("10.0.0.0/8"), ip_network("fe80::/10"))


def header(name: str, value: bytes) -> dict[str, Any]:
    """Return the scope of a request that a trusted proxy passes on with this field."""
    fields = [(name.encode(), value)]
    return {"type": "http", "client": ("10.0.0.1", 4711), "headers": fields}


def words(*known: str) -> st.SearchStrategy[str]:
    """Give texts of any kind, and texts made of what a parser looks for."""
    return st.text() | st.lists(st.sampled_from(known) | st.text(max_size=3)).map("".join)


addresses = st.ip_addresses().map(str) | st.sampled_from(["10.0.0.2", "::ffff:192.0.2.1"])
zoned = st.tuples(addresses, st.sampled_from(["", "%", ":80", "/8", " "]), st.text(max_size=3))
hops = st.lists(zoned.map("".join) | addresses | st.text(max_size=5)).map(", ".join)
media_types = words("application/json", ";", "charset", "=", "utf-8", '"', "APPLICATION", " ")
cursors = words("AAAA", "AAAAAAAAEmZrM2d4UTJ2bDd3c0hZcE4x", "=", "-", "_", "\n")
offsets = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
instants = st.datetimes(timezones=offsets).map(datetime.isoformat)
moments = instants | words(
    "2026-11-20", "T", "09:30:00", ".5", "Z", "+14:00", "-", "0000", "9999-12-31", "1e9"
)


@settings(max_examples=1000)
@given(hops.map(str.encode) | st.binary())
def test_whatever_a_proxy_reports_the_client_is_at_an_address_and_in_a_network(
    value: bytes,
) -> None:
    address = client_address(header("x-forwarded-for", value), TRUSTED)

    assert str(ip_address(address)) == address
    assert "%" not in address
    assert ip_address(address) in ip_network(network_of(address))


@given(media_types.map(str.encode) | st.binary())
def test_whatever_a_body_is_called_it_is_taken_or_refused(value: bytes) -> None:
    for path in ("/realtime/token", "/auth/token"):
        with suppress(UnsupportedMediaType):
            _check_media_type(Headers(scope=header("content-type", value)), path)


@given(st.text("aZ09._-").map(str.encode) | st.binary())
def test_whatever_a_request_is_named_it_has_a_short_and_plain_name(value: bytes) -> None:
    name = _request_id(header("x-request-id", value))

    assert 0 < len(name) <= 64
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


@given(cursors)
def test_no_cursor_is_taken_that_we_have_not_made(cursor: str) -> None:
    no_database: Any = None
    search = Search(no_database, cursor_key=b"0" * 32)

    with suppress(InvalidCursor):
        raise AssertionError(f"taken for row {search._read(cursor)}")


@given(moments)
def test_whatever_is_said_of_time_it_becomes_a_filter_or_is_refused(text: str) -> None:
    with suppress(ValidationError):
        query = EventQuery.model_validate({"from": text, "to": text})
        filters = query.filters(START)
        assert filters.since is not None
        assert filters.since == filters.until
