"""`Session` on PostgreSQL. Knows nothing of threads or of who commits."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import LiteralString, cast

import psycopg
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.sql import ClauseElement

from agentlightning.kit.db.postgres.connection import Connection
from agentlightning.kit.db.session import LIST_PARAMETER, Params, Row, Session

_DIALECT = PGDialect_psycopg()
_PARAMETER = re.compile(r"(?<![:\w]):(\w+)")
_ONLY_HERE = re.compile(r"/\*pg (.*?)\*/", re.DOTALL)


@lru_cache(maxsize=1024)
def _translated(sql: str) -> LiteralString:
    text = _ONLY_HERE.sub(r"\1", sql.replace("%", "%%"))
    text = LIST_PARAMETER.sub(r"= ANY (%(\1)s)", text)
    return cast(LiteralString, _PARAMETER.sub(r"%(\1)s", text))


class PostgresSession(Session):
    """On a connection inside a transaction, in a pipeline: statements whose result nobody reads do not wait.

    Attributes:
        wrote: Whether anything may have changed.
    """

    __slots__ = ("_connection", "wrote")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.announcements = []
        self.wrote = False

    def _execute(self, sql: str, params: Params | None) -> psycopg.Cursor[Row]:
        if not sql.startswith("SELECT"):
            self.wrote = True
        return self._connection.execute(_translated(sql), params or {}, binary=True)

    def all(self, sql: str, params: Params | None = None) -> list[Row]:
        return self._execute(sql, params).fetchall()

    def first(self, sql: str, params: Params | None = None) -> Row | None:
        return self._execute(sql, params).fetchone()

    def run(self, sql: str, params: Params | None = None) -> None:
        self._execute(sql, params)

    def run_many(self, sql: str, rows: Iterable[Params]) -> None:
        self.wrote = True
        text = _translated(sql)
        for row in rows:
            self._connection.execute(text, row)

    def lock(self, sql: str, params: Params | None = None) -> None:
        self._connection.execute(_translated(sql), params or {})

    def select(self, statement: ClauseElement) -> list[Row]:
        compiled = statement.compile(dialect=_DIALECT, compile_kwargs={"render_postcompile": True})
        query = cast(LiteralString, str(compiled))
        return self._connection.execute(query, dict(compiled.params or {}), binary=True).fetchall()
