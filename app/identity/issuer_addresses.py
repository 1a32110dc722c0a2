"""Where an issuer may be: on the internet over TLS, unless the operator allows more."""

import ipaddress
from typing import TypeAlias
from urllib.parse import urlsplit

IpAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")
"""IPv4 behind a translator: the last 32 bits say what is reached (RFC 6052 section 2.1)."""

_LOCAL = tuple(map(ipaddress.IPv6Network, ("::/96", "64:ff9b:1::/48", "fec0::/10")))
"""Not of the internet, although Python takes them for global: RFC 4291 sections 2.5.5.1 and 2.5.7,
and translators of a network's own (RFC 8215)."""


def plain_url(url: str) -> str:
    """Return *url* as it is.

    Raises:
        ValueError: It is no plain `https://` or `http://` address.
    """
    parts = urlsplit(url)  # raises ValueError for some of what has no form at all
    if parts.scheme not in {"https", "http"} or not parts.hostname or parts.port == 0:
        raise ValueError("must be an address such as https://login.example.com/")
    if not (url.isascii() and url.isprintable()) or any(c in url for c in "?#@ \"'<>\\"):
        raise ValueError("must be a plain address without query, fragment, user name or spaces")
    return url


def address_fault(url: str, *, anywhere: bool) -> str | None:
    """Return why keys may not be fetched from *url*, as far as the address itself tells.

    Args:
        url: Anything.
        anywhere: Plain HTTP and private addresses are allowed.
    """
    try:
        parts = urlsplit(plain_url(url))
    except ValueError as error:
        return str(error)
    if anywhere or on_loopback(url):
        return None
    if parts.scheme != "https":
        return "must be https://; http:// is for this machine, or set ALLOW_PRIVATE_ISSUERS"
    ip = _ip(parts.hostname or "")
    if ip is not None and not is_public(ip):
        return "is a private address; set ALLOW_PRIVATE_ISSUERS if it is meant"
    return None


def on_loopback(url: str) -> bool:
    """Tell whether *url* says itself that it is on this machine."""
    host = urlsplit(url).hostname or ""
    return host == "localhost" or ((ip := _ip(host)) is not None and ip.is_loopback)


def is_public(ip: IpAddress) -> bool:
    """Tell whether *ip* is an address of the internet, and not of a network nearby."""
    if isinstance(ip, ipaddress.IPv6Address):
        if any(ip in network for network in _LOCAL):
            return False
        translated = ipaddress.IPv4Address(ip.packed[-4:]) if ip in _TRANSLATED else None
        ip = ip.ipv4_mapped or ip.sixtofour or translated or ip
    return ip.is_global and not ip.is_multicast


def _ip(host: str) -> IpAddress | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
