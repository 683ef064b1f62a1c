"""Ports for tests that need one to stay theirs while nobody listens on it."""

from __future__ import annotations

import itertools
import os
import socket

_LOWEST, _EACH = 18_000, 400
"""Below the ports that systems give to clients (from 32,768 or 49,152 on), a span of them for each xdist worker."""

_next = itertools.count()


def lasting_port() -> int:
    """A port for a server that goes away and comes back: no client and no other worker's server takes it meanwhile."""
    first = _LOWEST + _EACH * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 32)
    for _ in range(_EACH):
        port = first + next(_next) % _EACH
        with socket.socket() as tried:
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError(f"No port from {first} to {first + _EACH} is free.")
