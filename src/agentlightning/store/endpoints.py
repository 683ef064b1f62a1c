"""A database as a source or target of whole tables: read in order, write in bulk. Knows no operations.

Each is one transaction: what is read is one moment, what is written is all or nothing.
"""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, LiteralString, cast

from sqlalchemy import Table

from agentlightning.kit.db import Row
from agentlightning.kit.db.sqlite import connect, prepare_folder, translated
from agentlightning.kit.errors import BadInputError, NotFoundError, StorageError
from agentlightning.store.databases import Location, postgres_schema
from agentlightning.store.tables import metadata, sqlite_schema

if TYPE_CHECKING:
    import psycopg

BATCH = 1000
TABLE_NAMES = ", ".join(table.name for table in metadata.sorted_tables)


class Endpoint(ABC):
    """An open database."""

    name: str

    @abstractmethod
    def query(self, sql: LiteralString) -> list[Row]:
        """Rows of a statement without parameters, in the SQL that both databases share."""

    @abstractmethod
    def read(self, table: Table) -> Iterator[list[Row]]:
        """All rows, a batch at a time, in the order of `no`."""

    @abstractmethod
    def write(self, table: Table, rows: Sequence[Row]) -> None:
        """Add rows with their `no`."""

    @abstractmethod
    def commit(self) -> None:
        """Keep what was written."""

    @abstractmethod
    def close(self) -> None:
        """Let go; what was not committed is forgotten."""

    def count(self, table: Table) -> int:
        """Number of rows."""
        return self.query(cast(LiteralString, f"SELECT count(*) FROM {table.name}"))[0][0]


class SqliteEndpoint(Endpoint):
    """A file."""

    def __init__(self, path: Path, *, to_write: bool) -> None:
        self.name = str(path)
        schema = sqlite_schema()
        if to_write:
            prepare_folder(path)
        elif not path.exists():
            raise NotFoundError(f"There is no store at {path}.", hint="Check the path.")
        self._connection = connect(path, read_only=not to_write)
        try:
            if to_write:
                schema.ensure(self._connection, self.name)
            elif (found := schema.version_of(self._connection, self.name)) != schema.version:
                raise StorageError(
                    f"{path} has schema version {found or 'none'}; copying needs version {schema.version}.",
                    hint=f"Run: agl store migrate {path}" if found else "It holds no store; give another file.",
                )
            self._connection.execute("BEGIN IMMEDIATE" if to_write else "BEGIN")
        except BaseException:
            self._connection.close()
            raise

    def query(self, sql: LiteralString) -> list[Row]:
        with translated(self.name):
            return self._connection.execute(sql).fetchall()

    def read(self, table: Table) -> Iterator[list[Row]]:
        names = ", ".join(column.name for column in table.columns)
        with translated(self.name):
            cursor = self._connection.execute(f"SELECT {names} FROM {table.name} ORDER BY no")
            while rows := cursor.fetchmany(BATCH):
                yield rows

    def write(self, table: Table, rows: Sequence[Row]) -> None:
        marks = ", ".join("?" for _ in table.columns)
        names = ", ".join(column.name for column in table.columns)
        with translated(self.name):
            self._connection.executemany(f"INSERT INTO {table.name} ({names}) VALUES ({marks})", rows)

    def commit(self) -> None:
        with translated(self.name):
            self._connection.execute("COMMIT")

    def close(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        self._connection.close()

    @property
    def connection(self) -> sqlite3.Connection:
        """For what only SQLite can do."""
        return self._connection


class PostgresEndpoint(Endpoint):
    """A schema of a server's database."""

    def __init__(self, url: str, *, to_write: bool) -> None:
        from agentlightning.kit.db.postgres import Address
        from agentlightning.kit.db.postgres import connection as postgres

        self._translate = postgres.translate
        self.address = Address.parse(url)
        self.name = str(self.address)
        if to_write:
            postgres_schema().ensure(self.address)
        else:
            postgres_schema().check(self.address)
        self._connection: psycopg.Connection[Row] = postgres.connect(self.address, read_only=not to_write)
        self._connection.execute("SET idle_in_transaction_session_timeout = 0")
        self._connection.execute(
            "BEGIN" if to_write else "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        )
        if to_write:  # nobody else changes anything meanwhile; readers go on
            self._connection.execute(cast(LiteralString, f"LOCK TABLE {TABLE_NAMES} IN EXCLUSIVE MODE"))

    def query(self, sql: LiteralString) -> list[Row]:
        return self._connection.execute(sql).fetchall()

    def read(self, table: Table) -> Iterator[list[Row]]:
        from psycopg import sql

        names = sql.SQL(", ").join(sql.Identifier(column.name) for column in table.columns)
        with self._connection.cursor(name="agl_read") as cursor:
            cursor.execute(sql.SQL("SELECT {} FROM {} ORDER BY no").format(names, sql.Identifier(table.name)))
            while rows := cursor.fetchmany(BATCH):
                yield rows

    def write(self, table: Table, rows: Sequence[Row]) -> None:
        import psycopg
        from psycopg import sql

        names = sql.SQL(", ").join(sql.Identifier(column.name) for column in table.columns)
        statement = sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(table.name), names)
        try:
            with self._connection.cursor() as cursor, cursor.copy(statement) as copy:
                for row in rows:
                    copy.write_row(row)
        except psycopg.Error as error:
            raise self._translate(error, self.address) or error from error

    def commit(self) -> None:
        for table in metadata.sorted_tables:  # go on numbering after the last
            self._connection.execute(
                cast(
                    LiteralString,
                    f"""SELECT setval(pg_get_serial_sequence('{table.name}', 'no'), coalesce(max(no), 0) + 1, false)
                    FROM {table.name}""",
                )
            )
        self._connection.execute("COMMIT")

    def close(self) -> None:
        self._connection.close()

    @property
    def connection(self) -> Any:
        """For what only PostgreSQL can do."""
        return self._connection


def open_endpoint(location: Location, *, to_write: bool = False) -> Endpoint:
    """Open for reading, or for writing, which creates what is missing.

    Raises:
        NotFoundError: Nothing is there to read.
        StorageError: It cannot be used, or is of another version.
    """
    if location is None:
        raise BadInputError("A store in memory belongs to its process.", hint="Give a file or a postgresql:// URL.")
    if isinstance(location, str):
        return PostgresEndpoint(location, to_write=to_write)
    return SqliteEndpoint(location, to_write=to_write)
