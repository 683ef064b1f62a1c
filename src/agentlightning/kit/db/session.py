"""A connection inside a transaction, as operations see it. Knows nothing of threads or of who commits.

Statements are SQL text with `:named` parameters, in the subset that SQLite and PostgreSQL share, or SQLAlchemy Core
expressions where a query is put together at run time.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy.dialects.sqlite.base import SQLiteDialect
from sqlalchemy.sql import ClauseElement

Row = tuple[Any, ...]
Params = Mapping[str, Any]

_DIALECT = SQLiteDialect(paramstyle="named")


class Session:
    """Runs statements and collects what an operation wants announced once it is committed.

    Attributes:
        announcements: `(topic, key)` pairs, published after the commit and dropped by a rollback.
    """

    __slots__ = ("_connection", "announcements")

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.announcements: list[tuple[str, str]] = []

    def all(self, sql: str, params: Params | None = None) -> list[Row]:
        """Every row of the result."""
        return self._connection.execute(sql, params or {}).fetchall()

    def first(self, sql: str, params: Params | None = None) -> Row | None:
        """The first row, or `None`."""
        return self._connection.execute(sql, params or {}).fetchone()

    def run(self, sql: str, params: Params | None = None) -> int:
        """Execute and return the number of rows changed."""
        return self._connection.execute(sql, params or {}).rowcount

    def run_many(self, sql: str, rows: Iterable[Params]) -> int:
        """Execute once per row; returns the number of rows changed in all."""
        return self._connection.executemany(sql, rows).rowcount

    def select(self, statement: ClauseElement) -> list[Row]:
        """Run a SQLAlchemy Core query; for queries whose shape is only known at run time."""
        compiled = statement.compile(dialect=_DIALECT, compile_kwargs={"render_postcompile": True})
        return self._connection.execute(str(compiled), dict(compiled.params or {})).fetchall()

    def announce(self, topic: str, key: str = "") -> None:
        """Publish `(topic, key)` to this process once the transaction is committed."""
        self.announcements.append((topic, key))
