"""The tasks that weights are trained and compared on: an agent's own evaluation cases, or the sample database's.

An agent on the embedded model answers questions about the sample database, whatever its own cases are about. Cases that
cannot be asked there are left out; where too few are left, questions about that database take their place.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentlightning.algorithm import answers
from agentlightning.algorithm.agent_rewards import tasks_of
from agentlightning.kit.errors import BadInputError
from agentlightning.nano.databases import build_database
from agentlightning.nano.tasks import tasks_on
from agentlightning.platform.tasks.text_to_sql import SAMPLE_SEED, read_rows, sample_path
from agentlightning.schemas.agent import AgentDefinition

MIN_CASES = 8
TRAIN_QUESTIONS, HELD_OUT_QUESTIONS = 512, 96

Task = dict[str, Any]


@dataclass(frozen=True)
class Cases:
    """Tasks of both splits. Held-out ones are compared on and never learnt from."""

    train: list[Task]
    held_out: list[Task]
    source: str = "evaluation cases"


def cases_of(definition: AgentDefinition, style: str | None, home: Path) -> Cases:
    """The tasks of an agent; reads and may make the sample database.

    Args:
        definition: The agent.
        style: The conversation that its model knows, if that is not the agent's own.
        home: Where the sample database is.

    Raises:
        BadInputError: There are too few, or none to learn from, or none to compare on.
    """
    own = Cases(tasks_of(definition, "train"), tasks_of(definition, "held_out"))
    if style is None:
        _check(own, definition.name)
        return own
    path = build_database(SAMPLE_SEED, sample_path(home).parent)
    own = Cases(_askable(own.train, path), _askable(own.held_out, path))
    if len(own.train) + len(own.held_out) >= MIN_CASES and own.train and own.held_out:
        return own
    return Cases(
        _questions(tasks_on(SAMPLE_SEED, "train", TRAIN_QUESTIONS, 0, path.parent)),
        _questions(tasks_on(SAMPLE_SEED, "test", HELD_OUT_QUESTIONS, 0, path.parent)),
        "sample database",
    )


def _check(found: Cases, name: str) -> None:
    count = len(found.train) + len(found.held_out)
    if count < MIN_CASES or not found.train or not found.held_out:
        raise BadInputError(
            f"{name} has {len(found.train)} evaluation cases to learn from and {len(found.held_out)} held-out ones; "
            f"{MIN_CASES} are needed, some of each kind.",
            hint="Add cases to its definition; a few dozen held-out ones can show a gain.",
        )


def _questions(tasks: Sequence[Task]) -> list[Task]:
    return [{"input": task["question"], "sample": task} for task in tasks]


def _askable(tasks: Sequence[Task], path: Path) -> list[Task]:
    """Those whose right answer is a query that runs on the sample database."""
    return [task for task in tasks if _runs(task["case"]["reference"], path)]


def _runs(reference: str, path: Path) -> bool:
    try:
        read_rows(path, answers.query_in(reference))
    except (answers.UnusableError, sqlite3.Error):
        return False
    return True
