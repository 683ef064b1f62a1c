"""A database as a source or target of whole tables: read in order, write in bulk. Knows no operations.

A source is one read transaction, so that all that is read is one moment. A target is written in transactions of the
caller's.
"""

from __future__ import annotations

import json
import os
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, LiteralString, cast

from sqlalchemy import Dialect, Table, func, select
from sqlalchemy.dialects.sqlite.base import SQLiteDialect
from sqlalchemy.sql import ClauseElement

from agentlightning.kit.db import Row, Session
from agentlightning.kit.db.session import SqliteSession
from agentlightning.kit.db.sqlite import connect, prepare_folder, translated
from agentlightning.kit.errors import BadInputError, StorageError
from agentlightning.store.databases import Location, postgres_schema, require_store
from agentlightning.store.ops.events import RECORDED
from agentlightning.store.ops.lifecycle import QUEUED
from agentlightning.store.tables import metadata, sqlite_schema

if TYPE_CHECKING:
    from agentlightning.kit.db.postgres import Address, PostgresSchema

BATCH = 500
TABLE_NAMES = ", ".join(table.name for table in metadata.sorted_tables)


def _contradiction(name: str, error: Exception) -> BadInputError:
    return BadInputError(
        f"Rows do not fit into {name}: {str(error).splitlines()[0]}.",
        hint="They contradict each other, or refer to rows that are missing.",
    )


class Endpoint(ABC):
    """An open database.

    Attributes:
        name: For messages.
        dialect: Its SQL.
    """

    name: str
    dialect: Dialect

    @abstractmethod
    def query(self, sql: LiteralString) -> list[Row]:
        """Rows of a statement without parameters, in the SQL that both databases share."""

    @abstractmethod
    def stream(self, statement: ClauseElement) -> Iterator[list[Row]]:
        """Rows of a query, a batch at a time."""

    @abstractmethod
    def run(self, statement: ClauseElement) -> list[Row]:
        """Execute anything; its rows, if any."""

    @abstractmethod
    def write(self, table: Table, rows: Sequence[Row]) -> None:
        """Add rows with all columns.

        Raises:
            BadInputError: They contradict each other or those that are there.
        """

    @abstractmethod
    def begin(self, *, alone: bool) -> None:
        """Begin a transaction; `alone` keeps other writers out until it ends."""

    @abstractmethod
    def commit(self) -> None:
        """Keep what was written."""

    @abstractmethod
    def rollback(self) -> None:
        """Forget what was not committed."""

    @abstractmethod
    def close(self) -> None:
        """Let go; what was not committed is forgotten."""

    @abstractmethod
    def session(self) -> Session:
        """For operations that read."""

    def in_one_go(self) -> AbstractContextManager[object]:
        """Within the block, statements need not wait for each other's answers; errors may come at its end."""
        return nullcontext()

    def count(self, table: Table) -> int:
        """Number of rows."""
        return self.run(select(func.count()).select_from(table))[0][0]

    @contextmanager
    def transaction(self, *, alone: bool = False) -> Generator[None]:
        """Commit what the block does, or nothing of it."""
        self.begin(alone=alone)
        try:
            yield
        except BaseException:
            self.rollback()
            raise
        self.commit()


class SqliteEndpoint(Endpoint):
    """A file."""

    def __init__(self, path: Path, *, to_write: bool) -> None:
        self.name = str(path)
        self._closed = False
        self.dialect = SQLiteDialect(paramstyle="named")
        schema = sqlite_schema()
        if to_write:
            prepare_folder(path)
        else:
            require_store(path)
        self.connection = connect(path, read_only=not to_write)
        try:
            if to_write:
                schema.ensure(self.connection, self.name)
            elif (found := schema.version_of(self.connection, self.name)) != schema.version:
                raise StorageError(
                    f"{path} has schema version {found or 'none'}; this needs version {schema.version}.",
                    hint=f"Run: agl store migrate {path}" if found else "It holds no store; give another file.",
                )
            if not to_write:
                self.connection.execute("BEGIN")
        except BaseException:
            self.connection.close()
            raise

    def session(self) -> Session:
        return SqliteSession(self.connection)

    def query(self, sql: LiteralString) -> list[Row]:
        with translated(self.name):
            return self.connection.execute(sql).fetchall()

    def _execute(self, statement: ClauseElement) -> sqlite3.Cursor:
        compiled = statement.compile(dialect=self.dialect, compile_kwargs={"render_postcompile": True})
        return self.connection.execute(str(compiled), dict(compiled.params or {}))

    def stream(self, statement: ClauseElement) -> Iterator[list[Row]]:
        with translated(self.name):
            cursor = self._execute(statement)
            while rows := cursor.fetchmany(BATCH):
                yield rows

    def run(self, statement: ClauseElement) -> list[Row]:
        try:
            with translated(self.name):
                return self._execute(statement).fetchall()
        except sqlite3.IntegrityError as error:
            raise _contradiction(self.name, error) from error

    def write(self, table: Table, rows: Sequence[Row]) -> None:
        marks = ", ".join("?" for _ in table.columns)
        names = ", ".join(column.name for column in table.columns)
        try:
            with translated(self.name):
                self.connection.executemany(f"INSERT INTO {table.name} ({names}) VALUES ({marks})", rows)
        except sqlite3.IntegrityError as error:
            raise _contradiction(self.name, error) from error

    def begin(self, *, alone: bool) -> None:
        del alone  # one writer at a time anyway
        with translated(self.name):
            self.connection.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        with translated(self.name):
            self.connection.execute("COMMIT")

    def rollback(self) -> None:
        if self.connection.in_transaction:
            self.connection.execute("ROLLBACK")

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.rollback()
            self.connection.close()


