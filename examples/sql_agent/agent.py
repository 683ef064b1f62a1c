"""Answers a question about a SQLite database by letting a chat model write the SQL.

Works with any OpenAI-compatible server: set OPENAI_BASE_URL, OPENAI_API_KEY and OPENAI_MODEL.

    python agent.py --database shop.sqlite "How many orders are there?"
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sqlite3
import time
import weakref
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from openai import AsyncOpenAI

INSTRUCTIONS = (
    "You answer questions about a SQLite database. Call the sql tool with one SELECT query; "
    "if it fails, correct it. When its rows answer the question, say so briefly.\nTables:\n"
)
SQL_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "sql",
        "description": "Run one read-only SQL query and see its first rows.",
        "parameters": {
            "type": "object",
            "properties": {"query": {"type": "string", "description": "A SQLite SELECT statement."}},
            "required": ["query"],
        },
    },
}
MAX_TURNS = 3
MAX_ROWS = 1000
QUERY_TIMEOUT_S = 2.0
SHOWN_ROWS = 2
SHOWN_CELL_CHARS = 16
SHOWN_ERROR_CHARS = 40

READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}

Row = tuple[Any, ...]


@dataclass
class Answer:
    """What the agent found: its last words, and the last query that ran with all its rows."""

    text: str = ""
    sql: str | None = None
    rows: list[Row] | None = None
    error: str | None = None
    queries: list[str] = field(default_factory=list[str])


async def answer(question: str, database: str, model: str | None = None, client: AsyncOpenAI | None = None) -> Answer:
    """Lets the model query the database, at most `MAX_TURNS` times, until it stops asking for queries."""
    client = client or shared_client()
    model = model or os.environ.get("OPENAI_MODEL", "default")
    messages: list[Any] = first_messages(question, database)
    found = Answer()
    for _ in range(MAX_TURNS):
        completion = await client.chat.completions.create(model=model, messages=messages, tools=[SQL_TOOL])
        message = completion.choices[0].message
        found.text = message.content or ""
        if not message.tool_calls:
            break
        messages.append(message.model_dump(include={"role", "content", "tool_calls"}, exclude_none=True))
        for call in message.tool_calls:
            result = await asyncio.to_thread(run_call, call.function.arguments, database, found)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    return found


def first_messages(question: str, database: str) -> list[dict[str, str]]:
    """The conversation before the model has said anything."""
    return [
        {"role": "system", "content": INSTRUCTIONS + read_schema(database)},
        {"role": "user", "content": question},
    ]


def read_schema(database: str) -> str:
    """One line per table, such as `cars(model, origin, mpg)`."""
    with closing(connect(database)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY rowid").fetchall()
        lines: list[str] = []
        for (table,) in tables:
            columns = connection.execute("SELECT name FROM pragma_table_info(?)", (table,)).fetchall()
            lines.append(f"{table}({', '.join(name for (name,) in columns)})")
    return "\n".join(lines)


def run_call(arguments: str, database: str, found: Answer) -> str:
    """Runs the query of one tool call, notes it in `found`, and says what the model shall see of it."""
    try:
        query = json.loads(arguments)["query"]
        if not isinstance(query, str):
            raise TypeError("query must be a string")
    except (ValueError, KeyError, TypeError) as error:
        found.error = f"bad arguments: {error}"
        return "error: call sql with one string, query"
    found.queries.append(query)
    try:
        rows = run_query(query, database)
    except sqlite3.Error as error:
        found.error = str(error)
        return f"error: {str(error)[:SHOWN_ERROR_CHARS]}"
    found.sql, found.rows, found.error = query, rows, None
    return show_rows(rows)


def run_query(query: str, database: str) -> list[Row]:
    """All rows of one query (at most `MAX_ROWS`), stopped after `QUERY_TIMEOUT_S`."""
    deadline = time.monotonic() + QUERY_TIMEOUT_S
    with closing(connect(database)) as connection:
        connection.set_authorizer(allow_reading)  # a read-only file does not stop ATTACH from creating another
        connection.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
        return connection.execute(query).fetchmany(MAX_ROWS)


def show_rows(rows: list[Row]) -> str:
    """A short view of the rows: `1 row: 42`, `31 rows: Fiat 128; Honda Civic; ...`."""
    if not rows:
        return "0 rows"
    shown = "; ".join(" | ".join(show_cell(cell) for cell in row) for row in rows[:SHOWN_ROWS])
    return f"{len(rows)} row{'' if len(rows) == 1 else 's'}: {shown}" + ("; ..." if len(rows) > SHOWN_ROWS else "")


def show_cell(cell: object) -> str:
    """One value, short: floats with two decimals at most, long text cut."""
    return (f"{cell:.6g}" if isinstance(cell, float) else str(cell))[:SHOWN_CELL_CHARS]


def allow_reading(action: int, *_: str | None) -> int:
    """SQLite asks this before each action of a query."""
    return sqlite3.SQLITE_OK if action in READING else sqlite3.SQLITE_DENY


def connect(database: str) -> sqlite3.Connection:
    """A connection that cannot write."""
    return sqlite3.connect(f"file:{quote(str(Path(database).absolute()))}?mode=ro", uri=True)


_clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncOpenAI] = weakref.WeakKeyDictionary()


def shared_client() -> AsyncOpenAI:
    """One client per event loop: making one costs far more than a short request."""
    loop = asyncio.get_running_loop()
    if loop not in _clients:
        _clients[loop] = AsyncOpenAI()
    return _clients[loop]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Ask a question about a SQLite database.")
    parser.add_argument("question")
    parser.add_argument("--database", required=True)
    parser.add_argument("--model", help="default: $OPENAI_MODEL")
    options = parser.parse_args()
    if not Path(options.database).is_file():
        parser.error(f"no such database: {options.database}")
    found = asyncio.run(answer(options.question, options.database, options.model))
    print(f"{found.sql or 'no query ran'}")
    for row in found.rows or []:
        print(" | ".join(str(cell) for cell in row))
    print(found.error or found.text)


if __name__ == "__main__":
    main()
