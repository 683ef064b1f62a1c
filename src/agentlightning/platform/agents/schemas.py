"""What the agents' endpoints take and give. Fields that are not named here are refused, not ignored."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StringConstraints

from agentlightning.kit.stats import wilson_interval
from agentlightning.platform.agents.evaluations import is_overdue
from agentlightning.platform.agents.models import Agent, AgentEvaluation, AgentVersion
from agentlightning.schemas.agent import AgentDefinition, Slug
from agentlightning.schemas.plain import Json, stripped

Version = Annotated[int, Field(ge=1, le=2**31 - 1)]
Status = Literal["active", "paused"]
Name = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]*$")]
Description = Annotated[str, StringConstraints(min_length=10, max_length=8_000), AfterValidator(stripped)]


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class AgentIn(_In):
    """A new agent."""

    definition: AgentDefinition


class AgentChange(_In):
    """The whole definition anew, or some of its fields (`changes`), or the status.

    A definition is changed from a version: the one in `version`, or in the header `If-Match`.
    """

    definition: AgentDefinition | None = None
    changes: Annotated[dict[Slug, Json], Field(min_length=1, max_length=50)] | None = None
    status: Status | None = None
    version: Version | None = None


class RollbackIn(_In):
    """Back to an earlier version, or (`shipped`) to what comes with the program."""

    to: Version | None = None
    shipped: StrictBool = False
    version: Version | None = None
    """The one that it has now, as far as the caller knows."""


class EvaluateIn(_In):
    """Which part of the agent's evaluation set to run."""

    split: Literal["train", "held_out", "all"] = "all"
    limit: Annotated[int, Field(ge=1, le=1_000)] | None = None


class DesignIn(_In):
    """What the agent shall do, in words."""

    description: Description
    name: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9]*(_[a-z0-9]+)*$", max_length=64)] | None = None
    """What it shall be called; else the model chooses."""
    try_input: Annotated[str, StringConstraints(min_length=1, max_length=8_000)] | None = None
    """What to try it on; else its own first case."""
    save: StrictBool = False
    """Keep it, if it is valid."""


class AgentSummary(BaseModel):
    """An agent in a list."""

    id: int
    name: str
    type: str
    description: str | None
    status: str
    version: int
    role: str
    capabilities: list[str]
    tools: list[str]
    model: str | None
    shipped: bool
    """It is as it came with the program."""
    created_at: datetime
    updated_at: datetime
    last_activity: datetime | None


class AgentOut(AgentSummary):
    """An agent with its definition."""

    created_by: str
    generation: int
    restarted_at: datetime | None
    performance_metrics: dict[str, Any]
    definition: dict[str, Any]


class AgentsPage(BaseModel):
    """Agents by number; `next` is the next page's `after`."""

    agents: list[AgentSummary]
    next: int | None


class VersionOut(BaseModel):
    """A definition that an agent had."""

    version: int
    reason: str
    created_at: datetime
    created_by: str
    current: bool


class FullVersionOut(VersionOut):
    """The same with the definition."""

    definition: dict[str, Any]


class VersionsPage(BaseModel):
    """Versions, newest first; `next` is the next page's `before`."""

    versions: list[VersionOut]
    next: int | None


class StatusOut(BaseModel):
    """How an agent is."""

    id: int
    name: str
    type: str
    status: str
    version: int
    generation: int
    last_activity: datetime | None
    workload: dict[str, Any]
    """Tasks under way and waiting, as far as they are known."""


class StatusOverview(BaseModel):
    """How all agents are."""

    total: int
    by_status: dict[str, int]
    by_type: dict[str, int]
    agents: list[StatusOut]


class EvaluationOut(BaseModel):
    """One evaluation. `score` is the mean over the cases that could be told; `None` where none could."""

    id: int
    agent: str
    version: int
    split: str
    status: str
    """`running`, `completed`, `failed`, or `interrupted` when it could not be gone on with: its
    processes died again and again, the agent was changed meanwhile, or whose evaluation it was is gone."""
    started_at: datetime
    finished_at: datetime | None
    cases: int
    told: int
    """Cases with a verdict."""
    passed: int | None
    score: float | None
    interval: tuple[float, float] | None
    """Of the share that passed, 95 % (Wilson)."""
    results: list[dict[str, Any]]
    created_by: str


class EvaluationsPage(BaseModel):
    """Evaluations, newest first; `next` is the next page's `before`."""

    evaluations: list[EvaluationOut]
    next: int | None


class MetricsOut(BaseModel):
    """How well an agent does."""

    agent: str
    version: int
    metrics: dict[str, Any]
    """As kept with the agent."""
    tasks: dict[str, Any] | None
    """Counts and times of its tasks."""
    evaluations: list[EvaluationOut]
    """The newest of each version, newest first."""
    learning: dict[str, Any]
    """When it would learn, and whether the newest evaluation says that it should."""


class DesignOut(BaseModel):
    """A drafted agent."""

    definition: dict[str, Any]
    drafts: int
    """How often the model was asked."""
    repaired: list[list[str]]
    """What was wrong with each draft before this one."""
    dry_run: dict[str, Any]
    """Its answer to one task, without tools."""
    saved: bool
    agent: AgentOut | None


def summary_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """A list's entry, as `AgentSummary` says, of a row of `summaries`."""
    return {
        "id": row["id"],
        "name": row["name"],
        "type": row["type"],
        "description": row["description"],
        "status": row["status"],
        "version": row["version"],
        "role": row["role"] or "",
        "capabilities": row["capabilities"] or [],
        "tools": row["tools"] or [],
        "model": row["model"],
        "shipped": row["builtin"] is not None,
        "created_at": _time(row["created_at"]),
        "updated_at": _time(row["updated_at"]),
        "last_activity": _time(row["last_activity"]),
    }


def _time(value: datetime | None) -> str | None:
    return None if value is None else value.isoformat().replace("+00:00", "Z")


def agent_out(agent: Agent) -> AgentOut:
    """An agent with everything."""
    config = agent.config
    return AgentOut(
        id=agent.id,
        name=agent.name,
        type=agent.type,
        description=agent.description,
        status=agent.status,
        version=agent.version,
        role=config.get("role", ""),
        capabilities=config.get("capabilities", []),
        tools=config.get("tools", []),
        model=config.get("model"),
        shipped=agent.builtin is not None,
        created_at=agent.created_at,
        updated_at=agent.updated_at,
        last_activity=agent.last_activity,
        created_by=agent.created_by,
        generation=agent.generation,
        restarted_at=agent.restarted_at,
        performance_metrics=agent.performance_metrics,
        definition=config,
    )


def version_fields(agent: Agent, version: AgentVersion) -> dict[str, Any]:
    """The fields of a version."""
    return {
        "version": version.version,
        "reason": version.reason,
        "created_at": version.created_at,
        "created_by": version.created_by,
        "current": version.version == agent.version,
    }


def evaluation_out(agent: Agent, found: AgentEvaluation, *, results: bool = True) -> EvaluationOut:
    """An evaluation; lists leave the single results out."""
    told = sum(result.get("passed") is not None for result in found.results)
    return EvaluationOut(
        id=found.id,
        agent=agent.name,
        version=found.version,
        split=found.split,
        status="interrupted" if is_overdue(found) else found.status,
        started_at=found.started_at,
        finished_at=found.finished_at,
        cases=found.cases,
        told=told,
        passed=found.passed,
        score=found.score,
        interval=None if found.passed is None or not told else wilson_interval(found.passed, told),
        results=found.results if results else [],
        created_by=found.created_by,
    )
