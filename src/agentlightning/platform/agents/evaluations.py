"""Runs an agent's evaluation set and keeps what came out. Knows no HTTP, and not how agents are run."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, Protocol

from agentlightning.algorithm.evaluators import Checker, Verdict
from agentlightning.kit.errors import AgentLightningError, BadInputError, ConflictError, NotFoundError
from agentlightning.platform.agents import repository
from agentlightning.platform.agents.models import Agent, AgentEvaluation
from agentlightning.platform.agents.sandboxed import sandboxed
from agentlightning.platform.agents.service import AgentService
from agentlightning.platform.auth.repository import note
from agentlightning.platform.columns import now
from agentlightning.platform.context import Identity, current
from agentlightning.platform.database import Database
from agentlightning.schemas.agent import AgentDefinition
from agentlightning.schemas.evaluator import EvaluationCase

log = logging.getLogger(__name__)

Split = Literal["train", "held_out", "all"]

RUNNING, COMPLETED, FAILED, INTERRUPTED = "running", "completed", "failed", "interrupted"

AT_ONCE = 4
"""Cases of one evaluation that run side by side."""
MAX_RUNNING = 8
"""Evaluations of one process."""
_MARGIN_S = 60.0
_KEPT_CHARS = 4_000


class EvaluationsUnavailableError(AgentLightningError):
    """Nothing here can run agents."""

    code = "EXECUTION_UNAVAILABLE"
    status = 503


@dataclass(frozen=True, slots=True)
class Ran:
    """What an agent answered to a case."""

    output: str
    tools_used: tuple[str, ...] = ()
    rollout_id: str | None = None


class AgentExecutor(Protocol):
    """Runs agents: once, as a rollout in the store."""

    async def ready(self, definition: AgentDefinition) -> None:
        """See that there is a model for it.

        Raises:
            ModelNotConfiguredError: There is none.
        """
        ...

    async def execute(
        self, who: Identity, agent: Agent, definition: AgentDefinition, input: str, metadata: Mapping[str, Any]
    ) -> Ran:
        """The agent's answer.

        Raises:
            AgentLightningError: It has none: below status 500 the agent is to blame, else its surroundings.
        """
        ...

    async def score(self, rollout_id: str, value: float) -> None:
        """Give the rollout its reward. Called for the cases that may be learnt from, and for no held-out one."""
        ...


class EvaluationService:
    """Evaluations of a platform.

    Attributes:
        executor: Runs agents; `None` until somebody provides it.
        checker: Judges their answers.
    """

    def __init__(self, database: Database, agents: AgentService) -> None:
        self._database = database
        self._agents = agents
        self.executor: AgentExecutor | None = None
        self.checker = Checker(run_python=sandboxed)
        self._running: dict[int, asyncio.Task[None]] = {}

    async def start(self, id_or_name: int | str, split: Split = "all", limit: int | None = None) -> AgentEvaluation:
        """Begin; `find` tells how it goes on.

        Raises:
            AgentNotFoundError: There is no such agent.
            BadInputError: It has no cases of that kind.
            ConflictError: It is being evaluated, or too many others are.
            EvaluationsUnavailableError: Nothing here can run agents.
            ModelNotConfiguredError: There is no model for it.
        """
        agent = await self._agents.find(id_or_name)
        definition = self._agents.definition_of(agent)
        cases = definition.cases(None if split == "all" else split)[:limit]
        if not cases:
            raise BadInputError(f"{agent.name} has no evaluation cases ({split}).", hint="PUT adds some.")
        executor = self.executor
        if executor is None:
            raise EvaluationsUnavailableError("Agents cannot be run here.", hint="Start the whole platform: agl up")
        await executor.ready(definition)
        if agent.id in self._running:
            raise ConflictError(f"{agent.name} is being evaluated.", hint="Wait for it to end.")
        if len(self._running) >= MAX_RUNNING:
            raise ConflictError("Too many evaluations are running.", hint="Wait for one to end.")
        who = current().who
        rounds = math.ceil(len(cases) / AT_ONCE)
        row = AgentEvaluation(
            agent_id=agent.id,
            version=agent.version,
            split=split,
            status=RUNNING,
            started_at=now(),
            deadline_at=now() + timedelta(seconds=rounds * definition.timeout_s + _MARGIN_S),
            cases=len(cases),
            results=[],
            created_by=who.username,
        )
        async with self._database.write() as session:
            session.add(row)
            await session.flush()
            note(session, "agent.evaluate", agent.name, version=agent.version, split=split, cases=len(cases))
        task = asyncio.create_task(self._run(row.id, who, agent, definition, cases, executor))
        self._running[agent.id] = task
        task.add_done_callback(lambda _: self._running.pop(agent.id, None))
        return row

    async def find(self, id_or_name: int | str, number: int) -> tuple[Agent, AgentEvaluation]:
        """The agent and one of its evaluations.

        Raises:
            AgentNotFoundError: There is no such agent.
            NotFoundError: It has no such evaluation.
        """
        agent = await self._agents.find(id_or_name)
        async with self._database.read() as session:
            found = await repository.evaluation(session, agent.id, number)
        if found is None:
            raise NotFoundError(f"{agent.name} has no evaluation {number}.")
        return agent, found

    async def page(self, id_or_name: int | str, before: int | None, limit: int) -> tuple[Agent, list[AgentEvaluation]]:
        """The agent and its evaluations, newest first.

        Raises:
            AgentNotFoundError: There is no such agent.
        """
        agent = await self._agents.find(id_or_name)
        async with self._database.read() as session:
            return agent, await repository.evaluations(session, agent.id, before, limit)

    async def close(self) -> None:
        """End what is running."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _run(
        self,
        number: int,
        who: Identity,
        agent: Agent,
        definition: AgentDefinition,
        cases: tuple[EvaluationCase, ...],
        executor: AgentExecutor,
    ) -> None:
        room = asyncio.Semaphore(AT_ONCE)

        async def one(index: int, case: EvaluationCase) -> dict[str, Any]:
            async with room:
                return await self._case(number, index, who, agent, definition, case, executor)

        try:
            async with asyncio.timeout(math.ceil(len(cases) / AT_ONCE) * definition.timeout_s + _MARGIN_S / 2):
                results = await asyncio.gather(*(one(index, case) for index, case in enumerate(cases)))
        except asyncio.CancelledError:
            await asyncio.shield(self._finish(agent, number, INTERRUPTED, []))
            raise
        except Exception:  # whatever it is, the evaluation has to end; what agents do wrong is in the results
            log.exception("The evaluation %s of %s failed", number, agent.name)
            await self._finish(agent, number, FAILED, [])
        else:
            await self._finish(agent, number, COMPLETED, results)

    async def _case(
        self,
        number: int,
        index: int,
        who: Identity,
        agent: Agent,
        definition: AgentDefinition,
        case: EvaluationCase,
        executor: AgentExecutor,
    ) -> dict[str, Any]:
        told: dict[str, Any] = {"case": index, "split": case.split}
        metadata = {"evaluation": number, "case": index, "split": case.split}
        try:
            ran = await executor.execute(who, agent, definition, case.input, metadata)
        except AgentLightningError as error:
            blame = error.status < 500
            verdict = Verdict(0.0 if blame else None, False if blame else None, f"{error.code}: {error.message}")
        else:
            verdict = await self.checker.check(definition.evaluator, case, ran.output, ran.tools_used)
            told |= {"output": _cut(ran.output), "tools_used": list(ran.tools_used), "rollout_id": ran.rollout_id}
            if (
                ran.rollout_id is not None and verdict.score is not None and case.split == "train"
            ):  # the rest is no lesson
                await executor.score(ran.rollout_id, verdict.score)
        return {**told, "score": verdict.score, "passed": verdict.passed, "reason": _cut(verdict.reason)}

    async def _finish(self, agent: Agent, number: int, status: str, results: list[dict[str, Any]]) -> None:
        scores = [result["score"] for result in results if result["score"] is not None]
        passed = sum(result["passed"] is True for result in results) if scores else None
        score = sum(scores) / len(scores) if scores else None
        async with self._database.write() as session:
            found = await repository.evaluation(session, agent.id, number, lock=True)
            if found is None:
                return
            found.status, found.finished_at = status, now()
            found.results, found.passed, found.score = results, passed, score
        if score is not None:
            kept = {"version": found.version, "split": found.split, "score": score, "told": len(scores)}
            await self._agents.note_activity(agent.id, {"evaluation": kept})


def is_overdue(evaluation: AgentEvaluation) -> bool:
    """Whether it counts as running although whoever ran it is gone."""
    return evaluation.status == RUNNING and evaluation.deadline_at < now()


def _cut(text: str) -> str:
    plain = text.replace("\0", "").encode("utf-8", "replace").decode()
    return plain if len(plain) <= _KEPT_CHARS else f"{plain[:_KEPT_CHARS]}…"
