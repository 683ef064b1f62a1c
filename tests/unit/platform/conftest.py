"""The two set-ups that every test of the platform passes: SQLite with memory, PostgreSQL with Redis."""

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from agentlightning.platform.auth import passwords
from tests.postgres import SCHEMA, drop_schema, with_schema
from tests.redis_server import RedisServer, running_redis
from tests.unit.gateway.scripted import ScriptedOpenAIServer
from tests.unit.platform.models import scripted_server
from tests.unit.platform.site import Site, settings_for

SETUPS = ["sqlite", "postgres"]
_ROUNDS = passwords.ROUNDS
_STARTED = pytest.StashKey[list[Site]]()


@pytest.fixture(autouse=True, scope="session")
def quick_hashes() -> Iterator[None]:
    """Twelve rounds take a quarter of a second of each login; `full_rounds` is for what is about the rounds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passwords, "ROUNDS", 4)
        yield


@pytest.fixture
def full_rounds(quick_hashes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What users get."""
    monkeypatch.setattr(passwords, "ROUNDS", _ROUNDS)


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    with running_redis() as running:
        yield running


_databases = itertools.count()


def own_database(server: RedisServer) -> str:
    """URL of one of the server's sixteen databases, emptied."""
    url = server.url.removesuffix("/0") + f"/{next(_databases) % 16}"
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url


@pytest.fixture(scope="module")
def platform_schema(request: pytest.FixtureRequest) -> Iterator[Callable[[], str]]:
    """Makes URLs of PostgreSQL schemas that are gone after the module."""
    made: list[str] = []
    server: list[str] = []

    def make() -> str:
        server[:] = [request.getfixturevalue("postgres_server")]
        made.append(f"{SCHEMA}_platform_{time.time_ns() % 10**12}")
        return with_schema(server[0], made[-1])

    yield make
    if made:
        with psycopg.connect(server[0], autocommit=True) as connection:
            for schema in made:
                drop_schema(connection, schema)
                drop_schema(connection, f"{schema}_store")


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedOpenAIServer]:
    """A model's server whose answers the test writes."""
    with scripted_server() as running:
        yield running


@pytest.fixture(scope="module", params=SETUPS)
def make_site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, platform_schema: Callable[[], str]
) -> Iterator[Callable[..., Site]]:
    """Starts platforms; one for a module, or one with other settings for a test."""
    started: list[Site] = []

    def make(extend: Any = None, models: Any = None, **given: Any) -> Site:
        home: Path = tmp_path_factory.mktemp("home")
        if request.param == "postgres":
            given.setdefault("DATABASE_URL", platform_schema())
            given.setdefault("REDIS_URL", own_database(request.getfixturevalue("shared_redis")))
        started.append(Site(settings_for(home, **given), extend, models).start())
        return started[-1]

    request.node.stash[_STARTED] = started
    yield make
    _stop(started, 0)


@pytest.fixture(autouse=True)
def sites_of_a_test_end_with_it(request: pytest.FixtureRequest) -> Iterator[None]:
    """Only those of the module stay: each holds connections to the one database server of all tests."""
    module = request.node.getparent(pytest.Module)
    started = module.stash.get(_STARTED, [])
    count = len(started)
    yield
    started = module.stash.get(_STARTED, [])
    _stop(started, count)


def _stop(started: list[Site], count: int) -> None:
    while len(started) > count:
        started.pop().stop()


@pytest.fixture(scope="module")
def site(make_site: Callable[..., Site]) -> Site:
    return make_site()
