"""Creating the tables of a PostgreSQL schema, and telling whether they are there. Knows none of the tables."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, LiteralString, cast

import psycopg
from psycopg import sql

from agentlightning.kit.db.postgres.connection import Address, Connection, connect, translate
from agentlightning.kit.errors import NotFoundError, StorageError

VERSION_TABLE = "alembic_version"

_LOCK = 0x41474C31  # advisory; one creator at a time


class PostgresSchema:
    """The tables and their version.

    Args:
        statements: DDL, in order; without the version table.
        known: Every revision, oldest first; the last one is theirs.
        migrate_hint: Next step for whoever meets an older one.
    """

    def __init__(self, statements: Sequence[str], *, known: Sequence[str], migrate_hint: str) -> None:
        self.statements = tuple(statements)
        self.known = tuple(known)
        self.migrate_hint = migrate_hint

    @property
    def version(self) -> str:
        """The newest revision."""
        return self.known[-1]

    def ensure(self, address: Address) -> None:
        """Create the tables in an empty schema, or check the version of existing ones.

        Raises:
            StorageError: It is older or newer than this program, or belongs to another one.
        """
        with _connected(address) as connection:
            if self._is_current(connection, address):
                return
            with connection.transaction():
                self.lock(connection)
                if not self._is_current(connection, address):  # another process may have been quicker
                    self._create(connection, address)

    def check(self, address: Address) -> None:
        """Check that the tables are there and current.

        Raises:
            StorageError: It is older or newer than this program, or belongs to another one.
            NotFoundError: There are none.
        """
        with _connected(address) as connection:
            if not self._is_current(connection, address):
                raise NotFoundError(f"There is no store at {address}.", hint="Check the schema's name: ?schema=NAME")

    def version_of(self, address: Address) -> str | None:
        """Revision of the tables; `None` when there are none.

        Raises:
            StorageError: It is newer than this program, or belongs to another one.
        """
        with _connected(address) as connection:
            found = self._version(connection, address)
        if found is not None and found not in self.known:
            raise self._other_version(address, found)
        return found

    def lock(self, connection: Any) -> None:
        """Keep other creators and migrations out until the transaction ends."""
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))

    def _create(self, connection: Connection, address: Address) -> None:
        name = sql.Identifier(address.schema)
        if connection.execute("SELECT to_regnamespace(%s)", (address.schema,)).fetchone() == (None,):
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(name))
        for statement in self.statements:
            connection.execute(cast(LiteralString, statement))
        connection.execute(f"CREATE TABLE {VERSION_TABLE} (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
        connection.execute(f"INSERT INTO {VERSION_TABLE} VALUES (%s)", (self.version,))

    def _is_current(self, connection: Connection, address: Address) -> bool:
        found = self._version(connection, address)
        if found is not None and found != self.version:
            raise self._other_version(address, found)
        return found is not None

    def _other_version(self, address: Address, found: str) -> StorageError:
        return StorageError(
            f"{address} has schema version {found}; this version of agentlightning reads version {self.version}.",
            hint=self.migrate_hint if found in self.known else "Upgrade agentlightning, or use another schema.",
            details={"database_version": found, "supported_version": self.version},
        )

    @staticmethod
    def _version(connection: Connection, address: Address) -> str | None:
        rows = connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace(%s) AND relkind IN ('r', 'p', 'v')",
            (address.schema,),
        ).fetchall()
        tables = {row[0] for row in rows}
        if not tables:
            return None
        if VERSION_TABLE not in tables:
            raise StorageError(
                f"The schema {address.schema} of {address} holds another program's tables.",
                hint="Give another one at the end of the URL: ?schema=NAME",
            )
        row = connection.execute(f"SELECT version_num FROM {VERSION_TABLE}").fetchone()
        return row[0] if row else "unknown"


@contextmanager
def _connected(address: Address) -> Generator[Connection]:
    connection = connect(address)
    try:
        yield connection
    except psycopg.Error as error:
        raise translate(error, address) or error from error
    finally:
        connection.close()
