"""Where a request comes from and under which name it reached us: addresses behind proxies, hosts, browser origins."""

from __future__ import annotations

import functools
import socket
from collections.abc import Sequence
from ipaddress import IPv6Address, ip_address, ip_network
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from agentlightning.platform.settings import PlatformSettings

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class Addresses:
    """Addresses of callers.

    Args:
        trusted: Networks of proxies whose `X-Forwarded-For` is believed.
    """

    def __init__(self, trusted: Sequence[str]) -> None:
        self._trusted = [ip_network(text) for text in trusted]

    def of(self, peer: str, headers: Headers) -> str:
        """The caller's address: the last one in the chain that is not a trusted proxy's. IPv6 by its /64 network."""
        address = peer
        if self._trusted and self._is_trusted(peer):
            for hop in reversed(",".join(headers.getlist("x-forwarded-for")).split(",")):
                hop = hop.strip()
                if not _is_address(hop):
                    break
                address = hop
                if not self._is_trusted(hop):
                    break
        return _group(address)

    def _is_trusted(self, text: str) -> bool:
        return _is_address(text) and any(ip_address(text) in network for network in self._trusted)


class Origins:
    """Which hosts and which browser origins may call."""

    def __init__(self, settings: PlatformSettings) -> None:
        own = {"localhost", socket.gethostname().lower()}
        self._hosts = own | set(settings.allowed_hosts)
        self._origins = {origin.lower() for origin in settings.cors_origins}

    def is_known_host(self, headers: Headers) -> bool:
        """Whether the `Host` is a name of ours. Addresses are: a name that an attacker rebinds is none."""
        hosts = headers.getlist("host")
        if len(hosts) != 1:
            return False
        name = _host_name(hosts[0])
        return name is not None and (name in self._hosts or _is_address(name))

    def may_write(self, method: str, headers: Headers, *, is_websocket: bool = False) -> bool:
        """Whether a browser may have sent this: a page of our own or of an allowed origin, or no page at all."""
        if method in SAFE_METHODS and not is_websocket:
            return True
        origins = headers.getlist("origin")
        if not origins:
            return headers.get("sec-fetch-site", "none") in ("none", "same-origin")
        return len(origins) == 1 and self._is_ours(origins[0].lower(), headers.get("host", "").lower())

    def _is_ours(self, origin: str, host: str) -> bool:
        if origin in self._origins:
            return True
        parts = urlsplit(origin)
        return parts.scheme in ("http", "https") and parts.netloc == host


@functools.lru_cache(maxsize=1024)
def _host_name(host: str) -> str | None:
    """The name in a `Host` header, lower-case; `None` if it is no such header."""
    if any(character in host for character in "/?#@\\ ,") or not host.isascii():
        return None
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port  # raises when it is none
    except ValueError:
        return None
    return parts.hostname


@functools.lru_cache(maxsize=4096)
def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


@functools.lru_cache(maxsize=4096)
def _group(text: str) -> str:
    if not _is_address(text):
        return "unknown"
    address = ip_address(text)
    if not isinstance(address, IPv6Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ip_network(f"{address.packed.hex(':', 2)}/64", strict=False).network_address)  # one customer's
