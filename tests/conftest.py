"""Fixtures that several folders share; each exists once, so that there is one server in a run."""

from __future__ import annotations

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
