"""Experiments over the database: begun, listed, stopped, applied; and whether an agent should learn now.

Knows no processes; `supervisor` runs what waits here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from sqlalchemy.exc import IntegrityError

from agentlightning.kit.errors import AgentLightningError, BadInputError, ConfigError, ConflictError, NotFoundError
from agentlightning.platform.agents.models import ACTIVE, Agent
from agentlightning.platform.agents.repository import evaluations
from agentlightning.platform.agents.service import AgentService
from agentlightning.platform.auth.repository import note
from agentlightning.platform.columns import now
from agentlightning.platform.context import Identity, current
from agentlightning.platform.database import Database
from agentlightning.platform.learning import repository
from agentlightning.platform.learning.models import COMPLETED, CREATED, STOPPED, Experiment
from agentlightning.schemas.agent import Learning, TaskType
from agentlightning.schemas.plain import stripped

ALGORITHMS = ("auto", "apo", "gepa", "fewshot", "edit")
"""Those that improve the agents of the platform: their prompts."""
_ELSEWHERE = {
    "grpo": "weights are trained with `agl train`",
    "ppo": "policies are not trained on the platform",
    "dqn": "policies are not trained on the platform",
    "sac": "policies are not trained on the platform",
}
SYSTEM_PROMPT = "system_prompt"
_MIN_CASES = 8

Name = Annotated[
    str,
    StringConstraints(min_length=1, max_length=255, pattern=r"^\s*[^\x00-\x1f\x7f/]+\s*$"),
    AfterValidator(stripped),
]


class AlgorithmNotAvailableError(ConfigError):
    """The platform does not run this algorithm."""

    code = "ALGORITHM_NOT_AVAILABLE"
    status = 422


class ExperimentNotFoundError(NotFoundError):
    """There is no such experiment."""

    code = "EXPERIMENT_NOT_FOUND"


class ExperimentConfig(BaseModel):
    """How an experiment is run."""

    model_config = ConfigDict(extra="forbid", strict=True)

    budget_calls: int = Field(default=300, ge=1, le=1_000_000)
    """Model calls at most, those of the comparison at the end included."""
    budget_tokens: Annotated[int, Field(ge=1)] | None = None
    model: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = None
    """The agent's model during the experiment; by default its own, or the platform's."""
    proposer_model: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = None
    """Writes new prompts; by default the agent's model."""
    seed: int = Field(default=0, ge=0, le=2**31)
    settings: dict[str, int | float | bool | str] = Field(
        default_factory=dict[str, int | float | bool | str], max_length=30
    )
    """Settings of the optimizer, e.g. `{"beam_width": 2}`."""


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
    """See the module."""

    def __init__(self, database: Database, agents: AgentService) -> None:
        self._database = database
        self._agents = agents

    async def create(
        self, name: str, algorithm: str, config: ExperimentConfig, agent: int | str, *, reason: str = ""
    ) -> Experiment:
        """An experiment that waits to be run.

        Raises:
            AlgorithmNotAvailableError: There is no such algorithm here.
            ConfigError: It does not have such a setting.
            AgentNotFoundError: There is no such agent.
            BadInputError: The agent's evaluation set is too small to learn from.
            ConflictError: The name is taken, or the agent has an open experiment.
        """
        check_algorithm(algorithm, config)
        found = await self._agents.find(agent)
        cases = len(self._agents.definition_of(found).evaluation)
        if cases < _MIN_CASES:
            raise BadInputError(
                f"{found.name} has {cases} evaluation cases; {_MIN_CASES} are needed to learn and to compare.",
                hint="Add cases to its definition.",
            )
        who = current().identity
        made = Experiment(
            name=name,
            algorithm=algorithm,
            config=config.model_dump(exclude_none=True),
            status=CREATED,
            agent_id=found.id,
            agent_version=found.version,
            created_at=now(),
            created_by=None if who is None else who.user_id,
            reason=reason[:500],
            metrics={},
            checkpoints=[],
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
        """Make the best prompt the agent's next version.

        Raises:
            ExperimentNotFoundError: There is none.
            ConflictError: It has not ended well, was applied, or the agent was changed since it began.
            BadInputError: Held-out cases do not show that the prompt is better, and `force` is not set.
        """
        found = await self.get(number)
        prompt = _best_prompt(found)
        if found.status != COMPLETED or prompt is None or found.agent_id is None:
            raise ConflictError(f"The experiment is {found.status} and has no new prompt to apply.")
        if found.applied_version is not None:
            raise ConflictError(f"It was applied: version {found.applied_version} of the agent.")
        if not found.metrics.get("is_improved") and not force:
            raise BadInputError(
                "Held-out cases do not show that the new prompt is better.",
                hint="See metrics.comparisons; force=true applies it anyway.",
                details={"comparisons": found.metrics.get("comparisons", [])},
            )
        agent = await self._agents.find(found.agent_id)
        definition = self._agents.definition_of(agent).model_copy(update={"system_prompt": prompt})
        changed = await self._agents.change(
            agent.id, definition, expected=found.agent_version, reason=f"experiment {found.name}"
        )
        async with self._database.write() as session:
            kept = _existing(await repository.by_id(session, number, lock=True), number)
            kept.applied_version = changed.version
            note(session, "experiment.apply", kept.name, agent=changed.name, version=changed.version)
        return kept, changed

    async def assess(self, agent: Agent, task_type: TaskType | None = None) -> Assessment:
        """Whether it should learn now, by its newest evaluation and the decision matrix.

        Args:
            agent: Who.
            task_type: A line of the matrix to go by instead of the agent's own settings.
        """
        learning = self._agents.definition_of(agent).learning
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
            optimizer=None if learning.algorithm == "monitor" else "auto",
        )

    async def trigger(
        self, agent: Agent, config: ExperimentConfig, *, task_type: TaskType | None = None, force: bool = False
    ) -> tuple[Assessment, Experiment | None]:
        """Begin an experiment if the agent should learn, or if `force` says so.

        Raises:
            ConflictError: With `force`: it has an open experiment.
        """
        found = await self.assess(agent, task_type)
        if found.decision != "learn" and not force:
            return found, None
        name = f"auto-{agent.name}-v{agent.version}-{now():%Y%m%d%H%M%S}"
        reason = found.reason if found.decision == "learn" else f"asked for; {found.reason}"
        return found, await self.create(name, found.optimizer or "auto", config, agent.id, reason=reason)

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


def check_algorithm(name: str, config: ExperimentConfig) -> None:
    """Whether an experiment with it could begin.

    Raises:
        AlgorithmNotAvailableError: There is no such algorithm here.
        ConfigError: It does not have such a setting.
    """
    if name not in ALGORITHMS:
        why = f": {_ELSEWHERE[name]}" if name in _ELSEWHERE else ""
        raise AlgorithmNotAvailableError(
            f"The platform does not run {name!r}{why}.",
            hint=f"It runs: {', '.join(ALGORITHMS)}.",
            details={"algorithms": list(ALGORITHMS)},
        )
    from agentlightning.algorithm.prompt import Budget, make_optimizer

    try:
        make_optimizer(name, budget=Budget(calls=config.budget_calls), **config.settings)
    except AgentLightningError as error:
        raise ConfigError(error.message, hint=error.hint) from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"A setting of {name} cannot be used: {error}.") from error


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
