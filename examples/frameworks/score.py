"""Scores the agents of this folder by the rows that their last query returned."""

from __future__ import annotations

import math
import sqlite3
from contextlib import closing
from typing import Any


def score(task: dict[str, Any], output: Any) -> float:
    """1.0 where the rows are those of the task's own query, else 0.0.

    `output` is what the agent's function returned, or what its program printed and how it ended.
    """
    if hasattr(output, "exit_code") and output.exit_code != 0:
        raise RuntimeError(f"the program failed: {output.stderr[-500:]}")
    rows = output.result["rows"] if hasattr(output, "exit_code") else output.rows
    if rows is None:
        return 0.0
    with closing(sqlite3.connect(f"file:{task['database']}?mode=ro", uri=True)) as connection:
        gold = connection.execute(task["gold_sql"]).fetchall()
    if not task["ordered"]:
        gold, rows = sorted(gold, key=str), sorted(rows, key=str)
    return float(len(gold) == len(rows) and all(map(_same_row, gold, rows)))


def _same_row(a: Any, b: Any) -> bool:
    return len(a) == len(b) and all(map(_same_cell, a, b))


def _same_cell(a: Any, b: Any) -> bool:
    if isinstance(a, int | float) and isinstance(b, int | float):
        return math.isclose(a, b, rel_tol=1e-6)
    return a == b
