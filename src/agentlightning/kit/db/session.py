"""A connection inside a transaction, as operations see it. Knows nothing of threads or of who commits.

Statements are SQL text in the subset that SQLite and PostgreSQL share, plus three notations:

* `:name` is a parameter;
* `column IN (:*names)` takes a list of strings of any length as one parameter;
* `/*pg ... */` is text for PostgreSQL only, where several writers may be at work (row locks).

Queries put together at run time are SQLAlchemy Core expressions, with `one_of` and `contains` from `expressions`.
"""

from __future__ import annotations

import json
import re
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from operator import itemgetter
from typing import Any

from sqlalchemy.dialects.sqlite.base import SQLiteDialect
from sqlalchemy.sql import ClauseElement

from agentlightning.kit.errors import BadInputError

Row = tuple[Any, ...]
UNSENDABLE = (OverflowError, UnicodeEncodeError)
"""What drivers raise for values that no database can hold."""
Params = Mapping[str, Any]

_DIALECT = SQLiteDialect(paramstyle="named")
PARAMETER = re.compile(r"(?<![:\w]):(\w+)")
LIST_PARAMETER = re.compile(r"IN \(:\*(\w+)\)")


def refusal(error: Exception) -> Exception:
    """Our error for a value that cannot be sent to a database; any other error stays what it is."""
    if isinstance(error, UNSENDABLE):
        return BadInputError(
            f"A value does not fit the database: {error}.",
            hint="Numbers have at most 64 bits; text has no halves of characters (surrogates).",
        )
    return error


class Session(ABC):
    """Runs statements and collects what an operation wants announced once it is committed.

    Attributes:
        announcements: `(topic, key)` pairs, published after the commit and dropped by a rollback.
        records: Rows that `before_commit` writes, in the same transaction; dropped when the operation fails.
        memo: What operations have found out in this transaction and may use again; shared by all that run in it. Who
            changes what somebody notes here removes the note.
    """

    __slots__ = ("_deferred", "announcements", "memo", "records")

    def __init__(self, memo: dict[str, Any] | None = None) -> None:
        self._deferred: dict[str, dict[Any, Params]] | None = None
        self.announcements: list[tuple[str, str]] = []
        self.records: list[Params] = []
        self.memo: dict[str, Any] = {} if memo is None else memo

    @abstractmethod
    def all(self, sql: str, params: Params | None = None) -> list[Row]:
        """Every row of the result."""

    @abstractmethod
    def first(self, sql: str, params: Params | None = None) -> Row | None:
        """The first row, or `None`."""

    def run(self, sql: str, params: Params, *, once_per: str | None = None) -> None:
        """Execute. An error may show only later, but before the commit.

        Args:
            sql: The statement.
            params: Its parameters.
            once_per: A parameter: of executions put off (`deferring`), only the last one for each of its values is
                done.
        """
        if self._deferred is None:
            self.run_now(sql, params)
        else:
            rows = self._deferred.setdefault(sql, {})
            if once_per is None:
                rows[len(rows)] = params
            else:
                rows.pop((params[once_per],), None)
                rows[params[once_per],] = params

    @contextmanager
    def deferring(self) -> Generator[None]:
        """Put off what `run` gets inside the block: at its end each statement is executed once for all its rows.

        For statements that do not depend on each other's order; nothing that they change may be read in the block.
        """
        self._deferred = {}
        try:
            yield
            deferred = self._deferred
        finally:
            self._deferred = None
        for sql, rows in deferred.items():
            self.run_many(sql, rows.values())

    @abstractmethod
    def run_now(self, sql: str, params: Params) -> None:
        """Execute, deferring or not."""

    @abstractmethod
    def run_many(self, sql: str, rows: Iterable[Params]) -> None:
        """Execute once per row, as `run`."""

    @abstractmethod
    def lock(self, sql: str, params: Params | None = None) -> None:
        """Execute a `SELECT ... FOR UPDATE` where several may write at once; does nothing where one writes."""

    @abstractmethod
    def select(self, statement: ClauseElement) -> list[Row]:
        """Run a SQLAlchemy Core query; for queries whose shape is only known at run time."""

    def announce(self, topic: str, key: str = "") -> None:
        """Publish `(topic, key)` once the transaction is committed."""
        self.announcements.append((topic, key))

    def record(self, row: Params) -> None:
        """Collect a row; those of a whole transaction are written together, right before its commit."""
        self.records.append(row)


BeforeCommit = Callable[[Session, Sequence[Params]], None]
"""Writes what the operations of a transaction recorded; the last thing that happens in it. It may announce, too."""


@dataclass(frozen=True)
class _Statement:
    """A statement as SQLite gets it: parameters by position, which takes the driver half the time of names.

    Attributes:
        text: With `?` for each parameter.
        lists: Parameters that are lists; they are sent as JSON.
        values_of: Takes the values of a row in the order of `text`.
    """

    text: str
    lists: tuple[str, ...]
    values_of: Callable[[Any], Sequence[Any]]


@lru_cache(maxsize=1024)
def _for_sqlite(sql: str) -> _Statement:
    lists = tuple(LIST_PARAMETER.findall(sql))
    named = LIST_PARAMETER.sub(r"IN (SELECT value FROM json_each(:\1))", sql)
    names = PARAMETER.findall(named)
    return _Statement(PARAMETER.sub("?", named), lists, itemgetter(*names) if len(names) > 1 else partial(_few, names))


def _few(names: Sequence[str], row: Params) -> Sequence[Any]:
    return [row[name] for name in names]  # `itemgetter` gives no sequence for a single name


class SqliteSession(Session):
    """On an SQLite connection. Its one writer holds the whole database, so nothing needs a lock."""

    __slots__ = ("_connection",)

    def __init__(self, connection: sqlite3.Connection, memo: dict[str, Any] | None = None) -> None:
        super().__init__(memo)
        self._connection = connection

    def _execute(self, sql: str, params: Params | None) -> sqlite3.Cursor:
        statement = _for_sqlite(sql)
        if params is None:
            return self._connection.execute(statement.text)
        if statement.lists:
            params = {**params, **{name: json.dumps(params[name]) for name in statement.lists}}
        return self._connection.execute(statement.text, statement.values_of(params))

    def all(self, sql: str, params: Params | None = None) -> list[Row]:
        return self._execute(sql, params).fetchall()

    def first(self, sql: str, params: Params | None = None) -> Row | None:
        return self._execute(sql, params).fetchone()

    def run_now(self, sql: str, params: Params) -> None:
        self._execute(sql, params)

    def run_many(self, sql: str, rows: Iterable[Params]) -> None:
        statement = _for_sqlite(sql)
        self._connection.executemany(statement.text, map(statement.values_of, rows))

    def lock(self, sql: str, params: Params | None = None) -> None:
        pass

    def select(self, statement: ClauseElement) -> list[Row]:
        compiled = statement.compile(dialect=_DIALECT, compile_kwargs={"render_postcompile": True})
        return self._connection.execute(str(compiled), dict(compiled.params or {})).fetchall()
