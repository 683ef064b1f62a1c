"""Experiments over HTTP, and whether agents should learn."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Path, Query, Request
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, StrictBool, StringConstraints
from starlette.responses import Response

from agentlightning.platform.agents.models import ACTIVE, Agent
from agentlightning.platform.api.schemas import Page
from agentlightning.platform.envelope import Success, answer
from agentlightning.platform.learning.algorithms import ALGORITHMS, ExperimentConfig
from agentlightning.platform.learning.models import CREATED, RUNNING, Experiment
from agentlightning.platform.learning.service import Assessment, Name
from agentlightning.platform.learning.weights import base_in, result_in
from agentlightning.platform.state import platform_of
from agentlightning.schemas.agent import TaskType

_AGENTS_AT_ONCE = 500
AgentRef = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]+$")] | int
Number = Annotated[int, Path(ge=1, le=2**62)]


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class ExperimentIn(_In):
    """An experiment: which agent is to be improved, and how.

    `auto`, `apo`, `gepa`, `fewshot` and `edit` improve its prompt. `grpo` (on its training cases) and `sft` (on its
    well-rated tasks) train its model, which has to be served here: the embedded one, a directory, or a registered one.
    """

    name: Name
    algorithm: Annotated[str, StringConstraints(min_length=1, max_length=50)] = "auto"
    """One of those that auto-status lists."""
    agent_id: Annotated[AgentRef, Field(validation_alias=AliasChoices("agent_id", "agent"))]
    """Number or name. `agent` means the same."""
    config: ExperimentConfig = Field(default_factory=ExperimentConfig)


class TriggerIn(_In):
    """Which agent to look at; all of them without one. `force` begins an experiment whatever was measured."""

    agent_id: AgentRef | None = None
    """Number or name."""
    task_type: TaskType | None = None
    """Decide by this line of the decision matrix; without an agent, for all agents of that kind of task."""
    force: StrictBool = False
    config: ExperimentConfig = Field(default_factory=ExperimentConfig)


class ApplyIn(_In):
    """`force` applies what held-out cases do not show to be better."""

    force: StrictBool = False


class ExperimentOut(BaseModel):
    """An experiment."""

    id: int
    name: str
    algorithm: str
    config: dict[str, Any]
    status: str
    agent_id: int | None
    agent_version: int
    reason: str
    start_time: datetime | None
    end_time: datetime | None
    created_at: datetime
    metrics: dict[str, Any]
    checkpoints: list[dict[str, Any]]
    error_message: str | None
    stop_requested: bool
    applied_version: int | None


class ExperimentsPage(Page):
    """Experiments, newest first."""

    experiments: list[ExperimentOut]


class TriggerOut(BaseModel):
    """What was decided for each agent."""

    triggered: int
    decisions: list[Assessment]


class AutoStatusOut(BaseModel):
    """What waits and runs, and how each agent stands."""

    algorithms: list[str]
    running: list[ExperimentOut]
    waiting: int
    agents: list[Assessment]


class ApplyOut(BaseModel):
    """The agent's new version. `model` is what it runs on from now on, where weights were trained."""

    experiment: ExperimentOut
    agent_id: int
    agent: str
    version: int
    model: str | None = None


_Status = Literal["created", "running", "completed", "failed", "stopped"]


async def create(body: ExperimentIn, request: Request) -> Response:
    """Begin an experiment; it runs as soon as a worker is free."""
    made = await platform_of(request.app.state).experiments.create(
        body.name, body.algorithm, body.config, body.agent_id
    )
    return answer(_out(made), "Waiting to be run.", status=201)


