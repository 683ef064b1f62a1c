"""The measured training recipe of the embedded model, and how its tasks are scored. Knows nothing of trainers."""

from __future__ import annotations

from typing import Any

from agentlightning.nano.tasks import Task, grade

RECIPE: dict[str, Any] = {
    "steps": 20,
    "prompts_per_step": 32,
    "group_size": 8,
    "learning_rate": 5e-4,
    "lr_schedule": "linear",
    "warmup_steps": 3,
    "minibatches": 2,
    "max_tokens": 64,
    "eval_every": 4,
    "rollout_timeout_s": 60.0,
}
"""Fields of `GRPOConfig`."""


def reward(task: Task, output: Any) -> float:
    """Score an answer of the SQL agent by the rows its last query returned: 1.0 or 0.0.

    An agent that never got a query to run is a graded failure, 0.0, not a missing reward.
    """
    return grade(task, output.rows)
