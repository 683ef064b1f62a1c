"""Reads by key that every request needs: one short query, compiled once, without a transaction around it.

On SQLite it runs on a connection of its own in the event loop: some 20 microseconds, where the detour over the driver's
thread costs more than a millisecond. Readers of a write-ahead log do not wait for writers.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Mapping
from typing import Any

from sqlalchemy.dialects import sqlite

from agentlightning.platform.database import Database, DatabaseError

_ANSWER_S = 5.0
_BUSY_S = 0.25  # as long as the event loop may be held up while somebody recovers the log
_DIALECT = sqlite.dialect(paramstyle="named")


class Lookup:
    """A query of at most one row.

    Args:
        query: A `Select` whose values are all bound by name. Columns come as the database keeps them.
    """

    def __init__(self, query: Any) -> None:
        self.query = query
        self.sqlite = str(query.compile(dialect=_DIALECT))


class Lookups:
    """Runs them on a database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._direct: sqlite3.Connection | None = None

    async def first(self, lookup: Lookup, values: Mapping[str, Any]) -> tuple[Any, ...] | None:
        """The row, if there is one; it is as new as the last commit.

        Raises:
            DatabaseError: The SQLite file cannot be read, or PostgreSQL is silent.
            sqlalchemy.exc.OperationalError: PostgreSQL does not answer.
        """
        if self._database.file is not None:
            return self._read(lookup.sqlite, values)
        # Not `asyncio.timeout`: the driver waits for the server's word when it is cancelled.
        asking = asyncio.ensure_future(self._ask(lookup, values))
        try:
            done, _ = await asyncio.wait({asking}, timeout=_ANSWER_S)
        except asyncio.CancelledError:
            asking.cancel()
            raise
        if done:
            return asking.result()
        asking.cancel()
        self._database.outage.begin("TimeoutError")
        raise DatabaseError("The database does not answer.", hint="Try again in a moment; see /api/v2/health.")

    async def _ask(self, lookup: Lookup, values: Mapping[str, Any]) -> tuple[Any, ...] | None:
        with self._database.watched():
            async with self._database.engine.connect() as connection:
                row = (await connection.execute(lookup.query, dict(values))).first()
        return None if row is None else tuple(row)

    def close(self) -> None:
        """Close the connection."""
        if self._direct is not None:
            self._direct.close()
            self._direct = None

    def _read(self, statement: str, values: Mapping[str, Any]) -> tuple[Any, ...] | None:
        try:
            if self._direct is None:
                self._direct = self._connect()
            # All of them: a statement that is not finished would go on seeing the state of now.
            rows = self._direct.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            self.close()
            raise DatabaseError("The database cannot be read.", hint="Try again; see /api/v2/health.") from error
        return rows[0] if rows else None

    def _connect(self) -> sqlite3.Connection:
        uri = f"{self._database.file.as_uri()}?mode=rw" if self._database.file is not None else ""
        connection = sqlite3.connect(uri, uri=True, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA query_only=ON")
        return connection
