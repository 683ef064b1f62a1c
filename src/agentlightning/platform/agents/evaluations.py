"""Runs an agent's evaluation set and keeps what came out. Knows no HTTP, and not how agents are run.

Each verdict is kept when it is there. Who runs an evaluation holds a lease; when that ends without a sign of life,
another process goes on with the cases that are left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, Protocol, cast

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from agentlightning.algorithm.evaluators import Checker, Verdict
from agentlightning.kit.asyncs import cancelled
from agentlightning.kit.errors import AgentLightningError, BadInputError, ConflictError, NotFoundError
from agentlightning.kit.ids import new_id
from agentlightning.platform.agents import repository
from agentlightning.platform.agents.models import Agent, AgentEvaluation
from agentlightning.platform.agents.sandboxed import sandboxed
from agentlightning.platform.agents.service import AgentService
from agentlightning.platform.auth.repository import identity_of, note
from agentlightning.platform.columns import now
from agentlightning.platform.context import Identity, current
from agentlightning.platform.database import Database, is_unavailable
from agentlightning.schemas.agent import AgentDefinition
from agentlightning.schemas.evaluator import EvaluationCase

log = logging.getLogger(__name__)

Split = Literal["train", "held_out", "all"]

RUNNING, COMPLETED, FAILED, INTERRUPTED = "running", "completed", "failed", "interrupted"

AT_ONCE = 4
"""Cases of one evaluation that run side by side."""
MAX_RUNNING = 8
"""Evaluations of one process."""
MAX_ATTEMPTS = 3
_LOOK_S = 5.0
_ENDING_S = 5.0
_random = random.Random()
"""Its own: who seeds the global one wants the same numbers again."""
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


@dataclass(frozen=True)
class _Run:
    """One evaluation at work here, and the cases that are left of it."""

    number: int
    attempt: int
    who: Identity
    agent: Agent
    definition: AgentDefinition
    cases: Mapping[int, EvaluationCase]
    executor: AgentExecutor


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

    def __init__(self, database: Database, agents: AgentService, lease_s: float = 30.0) -> None:
        self._database = database
        self._agents = agents
        self._lease_s = lease_s
        self._worker = new_id("evaluator")
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
        async with self._database.read() as session:
            elsewhere = await repository.is_being_evaluated(session, agent.id, now())
        mine = self._running.get(agent.id)
        if mine is not None and not elsewhere:  # it has told its result and is ending
            await asyncio.wait({mine}, timeout=_ENDING_S)
        if elsewhere or agent.id in self._running:
            raise _under_way(agent)
        if len(self._running) >= MAX_RUNNING:
            raise ConflictError("Too many evaluations are running.", hint="Wait for one to end.")
        who = current().who
        row = AgentEvaluation(
            agent_id=agent.id,
            version=agent.version,
            split=split,
            status=RUNNING,
            started_at=now(),
            deadline_at=now() + timedelta(seconds=_longest_s(definition, len(cases)) + _MARGIN_S),
            cases=len(cases),
            results=[],
            created_by=who.username,
            owner_id=who.user_id,
            scopes=None if who.scopes is None else list(who.scopes),
            worker=self._worker,
            lease_until=now() + timedelta(seconds=self._lease_s),
            attempts=1,
        )
        try:
            async with self._database.write() as session:
                await repository.end_overdue(session, agent.id, now())
                session.add(row)
                await session.flush()
                note(session, "agent.evaluate", agent.name, version=agent.version, split=split, cases=len(cases))
        except IntegrityError as error:  # somebody has begun one since we looked
            raise _under_way(agent) from error
        self._begin(_Run(row.id, 1, who, agent, definition, dict(enumerate(cases)), executor))
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

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Within the block, go on with what others had to leave; what runs at its end is left to others."""
        looking = asyncio.create_task(self._look())
        try:
            yield
        finally:
            await cancelled(looking)
            await self.close()

    async def close(self) -> None:
        """Leave what is running to others."""
        await cancelled(*self._running.values())

    # -- running -----------------------------------------

    def _begin(self, run: _Run) -> None:
        task = asyncio.create_task(self._run(run), name=f"evaluation:{run.number}")
        self._running[run.agent.id] = task

        def ended(_: asyncio.Task[None]) -> None:
            if self._running.get(run.agent.id) is task:
                del self._running[run.agent.id]

        task.add_done_callback(ended)

    async def _run(self, run: _Run) -> None:
        beating = asyncio.create_task(self._beat(run, asyncio.current_task()))
        try:
            await self._all_cases(run)
            await self._finish(run, COMPLETED)
        except asyncio.CancelledError:
            await asyncio.shield(self._leave(run))
            raise
        except Exception as error:  # whatever it is, the evaluation has to end; what agents do wrong is in the results
            if is_unavailable(error):  # the lease ends, and somebody goes on
                log.warning("The evaluation %s of %s waits for the database", run.number, run.agent.name)
                return
            log.exception("The evaluation %s of %s failed", run.number, run.agent.name)
            await self._finish(run, FAILED)
        finally:
            await cancelled(beating)

    async def _all_cases(self, run: _Run) -> None:
        room = asyncio.Semaphore(AT_ONCE)

        async def one(index: int, case: EvaluationCase) -> None:
            async with room:
                verdict = await self._case(run, index, case)
            await self._keep(run, verdict)

        try:
            async with (
                asyncio.timeout(_longest_s(run.definition, len(run.cases)) + _MARGIN_S / 2),
                asyncio.TaskGroup() as group,
            ):
                for index, case in run.cases.items():
                    group.create_task(one(index, case))
        except ExceptionGroup as several:
            raise several.exceptions[0] from several

    async def _beat(self, run: _Run, work: asyncio.Task[None] | None) -> None:
        """Keep the lease, and stop when somebody else has taken over."""
        while True:
            await asyncio.sleep(self._lease_s / 3)
            try:
                async with self._database.write() as session:
                    found = await self._ours(session, run)
                    if found is not None:
                        found.lease_until = now() + timedelta(seconds=self._lease_s)
            except Exception as error:  # drivers fail in their own ways; what is no outage is raised again
                if not is_unavailable(error):
                    raise
                continue
            if found is None and work is not None:
                work.cancel()
                return

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(min(_LOOK_S, self._lease_s) * _random.uniform(0.5, 1.0))
            try:
                while self.executor is not None and len(self._running) < MAX_RUNNING and await self._resume():
                    pass
            except Exception as error:  # it must not end: what was left would stay left
                if not is_unavailable(error):
                    log.exception("an evaluation cannot be resumed")

    async def _resume(self) -> bool:
        """Go on with one that has been left; whether there was one."""
        assert self.executor is not None
        async with self._database.write() as session:
            row = await repository.left_evaluation(session, now(), list(self._running))
            if row is None:
                return False
            row.worker, row.lease_until = self._worker, now() + timedelta(seconds=self._lease_s)
            row.attempts += 1
            owner = await identity_of(session, row.owner_id, row.scopes)
            version = await repository.version(session, row.agent_id, row.version)
            agent = await repository.find(session, row.agent_id)
            is_other = agent is None or agent.version != row.version
            if is_other or agent is None or version is None or owner is None or row.attempts > MAX_ATTEMPTS:
                row.status, row.finished_at = INTERRUPTED, now()
                return True
            definition = AgentDefinition.model_validate(version.config)
            done = {result["case"] for result in row.results}
            cases = definition.cases(None if row.split == "all" else cast("Any", row.split))[: row.cases]
            left = {index: case for index, case in enumerate(cases) if index not in done}
            row.deadline_at = now() + timedelta(seconds=_longest_s(definition, len(left)) + _MARGIN_S)
        log.warning("Going on with the evaluation %s of %s: %d cases are left", row.id, agent.name, len(left))
        self._begin(_Run(row.id, row.attempts, owner, agent, definition, left, self.executor))
        return True

    async def _ours(self, session: AsyncSession, run: _Run) -> AgentEvaluation | None:
        found = await repository.evaluation(session, run.agent.id, run.number, lock=True)
        is_ours = found is not None and (found.status, found.worker) == (RUNNING, self._worker)
        return found if is_ours and found is not None and found.attempts == run.attempt else None

    async def _case(self, run: _Run, index: int, case: EvaluationCase) -> dict[str, Any]:
        told: dict[str, Any] = {"case": index, "split": case.split}
        metadata = {"evaluation": run.number, "attempt": run.attempt, "case": index, "split": case.split}
        try:
            ran = await run.executor.execute(run.who, run.agent, run.definition, case.input, metadata)
        except AgentLightningError as error:
            blame = error.status < 500
            verdict = Verdict(0.0 if blame else None, False if blame else None, f"{error.code}: {error.message}")
        else:
            verdict = await self.checker.check(run.definition.evaluator, case, ran.output, ran.tools_used)
            told |= {"output": _cut(ran.output), "tools_used": list(ran.tools_used), "rollout_id": ran.rollout_id}
            if (
                ran.rollout_id is not None and verdict.score is not None and case.split == "train"
            ):  # the rest is no lesson
                await run.executor.score(ran.rollout_id, verdict.score)
        return {**told, "score": verdict.score, "passed": verdict.passed, "reason": _cut(verdict.reason)}

    async def _keep(self, run: _Run, verdict: dict[str, Any]) -> None:
        async with self._database.write() as session:
            found = await self._ours(session, run)
            if found is not None:
                found.results = sorted([*found.results, verdict], key=lambda each: each["case"])

    async def _leave(self, run: _Run) -> None:
        """Let others go on at once; that this process stops is no failed attempt."""
        async with self._database.write() as session:
            found = await self._ours(session, run)
            if found is not None:
                found.lease_until, found.worker, found.attempts = now(), None, found.attempts - 1

    async def _finish(self, run: _Run, status: str) -> None:
        async with self._database.write() as session:
            found = await self._ours(session, run)
            if found is None:
                return
            scores = [result["score"] for result in found.results if result["score"] is not None]
            score = sum(scores) / len(scores) if scores else None
            found.passed = sum(result["passed"] is True for result in found.results) if scores else None
            found.status, found.finished_at, found.score = status, now(), score
            found.lease_until, found.worker = None, None
        if score is not None and status == COMPLETED:
            kept = {"version": found.version, "split": found.split, "score": score, "told": len(scores)}
            await self._agents.note_activity(run.agent.id, {"evaluation": kept})


def _under_way(agent: Agent) -> ConflictError:
    return ConflictError(f"{agent.name} is being evaluated.", hint="Wait for it to end.")


def _longest_s(definition: AgentDefinition, cases: int) -> float:
    return math.ceil(cases / AT_ONCE) * definition.timeout_s


def is_overdue(evaluation: AgentEvaluation) -> bool:
    """Whether it counts as running although whoever ran it is gone."""
    return evaluation.status == RUNNING and evaluation.deadline_at < now()


def _cut(text: str) -> str:
    plain = text.replace("\0", "").encode("utf-8", "replace").decode()
    return plain if len(plain) <= _KEPT_CHARS else f"{plain[:_KEPT_CHARS]}…"
