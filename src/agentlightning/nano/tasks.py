"""Graded tasks for training and evaluation: a question, a real database, and the query that answers it.

Graded is what the agent's last query returned, not what it said. Knows nothing of models or training.
"""

from __future__ import annotations

import contextlib
import math
import random
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from agentlightning.nano.databases import build_database, choose_tables
from agentlightning.nano.habits import habit_sql
from agentlightning.nano.questions import KINDS, Combo, Split, combos, gold_sql, is_ordered
from agentlightning.nano.wording import word

TaskSplit = Literal["train", "val", "test", "test_unseen_phrasing"]
Task = dict[str, Any]
Rows = list[tuple[Any, ...]]

RELATIVE_TOLERANCE = 1e-6  # sums of floats depend on the order of the rows


@dataclass(frozen=True)
class Source:
    """Where the tasks of a split come from."""

    combos: Split
    first_database: int
    n_databases: int
    unseen_wording: bool = False


PRETRAIN_DATABASES = range(0, 600)
SOURCES: dict[TaskSplit, Source] = {
    "train": Source("train", 1000, 64),
    "val": Source("val", 2000, 48),
    "test": Source("test", 3000, 64),
    "test_unseen_phrasing": Source("test", 3000, 64, unseen_wording=True),
}


def make_tasks(split: TaskSplit, n: int, seed: int, directory: Path) -> list[Task]:
    """Draws `n` different tasks, every kind of question equally often, and builds the databases they need.

    Args:
        split: What the tasks are for; no combination of two splits is the same, nor is any database (the two test
            splits share theirs and differ in wording).
        n: How many.
        seed: Another seed draws other tasks of the same split.
        directory: Where the databases are, or are built.
    """
    source = SOURCES[split]
    rng = random.Random(f"{split} {seed}")
    kinds = [KINDS[i % len(KINDS)] for i in range(n)]
    rng.shuffle(kinds)
    tasks: dict[tuple[str, int], Task] = {}
    with contextlib.ExitStack() as stack:
        connections: dict[int, sqlite3.Connection] = {}
        while len(tasks) < n:
            combo, database = _draw(kinds[len(tasks)], source, rng)
            question = word(combo, rng, unseen=source.unseen_wording)
            path = build_database(database, directory)
            if database not in connections:
                connections[database] = stack.enter_context(contextlib.closing(sqlite3.connect(path)))
            if (question, database) in tasks or not is_askable(combo, connections[database]):
                continue
            tasks[question, database] = {
                "id": f"{split}-{seed}-{len(tasks)}",
                "question": question,
                "database": str(path),
                "gold_sql": gold_sql(combo),
                "ordered": is_ordered(combo),
                "kind": combo.kind,
                "phrasing": "unseen" if source.unseen_wording else "seen",
            }
    return list(tasks.values())


def tasks_on(database: int, split: Split, n: int, seed: int, directory: Path) -> list[Task]:
    """At most `n` tasks about one database, no two with the same query, kinds of questions taking turns.

    Args:
        database: Its seed.
        split: Whose combinations; those of two splits have none in common.
        n: How many at most.
        seed: Decides which, and how they are worded.
        directory: Where the database is, or is built.
    """
    rng = random.Random(f"{database} {split} {seed}")
    path = build_database(database, directory)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        left = [[c for t in choose_tables(database) for c in combos(kind, t, split)] for kind in KINDS]
        for each in left:
            rng.shuffle(each)
        chosen: list[Combo] = []
        while len(chosen) < n and any(left):
            for each in left:
                found = _next_askable(each, connection)
                if found is not None and len(chosen) < n:
                    chosen.append(found)
    return [
        {
            "id": f"{split}-{database}-{seed}-{number}",
            "question": word(combo, rng, unseen=False),
            "database": str(path),
            "gold_sql": gold_sql(combo),
            "ordered": is_ordered(combo),
            "kind": combo.kind,
            "phrasing": "seen",
        }
        for number, combo in enumerate(chosen)
    ]


def grade(task: Task, rows: Sequence[Sequence[Any]] | None) -> float:
    """1.0 where the rows are those of the task's gold query (in its order, if it has one), else 0.0."""
    if rows is None:
        return 0.0
    with contextlib.closing(sqlite3.connect(f"file:{task['database']}?mode=ro", uri=True)) as connection:
        gold = connection.execute(task["gold_sql"]).fetchall()
    return float(same_rows(gold, rows, ordered=task["ordered"]))


def same_rows(gold: Sequence[Sequence[Any]], rows: Sequence[Sequence[Any]], *, ordered: bool) -> bool:
    """Whether two results hold the same rows."""
    if len(gold) != len(rows):
        return False
    left, right = [tuple(row) for row in gold], [tuple(row) for row in rows]
    if not ordered:
        left, right = sorted(left, key=_sort_key), sorted(right, key=_sort_key)
    return all(_same_row(a, b) for a, b in zip(left, right, strict=True))


def is_askable(combo: Combo, connection: sqlite3.Connection) -> bool:
    """Whether the answer is there, is only one (no ties), and is not what the usual mistake also gives."""
    gold = connection.execute(gold_sql(combo)).fetchall()
    if not gold or gold[0][-1] in (None, 0):
        return False
    if combo.limit and combo.measure and _has_tie(combo, connection):
        return False
    try:
        usual = connection.execute(habit_sql(combo)).fetchall()
    except sqlite3.Error:
        return True
    return not same_rows(gold, usual, ordered=is_ordered(combo))


def _draw(kind: Any, source: Source, rng: random.Random) -> tuple[Combo, int]:
    while True:
        database = source.first_database + rng.randrange(source.n_databases)
        found = combos(kind, rng.choice(choose_tables(database)), source.combos)
        if found:
            return rng.choice(found), database


def _next_askable(left: list[Combo], connection: sqlite3.Connection) -> Combo | None:
    while left:
        combo = left.pop()
        if is_askable(combo, connection):
            return combo
    return None


def _has_tie(combo: Combo, connection: sqlite3.Connection) -> bool:
    assert combo.measure is not None
    assert combo.limit is not None
    wider = gold_sql(combo).replace(f"SELECT {combo.table.key}", f"SELECT {combo.measure.column}", 1)
    wider = wider.replace(f"LIMIT {combo.limit}", f"LIMIT {combo.limit + 1}")
    values = [row[0] for row in connection.execute(wider)]
    return len(set(values)) < len(values)


def _same_row(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    return len(a) == len(b) and all(_same_cell(x, y) for x, y in zip(a, b, strict=True))


def _same_cell(a: Any, b: Any) -> bool:
    if isinstance(a, int | float) and isinstance(b, int | float):
        return math.isclose(a, b, rel_tol=RELATIVE_TOLERANCE)
    return a == b


def _sort_key(row: tuple[Any, ...]) -> list[tuple[str, Any]]:
    return [("number", round(c, 4)) if isinstance(c, int | float) else (type(c).__name__, str(c)) for c in row]
