"""How well an agent does, put together: its tasks, its evaluations, and what the decision matrix makes of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
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
            learning=advice(definition, next(iter(newest.values()), None)),
        )


def advice(definition: AgentDefinition, newest: AgentEvaluation | None) -> dict[str, Any]:
    """What the learning settings say to the newest evaluation; `should_learn` is `None` while nobody can tell."""
    learning = definition.learning
    score = None if newest is None else newest.score
    below = None if score is None else score < learning.threshold
    return {
        **learning.model_dump(mode="json"),
        "value": score,
        "below_threshold": below,
        "should_learn": None if below is None else below and learning.algorithm != "monitor",
    }
