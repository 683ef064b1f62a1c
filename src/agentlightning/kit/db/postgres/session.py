"""`Session` on PostgreSQL. Knows nothing of threads or of who commits."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, LiteralString, cast

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


@lru_cache(maxsize=1024)
def _for_rows(sql: str, count: int) -> LiteralString:
    """`INSERT ... VALUES (...) ...` for several rows in one statement; the server's work is mostly per statement."""
    text = _translated(sql)
    start = text.index("VALUES (") + len("VALUES ")
    end, depth = start, 0
    while end == start or depth:
        depth += {"(": 1, ")": -1}.get(text[end], 0)
        end += 1
    head, row, tail = text[:start], text[start:end], text[end:]
    rows = (re.sub(r"%\((\w+)\)s", rf"%(\1_{i})s", row) for i in range(count))
    return cast(LiteralString, f"{head}{', '.join(rows)}{tail}")


_MOST_PARAMETERS = 50  # psycopg converts longer statements anew each time


def _chunk(count: int, width: int) -> int:
    """Rows for one statement: a power of two, so that few different statements have to be prepared."""
    most = max(1, min(count, _MOST_PARAMETERS // max(1, width)))
    return 1 << (most.bit_length() - 1)


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
        if not sql.startswith("INSERT") or "DO UPDATE" in sql:  # one statement must not update a row twice
            self._connection.cursor().executemany(_translated(sql), waiting)
            return
        while waiting:
            size = _chunk(len(waiting), len(waiting[0]))
            chunk, waiting = waiting[:size], waiting[size:]
            params = {f"{key}_{i}": value for i, row in enumerate(chunk) for key, value in row.items()}
            self._connection.execute(_for_rows(sql, size), params)

    def lock(self, sql: str, params: Params | None = None) -> None:
        self._connection.execute(_translated(sql), params or {})

    def select(self, statement: ClauseElement) -> list[Row]:
        compiled = statement.compile(dialect=_DIALECT, compile_kwargs={"render_postcompile": True})
        query = cast(LiteralString, str(compiled))
        return self._connection.execute(query, dict(compiled.params or {}), binary=True).fetchall()
