from ipaddress import ip_network

import pytest

from app.web.client_address import client_address

TRUSTED = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))


def seen(peer: str | None, *forwarded: str, trusted: bool = True) -> str:
    scope = {
        "type": "http",
        "client": (peer, 4711) if peer is not None else None,
        "headers": [(b"x-forwarded-for", value.encode("latin-1")) for value in forwarded],
    }
    return client_address(scope, TRUSTED if trusted else ())


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("203.0.113.7", [], "203.0.113.7"),
        ("203.0.113.7", ["198.51.100.1"], "203.0.113.7"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["6.6.6.6, 198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["6.6.6.6, 198.51.100.1, 10.2.3.4"], "198.51.100.1"),
        ("10.0.0.1", ["6.6.6.6", "198.51.100.1, 10.2.3.4"], "198.51.100.1"),
        ("10.0.0.1", ["6.6.6.6, nonsense, 10.2.3.4"], "10.2.3.4"),
        ("10.0.0.1", ["6.6.6.6, "], "10.0.0.1"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", ["6.6.6.6, 198.51.100.1:4711, 10.2.3.4:80"], "198.51.100.1"),
        ("10.0.0.1", ["[2001:db8::1]:4711"], "2001:db8::1"),
        ("10.0.0.1", ["[2001:db8::1]"], "2001:db8::1"),
        ("10.0.0.1", ["198.51.100.1:"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1:port"], "10.0.0.1"),
        ("10.0.0.1", ["[198.51.100.1"], "10.0.0.1"),
        ("10.0.0.1", ["10.0.0.2, 10.0.0.3"], "10.0.0.2"),
        ("::ffff:10.0.0.1", ["::ffff:198.51.100.1"], "198.51.100.1"),
        ("::ffff:203.0.113.7", [], "203.0.113.7"),
        ("fd00::1", ["2001:DB8:0:0::1"], "2001:db8::1"),
        ("10.0.0.1", ["2001:db8::1%<b>any text</b>"], "2001:db8::1"),
        ("2001:db8::1", ["6.6.6.6"], "2001:db8::1"),
        (None, ["6.6.6.6"], "unknown"),
        ("", ["6.6.6.6"], "unknown"),
        ("/run/service.sock", ["6.6.6.6"], "unknown"),
        ("10.0.0.1", ["é"], "10.0.0.1"),
    ],
)
def test_only_a_trusted_proxy_is_believed_and_only_as_far_as_it_saw(
    peer: str | None, forwarded: list[str], address: str
) -> None:
    assert seen(peer, *forwarded) == address


def test_without_trusted_proxies_the_header_means_nothing() -> None:
    assert seen("10.0.0.1", "6.6.6.6", trusted=False) == "10.0.0.1"


def test_a_header_with_thousands_of_hops_is_read_only_in_part() -> None:
    assert seen("10.0.0.1", "6.6.6.6" + ", 10.0.0.2" * 10_000) == "10.0.0.2"
