"""An agent's own evaluation set for algorithms: its cases as tasks, its evaluator as a reward. Runs no agents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from agentlightning.algorithm.evaluators import Checker
from agentlightning.algorithm.rewards.base import Reward, output_text
from agentlightning.schemas.agent import AgentDefinition
from agentlightning.schemas.evaluator import EvaluationCase


def tasks_of(definition: AgentDefinition, split: Literal["train", "held_out"]) -> list[dict[str, Any]]:
    """The cases of a split as tasks: `input` is what the agent gets, `case` what the reward needs."""
    return [{"input": case.input, "case": case.model_dump(mode="json")} for case in definition.cases(split)]


class AgentReward(Reward):
    """Scores answers to `tasks_of(definition, ...)` by the definition's evaluator, from 0 to 1.

    `None` where nobody can tell: no sandbox, no judge, no answer.

    Args:
        definition: Whose evaluator.
        checker: With sandbox and judge, as far as the evaluator needs them.
    """

    name = "agent"

    def __init__(self, definition: AgentDefinition, checker: Checker | None = None) -> None:
        self._evaluator = definition.evaluator
        self._checker = checker or Checker()

    async def score(self, task: Any, output: Any) -> float | None:
        """How right the answer is."""
        text = output_text(output)
        if text is None:
            return None
        used = output.get("tools_used", ()) if isinstance(output, Mapping) else ()
        case = EvaluationCase.model_validate(task["case"])
        return (await self._checker.check(self._evaluator, case, text, tuple(used))).score
