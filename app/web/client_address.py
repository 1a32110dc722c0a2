"""Where a request comes from, when proxies stand between."""

import re
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address

from starlette.datastructures import Headers
from starlette.types import Scope

from app.settings import Network

UNKNOWN = "unknown"

_WITH_PORT = re.compile(r"(?:(?P<v4>[0-9.]+)|\[(?P<v6>[^]]+)])(?::[0-9]{1,5})?")

_MAX_HOPS = 16  # more than any chain of proxies; a header can claim thousands


def client_address(scope: Scope, trusted: tuple[Network, ...]) -> str:
    """Return the address of the client, as far as it can be believed.

    That is the peer of the connection; only when the peer is a trusted proxy, the address that it
    reports: the rightmost entry of ``X-Forwarded-For`` that is not a trusted proxy itself, without
    the port.

    Args:
        scope: Of a request or WebSocket.
        trusted: Networks of our own proxies.

    Returns:
        An IPv4 or IPv6 address (mapped ones as IPv4), or ``unknown``, e.g. behind a Unix socket.
    """
    peer = scope.get("client")
    address = _parse(peer[0]) if peer else None
    if address is None:
        return UNKNOWN
    if _is_in(address, trusted):
        forwarded = ",".join(Headers(scope=scope).getlist("x-forwarded-for"))
        for entry in reversed(forwarded.rsplit(",", _MAX_HOPS)[-_MAX_HOPS:]):
            reported = _parse(_without_port(entry.strip()))
            if reported is None:
                break  # who wrote this, and what stands before it, is anyone's guess
            address = reported
            if not _is_in(address, trusted):
                break
    return str(address)


def forwarded_scheme(scope: Scope, trusted: tuple[Network, ...]) -> str | None:
    """Return how the client reached a trusted proxy: ``https`` or ``http``, from X-Forwarded-Proto.

    Args:
        scope: Of a request.
        trusted: Networks of our own proxies.

    Returns:
        None when the peer of the connection is no trusted proxy, or does not say.
    """
    peer = scope.get("client")
    address = _parse(peer[0]) if peer else None
    if address is None or not _is_in(address, trusted):
        return None
    # The first entry is about the client's own connection, where each proxy adds one.
    told = Headers(scope=scope).get("x-forwarded-proto", "").partition(",")[0].strip().lower()
    return told if told in {"http", "https"} else None


def _without_port(entry: str) -> str:
    """Return the address in *entry*, behind which some gateways write the client's port."""
    found = _WITH_PORT.fullmatch(entry)
    return (found["v4"] or found["v6"]) if found else entry


@lru_cache(maxsize=1024)
def _parse(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text.partition("%")[0])  # behind it a zone may be called anything
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _is_in(address: IPv4Address | IPv6Address, networks: tuple[Network, ...]) -> bool:
    return any(address in network for network in networks)
