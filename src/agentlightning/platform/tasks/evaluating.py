"""Runs the cases of evaluations as tasks, and so as rollouts; tells of an agent's tasks. Knows no cases."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from agentlightning.algorithm.evaluators import CannotTellError
from agentlightning.kit.errors import AgentLightningError
from agentlightning.platform.agents.evaluations import Ran
from agentlightning.platform.agents.models import Agent
from agentlightning.platform.context import Identity
from agentlightning.platform.database import Database
from agentlightning.platform.model_calls import GatewayChat
from agentlightning.platform.tasks import repository
from agentlightning.platform.tasks.choice import ModelChooser
from agentlightning.platform.tasks.models import CANCELLED, COMPLETED, ENDED, Task
from agentlightning.platform.tasks.service import TaskService, Wish
from agentlightning.schemas.agent import AgentDefinition
from agentlightning.store import LightningStore

_OWN_FAULTS = frozenset({"STEP_LIMIT", "TASK_TIMEOUT", "NO_ANSWER", "NO_QUERY", "BAD_INPUT"})
"""Codes of failures that are the agent's; others are its surroundings'."""
_QUEUE_S = 30.0
_JUDGE_TOKENS = 400


class CaseFailedError(AgentLightningError):
    """The task of a case has no result."""


class TaskExecutor:
    """Runs agents on cases."""

    def __init__(self, service: TaskService, chooser: ModelChooser, store: LightningStore) -> None:
        self._service = service
        self._chooser = chooser
        self._store = store

    async def ready(self, definition: AgentDefinition) -> None:
        """See that there is a model for it.

        Raises:
            ModelNotConfiguredError: There is none.
        """
        await self._chooser.choose(definition)

    async def execute(
        self, who: Identity, agent: Agent, definition: AgentDefinition, input: str, metadata: Mapping[str, Any]
    ) -> Ran:
        """The agent's answer to one case, by a task of low priority.

        Raises:
            AgentLightningError: It has none.
        """
        wish = Wish(
            task=input,
            agent=agent.name,
            priority="low",
            context={},
            timeout_s=definition.timeout_s,
            idempotency_key=f"evaluation-{metadata['evaluation']}-{metadata['case']}",
        )
        # The one that an evaluation which was left had begun, unless it was cancelled when its process stopped.
        assigned = await self._service.assign(who, wish)
        if not assigned.is_new and assigned.task.status == CANCELLED:
            key = f"{wish.idempotency_key}-{metadata['attempt']}"
            assigned = await self._service.assign(who, replace(wish, idempotency_key=key))
        number = assigned.task.id
        try:
            task, _ = await self._service.wait(who, number, definition.timeout_s + _QUEUE_S)
        except asyncio.CancelledError:
            await asyncio.shield(self._cancel(who, number))
            raise
        if task.status not in ENDED:
            await self._cancel(who, number)
        if task.status != COMPLETED or task.result is None:
            raise _failure(task)
        if task.agent_version != agent.version:
            raise _failed("AGENT_CHANGED", 503, "The agent was changed while it was evaluated.")
        return Ran(_said(task.result), tuple(task.result.get("tools_used", ())), task.rollout_id)

    async def score(self, rollout_id: str, value: float) -> None:
        """Keep the verdict with the rollout, for training."""
        await self._store.add_feedback(rollout_id, author="evaluator", score=value, score_min=0, score_max=1)

    async def _cancel(self, who: Identity, number: int) -> None:
        try:
            await self._service.cancel(who, number)
        except AgentLightningError:
            return  # it has ended by itself


class AgentActivity:
    """Tells of the tasks of agents."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def workload(self) -> dict[int, dict[str, Any]]:
        """By number of the agent, how many tasks wait and run."""
        async with self._database.read() as session:
            rows = await repository.load_of_agents(session)
        found: dict[int, dict[str, Any]] = {}
        for number, _, _, status, count in rows:
            found.setdefault(number, {"pending": 0, "running": 0})[status] = count
        return found

    async def counts(self, agent_id: int) -> dict[str, Any]:
        """An agent's tasks: how many, how they ended, how long they took."""
        async with self._database.read() as session:
            rows = await repository.history_of_agent(session, agent_id)
        by_status = {status: count for status, count, _ in rows}
        ended = by_status.get("completed", 0) + by_status.get("failed", 0)
        took = next((mean for status, _, mean in rows if status == COMPLETED), None)
        return {
            "total": sum(by_status.values()),
            "by_status": by_status,
            "success_rate": by_status.get("completed", 0) / ended if ended else None,
            "mean_execution_ms": None if took is None else round(float(took), 1),
        }


def judge_by(chat: GatewayChat) -> Any:
    """Asks a model for a verdict; a model that is not there tells nothing."""

    async def ask(prompt: str) -> str:
        try:
            return await chat.complete([{"role": "user", "content": prompt}], max_tokens=_JUDGE_TOKENS, temperature=0.0)
        except AgentLightningError as error:
            raise CannotTellError(f"the judge does not answer: {error.message}") from error

    return ask


def _said(result: Mapping[str, Any]) -> str:
    """The answer; where the agent's conversation is about a query, with the query."""
    output, query = str(result.get("output", "")), result.get("sql")
    return f"```sql\n{query}\n```\n{output}" if query else output


def _failure(task: Task) -> CaseFailedError:
    code = task.error_code or "TASK_UNFINISHED"
    status = 422 if code in _OWN_FAULTS else 503
    return _failed(code, status, task.error_message or f"The task is {task.status}.")


def _failed(code: str, status: int, message: str) -> CaseFailedError:
    error = CaseFailedError(message)
    error.code, error.status = code, status
    return error
