"""The planted mistakes are mistakes: they run, and never give the right rows of a question that is asked."""

from __future__ import annotations

import random
import sqlite3
from contextlib import ExitStack, closing
from pathlib import Path

from agentlightning.nano.databases import build_database, choose_tables
from agentlightning.nano.habits import HABITS, failing_sql, habit_sql, slip_sql
from agentlightning.nano.questions import KINDS, combos, gold_sql, is_ordered
from agentlightning.nano.tasks import is_askable, same_rows


def test_habits_when_listed_cover_every_kind() -> None:
    assert set(HABITS) == set(KINDS)


def test_mistakes_when_run_never_give_the_right_rows_or_habits_an_error(database_dir: Path, stack: ExitStack) -> None:
    rng = random.Random(0)
    for seed in range(3000, 3010):
        connection = stack.enter_context(closing(sqlite3.connect(build_database(seed, database_dir))))
        for kind in KINDS:
            for table in choose_tables(seed):
                for combo in combos(kind, table, "train")[:25]:
                    if not is_askable(combo, connection):
                        continue
                    gold = connection.execute(gold_sql(combo)).fetchall()
                    habit = connection.execute(habit_sql(combo)).fetchall()
                    assert not same_rows(gold, habit, ordered=is_ordered(combo))
                    connection.execute(slip_sql(combo, rng)).fetchall()
                    assert _fails(failing_sql(combo, rng), connection), combo.id


def _fails(query: str, connection: sqlite3.Connection) -> bool:
    try:
        return not connection.execute(query).fetchall()
    except sqlite3.Error:
        return True
