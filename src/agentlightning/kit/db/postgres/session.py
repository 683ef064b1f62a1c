"""`Session` on PostgreSQL. Knows nothing of threads or of who commits."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, LiteralString, cast

import psycopg
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.sql import ClauseElement

from agentlightning.kit.db.postgres.batches import batch_of
from agentlightning.kit.db.postgres.connection import Connection
from agentlightning.kit.db.session import LIST_PARAMETER, PARAMETER, Params, Row, Session

_DIALECT = PGDialect_psycopg()
_ONLY_HERE = re.compile(r"/\*pg (.*?)\*/", re.DOTALL)


@lru_cache(maxsize=1024)
def _translated(sql: str) -> LiteralString:
    text = _ONLY_HERE.sub(r"\1", sql.replace("%", "%%"))
    text = LIST_PARAMETER.sub(r"= ANY (%(\1)s)", text)
    return cast(LiteralString, PARAMETER.sub(r"%(\1)s", text))


_MOST_ROWS = 256
"""In one statement: a few megabytes at most."""


class PostgresSession(Session):
    """On a connection inside a transaction, in a pipeline: statements whose result nobody reads do not wait.

    Attributes:
        wrote: Whether anything may have changed.
    """

    __slots__ = ("_connection", "wrote")

    def __init__(self, connection: Connection, memo: dict[str, Any] | None = None) -> None:
        super().__init__(memo)
        self._connection = connection
        self.wrote = False

    def _execute(self, sql: str, params: Params | None) -> psycopg.Cursor[Row]:
        if not sql.startswith("SELECT"):
            self.wrote = True
        return self._connection.execute(_translated(sql), params or {}, binary=True)

    def all(self, sql: str, params: Params | None = None) -> list[Row]:
        return self._execute(sql, params).fetchall()

    def first(self, sql: str, params: Params | None = None) -> Row | None:
        return self._execute(sql, params).fetchone()

    def run_now(self, sql: str, params: Params) -> None:
        self._execute(sql, params)

    def run_many(self, sql: str, rows: Iterable[Params]) -> None:
        self.wrote = True
        waiting = list(rows)
        batch = batch_of(sql) if len(waiting) > 1 else None
        if batch is None or not batch.fits(waiting):
            self._connection.cursor().executemany(_translated(sql), waiting)
            return
        text = batch.text(self._connection)
        for start in range(0, len(waiting), _MOST_ROWS):
            chunk = waiting[start : start + _MOST_ROWS]
            self._connection.execute(text, {name: [row[name] for row in chunk] for name in batch.names})

    def lock(self, sql: str, params: Params | None = None) -> None:
        self._connection.execute(_translated(sql), params or {})

    def select(self, statement: ClauseElement) -> list[Row]:
        compiled = statement.compile(dialect=_DIALECT, compile_kwargs={"render_postcompile": True})
        query = cast(LiteralString, str(compiled))
        return self._connection.execute(query, dict(compiled.params or {}), binary=True).fetchall()
