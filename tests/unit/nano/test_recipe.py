"""The recipe is one that GRPO accepts, and answers are scored by their rows."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentlightning import nano
from agentlightning.config import GRPOConfig
from agentlightning.nano.recipe import RECIPE, reward


@dataclass
class Answer:
    rows: list[tuple[Any, ...]] | None


def test_the_recipe_is_valid() -> None:
    assert GRPOConfig(**RECIPE).steps == RECIPE["steps"]


def test_an_answer_is_scored_by_its_rows(tmp_path: Path) -> None:
    task = nano.make_tasks("val", 1, 0, tmp_path)[0]
    with closing(sqlite3.connect(task["database"])) as connection:
        gold = connection.execute(task["gold_sql"]).fetchall()
    assert reward(task, Answer(gold)) == 1.0
    assert reward(task, Answer([("wrong",)])) == 0.0
    assert reward(task, Answer(None)) == 0.0
