"""Fixtures that several folders share; each exists once, so that there is one server in a run."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.postgres import (
    fresh_postgres_url,
    location,
    own_postgres,
    postgres_schema,
    postgres_server,
    postgres_url,
)
from tests.redis_server import own_redis, redis_url

__all__ = [
    "fresh_postgres_url",
    "location",
    "own_postgres",
    "own_redis",
    "postgres_schema",
    "postgres_server",
    "postgres_url",
    "redis_url",
]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share a module's fixture run in one worker, so that a platform or an engine is started once, not in
    each worker; those with different parameters of the fixture (SQLite, PostgreSQL) may run beside each other."""
    for item in items:
        if not isinstance(item, pytest.Function) or item.get_closest_marker("xdist_group") is not None:
            continue
        shared = {name for name, found in item._fixtureinfo.name2fixturedefs.items() if found[-1].scope == "module"}
        if shared:
            chosen = item.callspec.indices if hasattr(item, "callspec") else {}
            which = [str(place) for name, place in sorted(chosen.items()) if name in shared]
            item.add_marker(pytest.mark.xdist_group("-".join([item.nodeid.partition("::")[0], *which])))


@pytest.fixture
def refusing_url() -> Iterator[str]:
    """The URL of a port that refuses connections: bound, so that nobody else gets it, and not listening."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