class PostgresEndpoint(Endpoint):
    """A schema of a server's database."""

    def __init__(self, address: Address, *, to_write: bool, schema: PostgresSchema | None = None) -> None:
        from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

        from agentlightning.kit.db.postgres import connection as postgres

        self._translate = postgres.translate
        self.dialect = PGDialect_psycopg()
        self.address = address
        self.name = str(address)
        schema = schema or postgres_schema()
        if to_write:
            schema.ensure(address)
        else:
            schema.check(address)
        self.connection: Any = postgres.connect(address, read_only=not to_write, name="transfer")
        with self._translated():
            self.connection.execute("SET idle_in_transaction_session_timeout = 0")
            if not to_write:
                self.connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")

    @contextmanager
    def _translated(self) -> Generator[None]:
        import psycopg

        try:
            yield
        except psycopg.IntegrityError as error:
            raise _contradiction(self.name, error) from error
        except psycopg.Error as error:
            raise self._translate(error, self.address) or error from error

    def session(self) -> Session:
        from agentlightning.kit.db.postgres.session import PostgresSession

        return PostgresSession(self.connection)

    def query(self, sql: LiteralString) -> list[Row]:
        with self._translated():
            return self.connection.execute(sql).fetchall()

    def _compiled(self, statement: ClauseElement) -> tuple[LiteralString, dict[str, Any]]:
        compiled = statement.compile(dialect=self.dialect, compile_kwargs={"render_postcompile": True})
        return cast(LiteralString, str(compiled)), dict(compiled.params or {})

    def stream(self, statement: ClauseElement) -> Iterator[list[Row]]:
        text, params = self._compiled(statement)
        with self._translated(), self.connection.cursor(name=f"agl_{id(statement):x}") as cursor:
            cursor.execute(text, params)
            while rows := cursor.fetchmany(BATCH):
                yield rows

    def run(self, statement: ClauseElement) -> list[Row]:
        with self._translated():
            cursor = self.connection.execute(*self._compiled(statement))
            return cursor.fetchall() if cursor.description else []

    def write(self, table: Table, rows: Sequence[Row]) -> None:
        from psycopg import sql

        names = sql.SQL(", ").join(sql.Identifier(column.name) for column in table.columns)
        statement = sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(table.name), names)
        with self._translated(), self.connection.cursor() as cursor, cursor.copy(statement) as copy:
            for row in rows:
                copy.write_row(row)

    def begin(self, *, alone: bool) -> None:
        with self._translated():
            self.connection.execute("BEGIN")
            if alone:  # readers go on
                self.connection.execute(f"LOCK TABLE {TABLE_NAMES} IN EXCLUSIVE MODE")

    def commit(self) -> None:
        with self._translated():
            self.connection.execute("COMMIT")

    def renumber(self) -> None:
        """Go on numbering after the last row of each table."""
        with self._translated():
            for table in metadata.sorted_tables:
                self.connection.execute(
                    f"""SELECT setval(pg_get_serial_sequence('{table.name}', 'no'), coalesce(max(no), 0) + 1, false)
                    FROM {table.name}"""
                )

    def announce(self) -> None:
        """Wake those who wait, once this transaction is committed."""
        announced = json.dumps(["transfer", [QUEUED, ""], [RECORDED, ""]])
        with self._translated():
            self.connection.execute("SELECT pg_notify(%s, %s)", (self.address.channel, announced))

    @contextmanager
    def in_one_go(self) -> Generator[None]:
        with self._translated(), self.connection.pipeline():
            yield

    def rollback(self) -> None:
        if not self.connection.closed:
            self.connection.rollback()

    def close(self) -> None:
        self.connection.close()


def open_endpoint(location: Location, *, to_write: bool = False) -> Endpoint:
    """Open for reading, or for writing, which creates what is missing.

    Raises:
        NotFoundError: Nothing is there to read.
        StorageError: It cannot be used, or is of another version.
    """
    if location is None:
        raise BadInputError("A store in memory belongs to its process.", hint="Give a file or a postgresql:// URL.")
    if isinstance(location, str):
        from agentlightning.kit.db.postgres import Address

        return PostgresEndpoint(Address.parse(location), to_write=to_write)
    return SqliteEndpoint(location, to_write=to_write)


def settle(path: Path) -> None:
    """Everything of a store into its one file, on the disk.

    Raises:
        StorageError: The disk refuses.
    """
    connection = connect(path)
    try:
        with translated(str(path)):
            sqlite_schema().ensure(connection, str(path))
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            connection.execute("PRAGMA journal_mode = DELETE").fetchall()
    finally:
        connection.close()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
