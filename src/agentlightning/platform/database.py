"""The platform's database: one async engine for SQLite and PostgreSQL. Knows no tables."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import AsyncGenerator, Generator, Mapping
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import MetaData, event, text
from sqlalchemy.engine import URL, Engine, create_engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase

from agentlightning.kit.errors import AgentLightningError, ConfigError, MissingExtraError
from agentlightning.kit.files import storage_error
from agentlightning.platform.outage import Outage

log = logging.getLogger(__name__)

DEFAULT_SCHEMA = "agentlightning_platform"
BUSY_TIMEOUT_S = 15.0
POOL_SIZE = 10
BRIEF_POOL_SIZE = 5
_POOL_WAIT_S = 10.0
_DIRECT_BUSY_S = 0.25  # as long as the event loop may be held up while somebody recovers the log

_NAMES = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """Of all tables."""

    metadata = MetaData(naming_convention=_NAMES)


class DatabaseError(AgentLightningError):
    """The database does not answer."""

    code = "DATABASE_UNAVAILABLE"
    status = 503


class Database:
    """Sessions that read (`read`) and sessions that write (`write`); on SQLite one writes at a time.

    Args:
        url: `sqlite:///FILE` or `postgresql://...?schema=NAME`.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        """It may hold a password."""
        self.is_sqlite = not url.startswith("postgres")
        self.file: Path | None = None
        """The SQLite file."""
        if self.is_sqlite:
            parsed = sqlite_url(url)
            self.file = Path(str(parsed.database)).resolve()
            self.engine = _async_sqlite(parsed)
        else:
            self.engine = _async_postgres(url)
        self._brief = None if self.is_sqlite else _brief_postgres(url)
        self.info: dict[str, Any] = {}
        """Known to every session as its `info`."""
        self._sessions = async_sessionmaker(self.engine, expire_on_commit=False, info=self.info)
        writing = self.engine.execution_options(agl_begin="BEGIN IMMEDIATE")
        self._writing = async_sessionmaker(writing, expire_on_commit=False, info=self.info)
        self._lock = asyncio.Lock()
        self.outage = Outage()
        """Since when it has been away, as far as reads and writes here have noticed."""
        self._direct: sqlite3.Connection | None = None

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncGenerator[AsyncSession]:
        """A session that is rolled back in the end."""
        with self.watched():
            async with self._sessions() as session:
                yield session

    @contextlib.asynccontextmanager
    async def write(self) -> AsyncGenerator[AsyncSession]:
        """A transaction: committed when the block ends well, else undone."""
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(self.watched())
            if self.is_sqlite:  # waiting here is cheaper than SQLite's polling
                await stack.enter_async_context(self._lock)
            session = await stack.enter_async_context(self._writing())
            await stack.enter_async_context(session.begin())
            yield session

    async def ask(self, query: Any, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """The rows of one statement by itself: one message to PostgreSQL and one back.

        Raises:
            DBAPIError: It does not answer.
        """
        with self.watched():
            try:
                return await self._ask(query, values)
            except DBAPIError as error:
                if not error.connection_invalidated:
                    raise
            # The server was restarted since; the engine has let go of its other connections, too.
            return await self._ask(query, values)

    async def _ask(self, query: Any, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        async with (self._brief or self.engine).connect() as connection:
            return [tuple(row) for row in await connection.execute(query, dict(values))]

    async def ping(self) -> float:
        """Seconds that the simplest query takes.

        Raises:
            DBAPIError: It does not answer.
        """
        started = time.monotonic()
        with self.watched():
            async with self.engine.connect() as connection:
                await connection.execute(text("SELECT 1"))
        return time.monotonic() - started

    @contextlib.contextmanager
    def watched(self) -> Generator[None]:
        """What is done in the block tells whether the database is there."""
        try:
            yield
        except DBAPIError as error:
            if is_away(error) and self.outage.begin(type(error).__name__):
                log.warning("The database does not answer (%s)", type(error).__name__)
            raise
        gone_s = self.outage.end()
        if gone_s is not None:
            log.warning("The database answers again after %.1f s", gone_s)

    def direct(self) -> sqlite3.Connection:
        """SQLite's own connection, for short reads in the event loop.

        Raises:
            sqlite3.Error: The file cannot be opened.
        """
        if self._direct is None:
            assert self.file is not None
            uri = f"{self.file.as_uri()}?mode=rw"
            self._direct = sqlite3.connect(
                uri, uri=True, timeout=_DIRECT_BUSY_S, isolation_level=None, check_same_thread=False
            )
            self._direct.execute("PRAGMA query_only=ON")
        return self._direct

    def close_direct(self) -> None:
        """Close it; the next read opens it again."""
        if self._direct is not None:
            self._direct.close()
            self._direct = None

    async def close(self) -> None:
        """Close all connections."""
        self.close_direct()
        await self.engine.dispose()
        if self._brief is not None:
            await self._brief.dispose()


async def listen(url: str) -> AsyncGenerator[None]:
    """An item for every `notify` that another transaction has committed, and one at the beginning.

    Raises:
        psycopg.Error: The connection is lost, or there is none.
    """
    psycopg, options = _postgres(url)
    schema = options.pop("schema")
    connection = await psycopg.AsyncConnection.connect(**options, autocommit=True)
    async with connection:
        await connection.execute(psycopg.sql.SQL("LISTEN {}").format(psycopg.sql.Identifier(f"agl_{schema}")))
        yield
        async for _ in connection.notifies():
            yield


NOTIFY = text("SELECT pg_notify('agl_' || current_schema(), '')")
"""Tells `listen`ers when the transaction is committed; PostgreSQL only."""


def is_unavailable(error: BaseException) -> bool:
    """Whether it says that the database is away, rather than that a statement is wrong."""
    from sqlalchemy.exc import InterfaceError, OperationalError
    from sqlalchemy.exc import TimeoutError as PoolTimeoutError

    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    return isinstance(error, (OperationalError, InterfaceError, PoolTimeoutError))


@contextlib.contextmanager
def outages_told() -> Generator[None]:
    """Say in one way that a database is away, for commands and starts, which have nobody to try again.

    Raises:
        DatabaseError: It is.
    """
    try:
        yield
    except AgentLightningError:
        raise
    except Exception as error:  # drivers fail in their own ways; what is no outage is raised again
        if is_unavailable(error):
            raise DatabaseError("The database does not answer.", hint="Check DATABASE_URL and the server.") from error
        raise


def is_away(error: DBAPIError) -> bool:
    """Whether the server is gone, rather than busy, locked, or out of patience with one statement."""
    if not is_unavailable(error):
        return False
    code = getattr(error.orig, "sqlite_errorcode", None)
    if code is not None:
        return code & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    state = getattr(error.orig, "sqlstate", None) or ""
    return not state or state[:2] == "08" or state[:3] == "57P" or state == "53300"


def sqlite_url(url: str) -> URL:
    """The parsed URL; folder and file are made.

    Raises:
        ConfigError: It is no URL of a SQLite file.
        StorageError: The file cannot be made.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        parsed = None
    if parsed is None or parsed.get_backend_name() != "sqlite" or not parsed.database or parsed.database == ":memory:":
        raise ConfigError(
            "DATABASE_URL is neither postgresql://… nor sqlite:///FILE.", hint="Leave it out for a file in AGL_HOME."
        )
    path = Path(parsed.database)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)  # hashes of passwords are nobody else's; SQLite gives its side files the same mode
    except OSError as error:
        raise storage_error(path, error) from error
    return parsed


def sync_engine(url: str) -> Engine:
    """An engine for migrations: one connection at a time, made anew for each use."""
    from sqlalchemy.pool import NullPool

    if url.startswith("postgres"):
        psycopg, options = _postgres(url)
        options.pop("schema")
        return create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(**options), poolclass=NullPool)
    engine = create_engine(sqlite_url(url).set(drivername="sqlite"), poolclass=NullPool)
    _prepare_sqlite(engine)
    return engine


def postgres_schema(url: str) -> str:
    """Name of the schema that holds the tables."""
    return _postgres(url)[1]["schema"]


def _async_sqlite(url: URL) -> AsyncEngine:
    engine = create_async_engine(url.set(drivername="sqlite+aiosqlite"), pool_size=POOL_SIZE, max_overflow=0)
    _prepare_sqlite(engine.sync_engine)
    return engine


def _prepare_sqlite(engine: Engine) -> None:
    def connected(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # SQLAlchemy begins, not the driver
        cursor = connection.cursor()
        for pragma in (
            f"busy_timeout={BUSY_TIMEOUT_S * 1000:.0f}",
            "journal_mode=WAL",
            "foreign_keys=ON",
            "synchronous=NORMAL",
            "trusted_schema=OFF",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    def begin(connection: Any) -> None:
        # A transaction that reads before it writes would fail at once, without waiting, if another wrote meanwhile.
        connection.exec_driver_sql(connection.get_execution_options().get("agl_begin", "BEGIN"))

    event.listen(engine, "connect", connected)
    event.listen(engine, "begin", begin)


def _postgres(url: str) -> tuple[Any, dict[str, Any]]:
    try:
        import psycopg

        from agentlightning.kit.db.postgres.connection import CONNECT_TIMEOUT_S, Address
    except ImportError as error:
        raise MissingExtraError(
            "PostgreSQL needs the package psycopg.", hint="Run: pip install 'agentlightning[postgres]'"
        ) from error
    address = Address.parse(url.replace("postgresql+psycopg://", "postgresql://", 1))
    schema = address.schema if "schema=" in url else DEFAULT_SCHEMA
    return psycopg, {
        "conninfo": address.conninfo,
        "schema": schema,
        "connect_timeout": CONNECT_TIMEOUT_S,
        "application_name": "agentlightning platform",
        # A server that is cut off without a word is noticed.
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 20_000,
        "options": f"-c search_path={schema} -c lock_timeout={BUSY_TIMEOUT_S * 1000:.0f} -c TimeZone=UTC "
        f"-c statement_timeout=30000 -c idle_in_transaction_session_timeout=30000",
    }


def _async_postgres(url: str, **pool: Any) -> AsyncEngine:
    psycopg, options = _postgres(url)
    options.pop("schema")

    async def connect() -> Any:
        connection = await psycopg.AsyncConnection.connect(**options)
        # JSONB gives 1e152 back as an integer, which no answer can hold: orjson makes it a float again.
        psycopg.types.json.set_json_loads(orjson.loads, connection)
        return connection

    return create_async_engine(
        "postgresql+psycopg://",
        async_creator=connect,
        max_overflow=0,
        pool_timeout=_POOL_WAIT_S,
        **{"pool_size": POOL_SIZE, "pool_pre_ping": True, **pool},
    )


def _brief_postgres(url: str) -> AsyncEngine:
    """For statements by themselves: no transaction is begun and undone around them, and none asks first whether the
    server is there, which makes four messages one.
    """
    return _async_postgres(
        url, pool_size=BRIEF_POOL_SIZE, pool_pre_ping=False, pool_reset_on_return=None, isolation_level="AUTOCOMMIT"
    )
