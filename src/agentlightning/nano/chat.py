"""The messages of the SQL agent as `examples/sql_agent/agent.py` sends them, for pre-training.

The agent knows nothing of this package, so its words are repeated here; a test holds the two equal, byte for
byte. Knows nothing of tokens or models.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

INSTRUCTIONS = (
    "You answer questions about a SQLite database. Call the sql tool with one SELECT query; "
    "if it fails, correct it. When its rows answer the question, say so briefly.\nTables:\n"
)
TOOL_NAME = "sql"
FINAL_TEXT = "done"
MAX_TURNS = 3
SHOWN_ROWS = 2
SHOWN_CELL_CHARS = 16
SHOWN_ERROR_CHARS = 40

Message = dict[str, Any]


def first_messages(question: str, schema: str) -> list[Message]:
    """System and user message."""
    return [{"role": "system", "content": INSTRUCTIONS + schema}, {"role": "user", "content": question}]


def call_message(query: str, call_id: str = "call_0") -> Message:
    """The assistant asking for a query, with its arguments as a dict (what a chat template expects)."""
    function = {"name": TOOL_NAME, "arguments": {"query": query}}
    return {"role": "assistant", "tool_calls": [{"id": call_id, "type": "function", "function": function}]}


def run_query(query: str, connection: sqlite3.Connection) -> tuple[str, list[tuple[Any, ...]] | None]:
    """What the agent shows the model of a query's result, and the rows (None: it failed)."""
    try:
        rows = connection.execute(query).fetchall()
    except sqlite3.Error as error:
        return f"error: {str(error)[:SHOWN_ERROR_CHARS]}", None
    return show_rows(rows), rows


def show_rows(rows: Sequence[Sequence[object]]) -> str:
    """The first rows in one line."""
    if not rows:
        return "0 rows"
    shown = "; ".join(" | ".join(_show_cell(cell) for cell in row) for row in rows[:SHOWN_ROWS])
    return f"{len(rows)} row{'' if len(rows) == 1 else 's'}: {shown}" + ("; ..." if len(rows) > SHOWN_ROWS else "")


def read_schema(connection: sqlite3.Connection) -> str:
    """One line per table, such as `cars(model, origin, mpg)`."""
    tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY rowid").fetchall()
    lines: list[str] = []
    for (table,) in tables:
        columns = connection.execute("SELECT name FROM pragma_table_info(?)", (table,)).fetchall()
        lines.append(f"{table}({', '.join(name for (name,) in columns)})")
    return "\n".join(lines)


def _show_cell(cell: object) -> str:
    return (f"{cell:.6g}" if isinstance(cell, float) else str(cell))[:SHOWN_CELL_CHARS]
