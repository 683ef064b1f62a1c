"""Agents on the embedded model whose evaluation cases are about the sample database: enough to learn from, and few."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from agentlightning.nano.tasks import tasks_on
from agentlightning.platform.tasks.text_to_sql import SAMPLE_SEED, sample_path
from agentlightning.schemas.agent import AgentDefinition


def pupil(home: Path, name: str = "pupil_agent", *, train: int = 8, held_out: int = 8, **more: Any) -> AgentDefinition:
    folder = sample_path(home).parent
    chosen = [("train", tasks_on(SAMPLE_SEED, "train", train, 0, folder))]
    chosen += [("held_out", tasks_on(SAMPLE_SEED, "test", held_out, 0, folder))]
    with closing(sqlite3.connect(sample_path(home))) as database:
        setup = "\n".join(line for line in database.iterdump() if line not in ("BEGIN TRANSACTION;", "COMMIT;"))
    cases = [
        {
            "input": task["question"],
            "expected": task["gold_sql"],
            "ordered": task["ordered"],
            "reference": f"```sql\n{task['gold_sql']}\n```",
            "split": split,
        }
        for split, tasks in chosen
        for task in tasks
    ]
    given = {
        "name": name,
        "type": "testing",
        "description": "Answers questions about the sample database.",
        "role": "analyst",
        "system_prompt": "Write a query.",
        "capabilities": [name],
        "fallback": {"model": "nano", "style": "text_to_sql"},
        "evaluator": {"kind": "sql", "setup": setup},
        "evaluation": cases,
        "learning": {"task_type": "data_analysis", "algorithm": "grpo"},
        **more,
    }
    return AgentDefinition.model_validate(given)
