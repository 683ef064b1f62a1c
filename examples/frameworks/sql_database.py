"""What the agents in this folder have in common: their instructions, and reading a SQLite database.

Nothing in this folder knows of Agent Lightning.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

INSTRUCTIONS = (
    "You answer questions about a SQLite database. Call the sql tool with one SELECT query; "
    "if it fails, correct it. When its rows answer the question, say so briefly.\nTables:\n"
)
MAX_TURNS = 3
MAX_ROWS = 1000
QUERY_TIMEOUT_S = 2.0
SHOWN_ROWS = 2
SHOWN_CHARS = 16
READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}


@dataclass
class Answer:
    """What an agent found: its last words, and the last query that ran with all its rows."""

    text: str = ""
    sql: str | None = None
    rows: list[Any] | None = None
    queries: list[str] = field(default_factory=list[str])


class Database:
    """One SQLite file that cannot be written, and what was found in it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.found = Answer()

    def instructions(self) -> str:
        """The system prompt: what to do, and one line per table."""
        with closing(self._connect()) as connection:
            tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY rowid").fetchall()
            columns = "SELECT name FROM pragma_table_info(?)"
            lines = [f"{name}({', '.join(c for (c,) in connection.execute(columns, (name,)))})" for (name,) in tables]
        return INSTRUCTIONS + "\n".join(lines)

    def query(self, query: str) -> str:
        """Run one query and say what a model shall see of it."""
        self.found.queries.append(query)
        deadline = time.monotonic() + QUERY_TIMEOUT_S
        try:
            with closing(self._connect()) as connection:
                connection.set_authorizer(lambda action, *_: 0 if action in READING else sqlite3.SQLITE_DENY)
                connection.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
                rows = connection.execute(query).fetchmany(MAX_ROWS)
        except sqlite3.Error as error:
            return f"error: {str(error)[:40]}"
        self.found.sql, self.found.rows = query, rows
        if not rows:
            return "0 rows"
        shown = "; ".join(" | ".join(_cell(cell) for cell in row) for row in rows[:SHOWN_ROWS])
        return f"{len(rows)} row{'' if len(rows) == 1 else 's'}: {shown}" + ("; ..." if len(rows) > SHOWN_ROWS else "")

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(f"file:{quote(str(Path(self.path).absolute()))}?mode=ro", uri=True)


def _cell(cell: object) -> str:
    return (f"{cell:.6g}" if isinstance(cell, float) else str(cell))[:SHOWN_CHARS]


def run_program(answer: Callable[[str, str], Answer]) -> None:
    """The command line of an agent: prints what it found as one line of JSON."""
    parser = argparse.ArgumentParser(description="Ask a question about a SQLite database.")
    parser.add_argument("question")
    parser.add_argument("--database", required=True)
    options = parser.parse_args()
    print(json.dumps(asdict(answer(options.question, options.database))))
