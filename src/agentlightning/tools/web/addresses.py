"""Which addresses belong to the public internet. Pure; resolves no names.

From IANA's registries of special-purpose addresses, written out because `ipaddress` has changed its mind between Python
versions. IPv6 is the other way round: only global unicast, without the parts that carry an IPv4 address inside.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address

_NOT_PUBLIC = [
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT; a cloud's metadata at 100.100.100.200
        "127.0.0.0/8",
        "168.63.129.16/32",  # a cloud's metadata and health service
        "169.254.0.0/16",  # link-local; metadata at 169.254.169.254
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
]
_GLOBAL = IPv6Network("2000::/3")
_NOT_GLOBAL = [
    IPv6Network(text)
    for text in (
        "2001::/23",  # protocol assignments; Teredo carries an IPv4 address
        "2001:db8::/32",
        "2002::/16",  # 6to4 carries one, too
        "3fff::/20",
    )
]
_NUMBERS = re.compile(r"(0[xX][0-9a-fA-F]*|[0-9]+)(\.(0[xX][0-9a-fA-F]*|[0-9]+))*\.?")


def is_public(address: Address | str) -> bool:
    """Whether an address belongs to the internet; mapped, translated and tunnelled ones never do."""
    if isinstance(address, str):
        address = ip_address(address.partition("%")[0])
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC)
    return address in _GLOBAL and not any(address in network for network in _NOT_GLOBAL)


def literal(host: str) -> Address | None:
    """The address that a host's text is, in its usual form; `None` for a name.

    Raises:
        ValueError: It is an address in a form that programs read differently: `2130706433`, `0x7f.1`, `0177.0.0.1`.
    """
    text = host.removeprefix("[").removesuffix("]")
    try:
        return ip_address(text)
    except ValueError:
        if ":" in text or _NUMBERS.fullmatch(text):
            raise ValueError(f"{host!r} is an address in an unusual form") from None
        return None
