"""Reads by key that every request needs: one short query, compiled once, without a transaction around it.

On SQLite it runs on a connection of its own in the event loop: some 20 microseconds, where the detour over the driver's
thread costs more than a millisecond. Readers of a write-ahead log do not wait for writers.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import orjson
from sqlalchemy import JSON
from sqlalchemy.dialects import sqlite

from agentlightning.platform.columns import Moment
from agentlightning.platform.database import Database, DatabaseError

_ANSWER_S = 5.0
_DIALECT = sqlite.dialect(paramstyle="named")


class Lookup:
    """A query of few rows.

    Args:
        query: A `Select` whose values are constants or bound by name.
    """

    def __init__(self, query: Any) -> None:
        self.query = query
        compiled = query.compile(dialect=_DIALECT)
        self.sqlite = str(compiled)
        self.constants = {name: value for name, value in compiled.params.items() if value is not None}
        kinds = [column.type.dialect_impl(_DIALECT) for column in query.selected_columns]
        found = [_converter(kind) for kind in kinds]
        self._converters = [(place, converter) for place, converter in enumerate(found) if converter is not None]

    def typed(self, row: tuple[Any, ...]) -> tuple[Any, ...]:
        """SQLite's row as the columns' types say: documents, times and truth values are more than text and numbers."""
        values = list(row)
        for place, converter in self._converters:
            values[place] = converter(values[place])
        return tuple(values)


def _converter(kind: Any) -> Callable[[Any], Any] | None:
    if isinstance(kind, JSON):
        return _document
    if isinstance(kind, Moment):
        return _moment
    return kind.result_processor(_DIALECT, None)


def _document(value: str | None) -> Any:
    return None if value is None else orjson.loads(value)


def _moment(value: str | None) -> datetime | None:
    return None if value is None else datetime.fromisoformat(value).replace(tzinfo=UTC)


class Lookups:
    """Runs them on a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def rows(self, lookup: Lookup, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """All rows, with the columns' types; they are as new as the last commit.

        Raises:
            DatabaseError: The SQLite file cannot be read, or PostgreSQL is silent.
            sqlalchemy.exc.OperationalError: PostgreSQL does not answer.
        """
        if self._database.file is not None:
            return [lookup.typed(row) for row in self._read(lookup, values)]
        return await self._asked(lookup, values)

    async def first(self, lookup: Lookup, values: Mapping[str, Any]) -> tuple[Any, ...] | None:
        """The first row, if there is one; on SQLite as the file keeps it, without the columns' types.

        Raises:
            DatabaseError: The SQLite file cannot be read, or PostgreSQL is silent.
            sqlalchemy.exc.OperationalError: PostgreSQL does not answer.
        """
        is_file = self._database.file is not None
        rows = self._read(lookup, values) if is_file else await self._asked(lookup, values)
        return rows[0] if rows else None

    async def _asked(self, lookup: Lookup, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        # Not `asyncio.timeout`: the driver waits for the server's word when it is cancelled.
        asking = asyncio.ensure_future(self._database.ask(lookup.query, values))
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

    def _read(self, lookup: Lookup, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        given = {**lookup.constants, **values} if lookup.constants else values
        try:
            # All of them: a statement that is not finished would go on seeing the state of now.
            return self._database.direct().execute(lookup.sqlite, given).fetchall()
        except sqlite3.Error as error:
            self._database.close_direct()
            raise DatabaseError("The database cannot be read.", hint="Try again; see /api/v2/health.") from error