async def list_all(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    before: Annotated[int | None, Query(ge=1, le=2**62)] = None,
    status: _Status | None = None,
    agent: Annotated[str | None, Query(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]+$")] = None,
) -> Response:
    """Experiments, newest first; `next` is the next page's `before`."""
    platform = platform_of(request.app.state)
    agent_id = None if agent is None else (await platform.agents.find(agent)).id
    found = await platform.experiments.page(before, limit + 1, status=status, agent_id=agent_id)
    more = found[limit - 1].id if len(found) > limit else None
    return answer(ExperimentsPage(experiments=[_out(each) for each in found[:limit]], next=more))


async def get(experiment_id: Number, request: Request) -> Response:
    """One experiment: how far it is (`metrics.progress`), what came out of it."""
    return answer(_out(await platform_of(request.app.state).experiments.get(experiment_id)))


async def stop(experiment_id: Number, request: Request) -> Response:
    """End it; what was found until then stays in its run."""
    return answer(_out(await platform_of(request.app.state).experiments.stop(experiment_id)), "It will end soon.")


async def apply(experiment_id: Number, request: Request, body: ApplyIn | None = None) -> Response:
    """Make what came out the agent's next version: the best prompt, or the trained model, put into production."""
    experiments = platform_of(request.app.state).experiments
    found, agent = await experiments.apply(experiment_id, force=body is not None and body.force)
    return _changed(found, agent, result_in(found))


async def roll_back(experiment_id: Number, request: Request) -> Response:
    """Undo applying it: the agent's definition from before is its next version, on its model from before."""
    found, agent = await platform_of(request.app.state).experiments.roll_back(experiment_id)
    base = base_in(found)
    return _changed(found, agent, None if base is None else base.version if base.is_own else base.model)


def _changed(found: Experiment, agent: Agent, model: str | None) -> Response:
    made = ApplyOut(experiment=_out(found), agent_id=agent.id, agent=agent.name, version=agent.version, model=model)
    return answer(made, f"{agent.name} is at version {agent.version}.")


async def trigger(request: Request, body: TriggerIn | None = None) -> Response:
    """Look whether agents should learn, and begin experiments for those that should."""
    platform = platform_of(request.app.state)
    asked = body or TriggerIn()
    one = None if asked.agent_id is None else await platform.agents.find(asked.agent_id)
    agents = [one] if one is not None else await platform.agents.page(0, _AGENTS_AT_ONCE, status=ACTIVE)
    decisions: list[Assessment] = []
    for agent in agents:
        if one is None and asked.task_type not in (None, platform.agents.definition_of(agent).learning.task_type):
            continue
        found, made = await platform.experiments.trigger(
            agent, asked.config, task_type=asked.task_type, force=asked.force and one is not None
        )
        decisions.append(found if made is None else replace(found, experiment_id=made.id))
    triggered = sum(decision.experiment_id is not None for decision in decisions)
    return answer(TriggerOut(triggered=triggered, decisions=decisions), f"{triggered} experiments were begun.")


async def auto_status(request: Request) -> Response:
    """What waits and runs, and for each active agent whether it should learn and why."""
    platform = platform_of(request.app.state)
    agents: list[Agent] = await platform.agents.page(0, _AGENTS_AT_ONCE, status=ACTIVE)
    found = AutoStatusOut(
        algorithms=list(ALGORITHMS),
        running=[_out(each) for each in await platform.experiments.page(None, 100, status=RUNNING)],
        waiting=len(await platform.experiments.page(None, 500, status=CREATED)),
        agents=[await platform.experiments.assess(agent) for agent in agents],
    )
    return answer(found)


def add_routes(app: FastAPI) -> None:
    """Add them."""
    base = "/api/v2/rl"
    path, one = f"{base}/experiments", f"{base}/experiments/{{experiment_id}}"
    made = Success[ExperimentOut]
    tags: list[Any] = ["rl"]
    app.add_api_route(f"{base}/auto-trigger", trigger, methods=["POST"], response_model=Success[TriggerOut], tags=tags)
    app.add_api_route(
        f"{base}/auto-status", auto_status, methods=["GET"], response_model=Success[AutoStatusOut], tags=tags
    )
    app.add_api_route(path, list_all, methods=["GET"], response_model=Success[ExperimentsPage], tags=tags)
    app.add_api_route(path, create, methods=["POST"], response_model=made, status_code=201, tags=tags)
    app.add_api_route(one, get, methods=["GET"], response_model=made, tags=tags)
    app.add_api_route(f"{one}/stop", stop, methods=["POST"], response_model=made, tags=tags)
    app.add_api_route(f"{one}/apply", apply, methods=["POST"], response_model=Success[ApplyOut], tags=tags)
    app.add_api_route(f"{one}/rollback", roll_back, methods=["POST"], response_model=Success[ApplyOut], tags=tags)


def _out(found: Experiment) -> ExperimentOut:
    return ExperimentOut.model_validate(found, from_attributes=True)
