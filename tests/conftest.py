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


@pytest.fixture
def refusing_url() -> Iterator[str]:
    """The URL of a port that refuses connections: bound, so that nobody else gets it, and not listening."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
