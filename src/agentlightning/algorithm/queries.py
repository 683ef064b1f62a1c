"""Runs a query that a model wrote on a small database in memory: reading only, bounded in time, rows and size."""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from typing import Any

TIMEOUT_S = 2.0
MAX_ROWS = 10_000
_MAX_VALUE_BYTES = 2**20
_READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}

Row = tuple[Any, ...]


class QueryError(Exception):
    """The query does not run."""


def rows_of(setup: str, query: str) -> list[Row]:
    """All rows of the query.

    Args:
        setup: Statements that make the database.
        query: One query.

    Raises:
        QueryError: The query fails, writes, or asks for too much.
    """
    with closing(sqlite3.connect(":memory:")) as connection:
        try:
            connection.executescript(setup)
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_VALUE_BYTES)
            connection.set_authorizer(_allow)
            deadline = time.monotonic() + TIMEOUT_S
            connection.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
            return connection.execute(query).fetchmany(MAX_ROWS)
        except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
            raise QueryError(f"the query fails: {error}") from error


def _allow(action: int, *_: str | None) -> int:
    """SQLite asks this before each action of a query."""
    return sqlite3.SQLITE_OK if action in _READING else sqlite3.SQLITE_DENY


def same_rows(expected: Sequence[Sequence[Any]], found: Sequence[Sequence[Any]], *, ordered: bool) -> bool:
    """Whether both hold the same rows; numbers may differ in the sixth digit."""
    if len(expected) != len(found):
        return False
    left, right = [tuple(row) for row in expected], [tuple(row) for row in found]
    if not ordered:
        left, right = sorted(left, key=_sort_key), sorted(right, key=_sort_key)
    return all(len(a) == len(b) and all(map(_same_cell, a, b)) for a, b in zip(left, right, strict=True))


def _same_cell(a: Any, b: Any) -> bool:
    if isinstance(a, int | float) and isinstance(b, int | float):
        return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9)
    return a == b


def _sort_key(row: Row) -> list[tuple[str, Any]]:
    return [("number", round(c, 4)) if isinstance(c, int | float) else (type(c).__name__, str(c)) for c in row]
