"""Experiments over the database: begun, listed, stopped, applied; and whether an agent should learn now.

Knows no processes; `supervisor` runs what waits here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, StringConstraints
from sqlalchemy.exc import IntegrityError

from agentlightning.kit.errors import BadInputError, ConflictError, NotFoundError
from agentlightning.platform.agents.models import ACTIVE, Agent
from agentlightning.platform.agents.repository import evaluations
from agentlightning.platform.agents.service import AgentService, VersionConflictError
from agentlightning.platform.auth.repository import note
from agentlightning.platform.columns import now
from agentlightning.platform.context import Identity, current
from agentlightning.platform.database import Database
from agentlightning.platform.learning import repository
from agentlightning.platform.learning.algorithms import (
    SYSTEM_PROMPT,
    WEIGHTS,
    AlgorithmNotAvailableError,
    ExperimentConfig,
    check_algorithm,
)
from agentlightning.platform.learning.cases import MIN_CASES, cases_of
from agentlightning.platform.learning.models import COMPLETED, CREATED, STOPPED, Experiment
from agentlightning.platform.learning.weights import (
    BASE,
    Base,
    Weights,
    base_in,
    check_judge,
    on_weights,
    result_in,
)
from agentlightning.platform.models_config import ModelNotConfiguredError
from agentlightning.schemas.agent import AgentDefinition, Learning, TaskType
from agentlightning.schemas.plain import stripped

_REASON_CHARS = 200
Name = Annotated[
    str,
    StringConstraints(min_length=1, max_length=255, pattern=r"^\s*[^\x00-\x1f\x7f/]+\s*$"),
    AfterValidator(stripped),
]


class ExperimentNotFoundError(NotFoundError):
    """There is no such experiment."""

    code = "EXPERIMENT_NOT_FOUND"


@dataclass(frozen=True)
class Assessment:
    """Whether an agent should learn, and why."""

    agent_id: int
    agent: str
    decision: Literal["learn", "wait", "monitor"]
    reason: str
    metric: str
    threshold: float
    score: float | None
    """Of its newest evaluation; `None` when there is none."""
    cases: int
    algorithm: str
    """What the decision matrix or its definition says."""
    optimizer: str | None
    """What would be run."""
    experiment_id: int | None = None
    """The experiment that was begun."""


class ExperimentService:
    """See the module.

    Attributes:
        weights: The models that can be trained; there while the platform runs.
    """

    def __init__(self, database: Database, agents: AgentService, home: Path) -> None:
        self._database = database
        self._agents = agents
        self._home = home
        self.weights: Weights | None = None

    async def create(
        self, name: str, algorithm: str, config: ExperimentConfig, agent: int | str, *, reason: str = ""
    ) -> Experiment:
        """An experiment that waits to be run.

        Raises:
            AlgorithmNotAvailableError: There is no such algorithm here, or the weights that it trains are not here.
            ConfigError: It does not have such a setting.
            AgentNotFoundError: There is no such agent.
            BadInputError: The agent's evaluation set is too small to learn from.
            ModelNotConfiguredError: There is no model that it could be run with.
            ConflictError: The name is taken, or the agent has an open experiment.
        """
        check_algorithm(algorithm, config)
        found = await self._agents.find(agent)
        base = await self._checked(found, algorithm, config)
        who = current().identity
        made = Experiment(
            name=name,
            algorithm=algorithm,
            config=config.as_kept(algorithm),
            status=CREATED,
            agent_id=found.id,
            agent_version=found.version,
            created_at=now(),
            created_by=None if who is None else who.user_id,
            reason=reason[:500],
            metrics={},
            checkpoints=[] if base is None else [{"kind": BASE, "at": now().isoformat(), **base.model_dump()}],
        )
        try:
            async with self._database.write() as session:
                busy = await repository.open_of(session, found.id)
                if busy is not None:
                    raise ConflictError(
                        f"{found.name} has an experiment that has not ended: {busy.name!r}.",
                        hint="Wait for it, or stop it.",
                        details={"experiment_id": busy.id},
                    )
                session.add(made)
                await session.flush()
                note(session, "experiment.create", name, agent=found.name, algorithm=algorithm)
        except IntegrityError as error:
            raise ConflictError(f"There is an experiment {name!r}.", hint="Take another name.") from error
        return made

    async def _checked(self, agent: Agent, algorithm: str, config: ExperimentConfig) -> Base | None:
        """See that there is something to learn from; the weights that it begins with, if it trains some."""
        definition = self._agents.definition_of(agent)
        if algorithm in WEIGHTS:
            base = await self._models.base_of(agent, definition, config.model)
            if base.style is None:
                check_judge(definition, await self._models.judge())
            await asyncio.to_thread(cases_of, definition, base.style, self._home)
            return base
        cases = len(definition.evaluation)
        if cases < MIN_CASES:
            raise BadInputError(
                f"{agent.name} has {cases} evaluation cases; {MIN_CASES} are needed to learn and to compare.",
                hint="Add cases to its definition.",
            )
        await self._models.reader_of(definition, config)  # whether it is still there is seen when it is run
        return None

    @property
    def _models(self) -> Weights:
        if self.weights is None:
            raise AlgorithmNotAvailableError("There are no models here.", hint="Start the whole platform: agl up")
        return self.weights

    async def get(self, number: int) -> Experiment:
        """One experiment.

        Raises:
            ExperimentNotFoundError: There is none.
        """
        async with self._database.read() as session:
            return _existing(await repository.by_id(session, number), number)

    async def page(
        self, before: int | None, limit: int, *, status: str | None = None, agent_id: int | None = None
    ) -> Sequence[Experiment]:
        """Newest first."""
        async with self._database.read() as session:
            return await repository.page(session, before, limit, status=status, agent_id=agent_id)

    async def stop(self, number: int) -> Experiment:
        """Ask it to end: one that waits ends at once, one that runs when its worker hears of it. Repeating is harmless.

        Raises:
            ExperimentNotFoundError: There is none.
        """
        async with self._database.write() as session:
            found = _existing(await repository.by_id(session, number, lock=True), number)
            if found.status == CREATED:
                found.status, found.end_time = STOPPED, now()
            if found.end_time is None and not found.stop_requested:
                found.stop_requested = True
            note(session, "experiment.stop", found.name, status=found.status)
        return found

    async def apply(self, number: int, *, force: bool = False) -> tuple[Experiment, Agent]:
        """Make what came out the agent's next version: a prompt, or a model that goes into production.

        Raises:
            ExperimentNotFoundError: There is none.
            ConflictError: It has not ended well, was applied, or the agent or its model was changed since it began.
            BadInputError: Held-out cases do not show that it is better, and `force` is not set.
        """
        found = await self.get(number)
        prompt, model = _best_prompt(found), result_in(found)
        if found.status != COMPLETED or (prompt is None and model is None) or found.agent_id is None:
            raise ConflictError(f"The experiment is {found.status} and has nothing new to apply.")
        if found.applied_version is not None:
            raise ConflictError(f"It was applied: version {found.applied_version} of the agent.")
        if not found.metrics.get("is_improved") and not force:
            raise BadInputError(
                f"Held-out cases do not show that the new {'prompt' if model is None else 'model'} is better.",
                hint="See metrics.comparisons; force=true applies it anyway.",
                details={"comparisons": found.metrics.get("comparisons", [])},
            )
        agent = await self._agents.find(found.agent_id)
        definition = self._agents.definition_of(agent)
        if model is not None:
            changed = await self._promoted(found, agent, definition, model)
        else:
            definition = definition.model_copy(update={"system_prompt": prompt})
            changed = await self._agents.change(
                agent.id, definition, expected=found.agent_version, reason=f"experiment {found.name}"
            )
        async with self._database.write() as session:
            kept = _existing(await repository.by_id(session, number, lock=True), number)
            kept.applied_version = changed.version
            note(session, "experiment.apply", kept.name, agent=changed.name, version=changed.version)
        return kept, changed

    async def _promoted(self, found: Experiment, agent: Agent, definition: AgentDefinition, ref: str) -> Agent:
        """The agent on its new model; repeated after a crash it goes on where it was."""
        base, reason = base_in(found), f"experiment {found.id} ({found.name})"[:_REASON_CHARS]
        assert base is not None
        if agent.version == found.agent_version + 1 and await self._is_by(agent, reason):
            return agent  # all but the note in the experiment was done
        if agent.version != found.agent_version:  # before anything changes; `change` looks again
            raise VersionConflictError(
                f"{agent.name} has version {agent.version} by now, not {found.agent_version}, which was trained.",
                hint="Begin a new experiment.",
            )
        await self._models.promote(base, ref, reason)
        after = definition.model_copy(update=on_weights(definition, base))
        try:
            return await self._agents.change(agent.id, after, expected=found.agent_version, reason=reason, anew=True)
        except ConflictError:
            agent = await self._agents.find(agent.id)
            if await self._is_by(agent, reason):  # somebody else has applied it at the same time
                return agent
            await self._models.take_back(base, ref, f"{reason}: the agent was changed meanwhile")
            raise

    async def _is_by(self, agent: Agent, reason: str) -> bool:
        _, version = await self._agents.version(agent.id, agent.version)
        return version.reason == reason

    async def roll_back(self, number: int) -> tuple[Experiment, Agent]:
        """Undo `apply`: the agent's definition from before is its next version, and its model from before answers.

        Raises:
            ExperimentNotFoundError: There is none.
            ConflictError: It was not applied, or the agent was changed since.
        """
        found = await self.get(number)
        if found.applied_version is None or found.agent_id is None:
            raise ConflictError("The experiment was not applied.", hint="There is nothing to roll back.")
        agent = await self._agents.find(found.agent_id)
        if agent.version != found.applied_version:
            raise VersionConflictError(
                f"{agent.name} has version {agent.version} by now, not {found.applied_version}.",
                hint="POST /api/v2/agents/{id}/rollback goes back to any version.",
            )
        base, ref = base_in(found), result_in(found)
        if base is not None and ref is not None:
            await self._models.take_back(base, ref, f"rollback of experiment {found.name}")
        changed = await self._agents.roll_back(agent.id, found.agent_version, expected=found.applied_version)
        async with self._database.write() as session:
            kept = _existing(await repository.by_id(session, number, lock=True), number)
            gone = {"kind": "rolled_back", "at": now().isoformat(), "version": changed.version}
            kept.checkpoints = [*kept.checkpoints, gone]
            note(session, "experiment.rollback", kept.name, agent=changed.name, version=changed.version)
        return kept, changed

    async def assess(self, agent: Agent, task_type: TaskType | None = None) -> Assessment:
        """Whether it should learn now, by its newest evaluation and the decision matrix.

        Args:
            agent: Who.
            task_type: A line of the matrix to go by instead of the agent's own settings.
        """
        definition = self._agents.definition_of(agent)
        learning = definition.learning
        if task_type is not None and task_type != learning.task_type:
            learning = Learning.model_validate({"task_type": task_type, "min_cases": learning.min_cases})
        async with self._database.read() as session:
            measured = [e for e in await evaluations(session, agent.id, None, 20) if e.score is not None]
            busy = await repository.open_of(session, agent.id)
            tried = await repository.page(session, None, 1, status=COMPLETED, agent_id=agent.id)
        newest = measured[0] if measured else None
        score = None if newest is None else newest.score
        decision, reason = "wait", ""
        if learning.algorithm == "monitor":
            decision, reason = "monitor", "the decision matrix says: monitor only"
        elif agent.status != ACTIVE:
            reason = f"it is {agent.status}"
        elif busy is not None:
            reason = f"experiment {busy.name!r} has not ended"
        elif newest is None or score is None:
            reason = "it has not been evaluated: POST /api/v2/agents/{id}/evaluate"
        elif newest.version != agent.version:
            reason = f"version {agent.version} has not been evaluated, only {newest.version}"
        elif tried and tried[0].agent_version == agent.version:
            reason = f"experiment {tried[0].name!r} has tried this version"
        elif score >= learning.threshold:
            reason = f"{learning.metric} is {score:.3g}, which is enough ({learning.threshold:g})"
        elif newest.cases < learning.min_cases:
            reason = f"{newest.cases} scored cases are too few to decide by; it asks for {learning.min_cases}"
        else:
            decision = "learn"
            reason = f"{learning.metric} is {score:.3g}, below {learning.threshold:g}"
        return Assessment(
            agent_id=agent.id,
            agent=agent.name,
            decision=decision,
            reason=reason,
            metric=learning.metric,
            threshold=learning.threshold,
            score=score,
            cases=0 if newest is None else newest.cases,
            algorithm=learning.algorithm,
            optimizer=None if learning.algorithm == "monitor" else await self._optimizer(agent, definition, learning),
        )

    async def _optimizer(self, agent: Agent, definition: AgentDefinition, learning: Learning) -> str:
        """Weights where it says so and they are here, and where its prompt is not what its model reads."""
        if self.weights is None or (learning.algorithm != "grpo" and definition.fallback is None):
            return "auto"
        base = await self.weights.trainable(agent, definition)
        return "grpo" if base is not None and (learning.algorithm == "grpo" or base.style is not None) else "auto"

    async def trigger(
        self, agent: Agent, config: ExperimentConfig, *, task_type: TaskType | None = None, force: bool = False
    ) -> tuple[Assessment, Experiment | None]:
        """Begin an experiment if the agent should learn and has a model to, or if `force` says so.

        Raises:
            ConflictError: With `force`: it has an open experiment.
            ModelNotConfiguredError: With `force`: it has no model.
        """
        found = await self.assess(agent, task_type)
        if found.decision != "learn" and not force:
            return found, None
        name = f"auto-{agent.name}-v{agent.version}-{now():%Y%m%d%H%M%S}"
        reason = found.reason if found.decision == "learn" else f"asked for; {found.reason}"
        optimizer = found.optimizer or "auto"
        fitting = config.without_budgets() if optimizer in WEIGHTS else config
        try:
            return found, await self.create(name, optimizer, fitting, agent.id, reason=reason)
        except ModelNotConfiguredError as error:
            if force:
                raise
            return replace(found, decision="wait", reason=f"{found.reason}, but: {error.message}"), None

    async def owner(self, experiment: Experiment) -> Identity | None:
        """Who began it, as that user is now; `None` if there is none any more."""
        from agentlightning.platform.auth.repository import user_by_id

        if experiment.created_by is None:
            return None
        async with self._database.read() as session:
            try:
                user = await user_by_id(session, experiment.created_by)
            except NotFoundError:
                return None
        return None if user.disabled else Identity(user.id, user.username, user.role)


def _best_prompt(experiment: Experiment) -> str | None:
    for checkpoint in reversed(experiment.checkpoints):
        prompts = checkpoint.get("prompts", {})
        if SYSTEM_PROMPT in prompts:
            return str(prompts[SYSTEM_PROMPT])
    return None


def _existing(found: Experiment | None, number: int) -> Experiment:
    if found is None:
        raise ExperimentNotFoundError(
            f"There is no experiment {number}.", hint="GET /api/v2/rl/experiments lists them."
        )
    return found
