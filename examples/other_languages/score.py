"""Scores the agents of this folder: runs the query that one handed in, and compares its rows with those wanted."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any


def score(task: dict[str, Any], output: Any) -> float:
    """1.0 where the rows are those of the task's own query, else 0.0.

    `output` has what the program printed (`result` is its last line of JSON) and its `exit_code`. Without a query the
    JavaScript agents exit with 1, which is an answer; a program that printed no JSON has failed.
    """
    if output.result is None:
        raise RuntimeError(f"the program failed: {output.stderr[-500:]}")
    query = output.result["sql"]
    if not query:
        return 0.0
    with closing(sqlite3.connect(f"file:{task['database']}?mode=ro", uri=True)) as connection:
        gold = connection.execute(task["gold_sql"]).fetchall()
        connection.set_authorizer(lambda action, *_: sqlite3.SQLITE_OK if action in _READING else sqlite3.SQLITE_DENY)
        try:
            rows = connection.execute(query).fetchmany(len(gold) + 1)
        except sqlite3.Error:
            return 0.0
    return float(rows == gold if task["ordered"] else sorted(rows, key=str) == sorted(gold, key=str))


_READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
