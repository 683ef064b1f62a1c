"""How well an agent does, put together: its tasks, its evaluations, and what the decision matrix makes of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from agentlightning.platform.agents.evaluations import COMPLETED, EvaluationService
from agentlightning.platform.agents.models import AgentEvaluation
from agentlightning.platform.agents.schemas import MetricsOut, evaluation_out
from agentlightning.platform.agents.service import AgentService
from agentlightning.schemas.agent import AgentDefinition

_LOOKED_AT = 100

TaskCounts = Callable[[int], Awaitable[dict[str, Any]]]
"""Answers counts and times of an agent's tasks."""


class AgentMetrics:
    """The metrics of a platform's agents.

    Attributes:
        tasks: Tells of tasks; `None` until somebody runs some.
    """

    def __init__(self, agents: AgentService, evaluations: EvaluationService) -> None:
        self._agents = agents
        self._evaluations = evaluations
        self.tasks: TaskCounts | None = None

    async def of(self, id_or_name: int | str) -> MetricsOut:
        """Of one agent.

        Raises:
            AgentNotFoundError: There is no such agent.
        """
        agent, found = await self._evaluations.page(id_or_name, None, _LOOKED_AT)
        newest: dict[tuple[int, str], AgentEvaluation] = {}
        for evaluation in found:
            if evaluation.status == COMPLETED and evaluation.score is not None:
                newest.setdefault((evaluation.version, evaluation.split), evaluation)
        definition = self._agents.definition_of(agent)
        return MetricsOut(
            agent=agent.name,
            version=agent.version,
            metrics=agent.performance_metrics,
            tasks=None if self.tasks is None else await self.tasks(agent.id),
            evaluations=[evaluation_out(agent, evaluation, results=False) for evaluation in newest.values()],
            learning=advice(definition, list(newest.values())),
        )


def advice(definition: AgentDefinition, newest: Sequence[AgentEvaluation]) -> dict[str, Any]:
    """What the settings say to the newest evaluation with enough cases; without one `should_learn` is `None`."""
    learning = definition.learning
    enough = next((each for each in newest if _told(each) >= learning.min_cases), None)
    value = None if enough is None else enough.score
    below = None if value is None else value < learning.threshold
    return {
        **learning.model_dump(mode="json"),
        "value": value,
        "below_threshold": below,
        "should_learn": None if below is None else below and learning.algorithm != "monitor",
    }


def _told(evaluation: AgentEvaluation) -> int:
    return sum(result.get("passed") is not None for result in evaluation.results)
