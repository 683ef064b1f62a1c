"""The conversation that the embedded model knows: a question, the tables, one tool that runs a query. Reads only.

Without a database of the user's it asks the sample one, which is made of public data on first use.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

from pydantic import BaseModel

from agentlightning.nano import chat
from agentlightning.nano.databases import build_database
from agentlightning.tools.base import Tool, ToolArguments, ToolContext, ToolError, ToolResult

SAMPLE_SEED = 1
_QUERY_S = 2.0
_MAX_ROWS = 200
_READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}


class _Query(ToolArguments):
    query: str
    """A SQLite SELECT statement."""


class SampleDatabase(Tool):
    """The sample database under the name and in the words that the embedded model was trained on."""

    name = chat.TOOL_NAME
    description = "Run one read-only SQL query and see its first rows."
    Arguments: ClassVar[type[BaseModel]] = _Query

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[list[Any]] | None = None
        """Of the last query that ran."""
        self.query = ""

    async def instructions(self) -> str:
        """The system prompt with the tables; makes the database if it is not there."""

        def read() -> str:
            build_database(SAMPLE_SEED, self.path.parent)
            with closing(_connect(self.path)) as connection:
                return chat.INSTRUCTIONS + chat.read_schema(connection)

        return await asyncio.to_thread(read)

    async def hint(self) -> str:
        """What can be asked about."""
        tables = (await self.instructions()).removeprefix(chat.INSTRUCTIONS).replace("\n", ", ")
        return f"Ask about these tables of the sample database, in few words: {tables}. Or configure a larger model."

    async def call(self, arguments: BaseModel, context: ToolContext) -> ToolResult:
        assert isinstance(arguments, _Query)
        try:
            rows = await asyncio.to_thread(read_rows, self.path, arguments.query)
        except sqlite3.Error as error:
            raise ToolError(str(error)[: chat.SHOWN_ERROR_CHARS]) from error
        self.query, self.rows = arguments.query, [list(row) for row in rows]
        return ToolResult(chat.show_rows(rows), self.rows)

    def parameters(self) -> dict[str, Any]:
        description = "A SQLite SELECT statement."
        properties = {"query": {"type": "string", "description": description}}
        return {"type": "object", "properties": properties, "required": ["query"]}

    def said(self) -> str:
        """The rows as an answer; the model itself only says that it is done."""
        if self.rows is None:
            return ""
        return "\n".join(" | ".join(map(str, row)) for row in self.rows) or "no rows"


def sample_path(home: Path) -> Path:
    """Where the sample database is."""
    return home / "sample" / f"db-{SAMPLE_SEED}.sqlite"


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True)


def read_rows(path: Path, query: str) -> list[tuple[Any, ...]]:
    """The first rows of a query that only reads.

    Raises:
        sqlite3.Error: It fails, writes, or takes too long.
    """
    deadline = time.monotonic() + _QUERY_S

    def allow(action: int, *_: str | None) -> int:
        return sqlite3.SQLITE_OK if action in _READING else sqlite3.SQLITE_DENY

    with closing(_connect(path)) as connection:
        connection.set_authorizer(allow)
        connection.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
        return connection.execute(query).fetchmany(_MAX_ROWS)
