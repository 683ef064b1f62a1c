"""The tool `database` itself: databases by the names that an operator gave them, never by addresses of a model's."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, Field

from agentlightning.kit.errors import NotFoundError
from agentlightning.tools.base import (
    Tool,
    ToolArguments,
    ToolContext,
    ToolDeniedError,
    ToolResult,
    ToolUnavailableError,
)
from agentlightning.tools.database import postgres, sqlite
from agentlightning.tools.database.rows import Rows, as_table
from agentlightning.tools.database.statements import checked
from agentlightning.tools.settings import DatabaseSettings, ToolSettings

_SCHEMES = ("sqlite", "postgresql", "postgres")


class DatabaseArguments(ToolArguments):
    action: Literal["list", "schema", "query"] = Field(
        default="query", description="list (the databases), schema (tables and columns), query"
    )
    database: str | None = Field(default=None, description="Its name; not needed if there is only one.")
    sql: str | None = Field(default=None, description="For query: one SELECT.")


class DatabaseTool(Tool):
    """Ask databases."""

    name = "database"
    Arguments = DatabaseArguments

    def __init__(self, settings: ToolSettings) -> None:
        self._databases = settings.databases
        names = ", ".join(
            f"{name} ({one.description})" if one.description else name for name, one in self._databases.items()
        )
        self.description = f"Query databases with SQL, read-only unless said otherwise. Databases: {names or 'none'}."
        if not self._databases:
            self.unavailable = (
                "no database is configured. Write [databases.NAME] with a url, or a url_env, into the tools' settings."
            )

    async def call(self, arguments: BaseModel, context: ToolContext) -> ToolResult:
        wanted = cast("DatabaseArguments", arguments)
        if wanted.action == "list":
            return self._list()
        name, settings = self._chosen(wanted.database)
        if wanted.action == "schema":
            return await self._schema(name, settings)
        return await self._query(name, settings, wanted.sql, context)

    def _list(self) -> ToolResult:
        data = [
            {"name": name, "description": one.description, "writable": one.writable}
            for name, one in self._databases.items()
        ]
        return ToolResult("\n".join(f"{one['name']}: {one['description'] or '-'}" for one in data), data)

    def _chosen(self, name: str | None) -> tuple[str, DatabaseSettings]:
        if name is None and len(self._databases) == 1:
            return next(iter(self._databases.items()))
        if name is None or name not in self._databases:
            raise NotFoundError(
                f"There is no database {name!r}.", hint=f"These are there: {', '.join(self._databases)}."
            )
        return name, self._databases[name]

    async def _schema(self, name: str, settings: DatabaseSettings) -> ToolResult:
        kind, where = _location(name, settings)
        if kind == "sqlite":
            found = await asyncio.to_thread(sqlite.schema, Path(where), settings)
        else:
            found = await postgres.schema(where, settings)
        lines = [f"{one['table']} ({', '.join(one['columns'])})" for one in found]
        return ToolResult("\n".join(lines) or "There are no tables.", found)

    async def _query(self, name: str, settings: DatabaseSettings, sql: str | None, context: ToolContext) -> ToolResult:
        if not sql or not sql.strip():
            raise ToolDeniedError("query needs sql.", hint="Look at the schema first.")
        kind, where = _location(name, settings)
        dialect = "sqlite" if kind == "sqlite" else "postgres"
        statement, writes = await asyncio.to_thread(
            checked, sql, dialect, writable=settings.writable, tables=settings.tables
        )
        found: Rows
        if kind == "sqlite":
            found = await asyncio.to_thread(sqlite.run, Path(where), statement, writes, settings)
        else:
            found = await postgres.run(where, statement, writes, settings)
        data: dict[str, Any] = {"columns": found.columns, "rows": found.rows, "more": found.more}
        return ToolResult(as_table(found), data | ({"changed": found.changed} if writes else {}))


def _location(name: str, settings: DatabaseSettings) -> tuple[str, str]:
    """Kind, and file or URL."""
    url = settings.url or os.environ.get(settings.url_env or "", "")
    if not url:
        raise ToolUnavailableError(f"The address of the database {name} is missing.", hint=f"Set {settings.url_env}.")
    kind, separator, rest = url.partition("://")
    if not separator or kind not in _SCHEMES:
        raise ToolUnavailableError(f"The address of the database {name} is neither sqlite:/// nor postgresql://.")
    return ("sqlite", rest.removeprefix("/")) if kind == "sqlite" else ("postgresql", url)
