"""What the API tells of how things are: evaluations, metrics, decisions, imports, the system. Extras are kept."""

from __future__ import annotations

from typing import Any

from agentlightning.client.models import Answer, Experiment, FullAgent


class AgentState(Answer):
    """How an agent is; `workload` is what it has to do, as far as that is known. Times are ISO 8601, UTC."""

    id: int
    name: str
    type: str
    status: str
    version: int
    generation: int
    last_activity: str | None = None
    workload: dict[str, Any]


class AgentsStatus(Answer):
    """How all agents are."""

    total: int
    by_status: dict[str, int]
    by_type: dict[str, int]
    agents: list[AgentState]


class AgentVersion(Answer):
    """A definition that an agent had. Times are ISO 8601, UTC."""

    version: int
    reason: str
    created_at: str
    created_by: str
    current: bool


class FullAgentVersion(AgentVersion):
    """The same with the definition."""

    definition: dict[str, Any]


class Evaluation(Answer):
    """An agent on its evaluation set. `score` is the mean over the `told` cases, `None` where none could be told.

    `interval` is that of the share that passed (95 %, Wilson). `results` is empty in lists.
    """

    id: int
    agent: str
    version: int
    split: str
    status: str
    started_at: str
    finished_at: str | None = None
    cases: int
    told: int
    passed: int | None = None
    score: float | None = None
    interval: tuple[float, float] | None = None
    results: list[dict[str, Any]]
    created_by: str

    @property
    def is_over(self) -> bool:
        """Whether it has ended, well or not."""
        return self.status != "running"


class AgentMetrics(Answer):
    """How well an agent does: its tasks, the newest evaluation of each version, and whether it should learn."""

    agent: str
    version: int
    metrics: dict[str, Any]
    tasks: dict[str, Any] | None = None
    evaluations: list[Evaluation]
    learning: dict[str, Any]


class Design(Answer):
    """A drafted agent: what was wrong with earlier drafts, its answer to one task, and the agent if it was saved."""

    definition: dict[str, Any]
    drafts: int
    repaired: list[list[str]]
    dry_run: dict[str, Any]
    saved: bool
    agent: FullAgent | None = None


class Decision(Answer):
    """Whether an agent should learn (`learn`, `wait` or `monitor`), why, and the experiment if one was begun."""

    agent_id: int
    agent: str
    decision: str
    reason: str
    metric: str
    threshold: float
    score: float | None = None
    cases: int
    algorithm: str
    optimizer: str | None = None
    experiment_id: int | None = None


class AutoStatus(Answer):
    """What runs and waits, and how each active agent stands."""

    algorithms: list[str]
    running: list[Experiment]
    waiting: int
    agents: list[Decision]


class ItemVersion(Answer):
    """What an item of knowledge was. Times are Unix seconds."""

    version: int
    title: str
    content: str
    category: str | None = None
    tags: list[str]
    metadata: dict[str, Any]
    created_at: float
    created_by: str


class Import(Answer):
    """An import (`running`, `done`, `failed`, `interrupted`) and what it did; `id` is that of one in the background."""

    id: int | None = None
    status: str
    report: dict[str, Any]

    @property
    def is_over(self) -> bool:
        """Whether it has ended, well or not."""
        return self.status != "running"


class Component(Answer):
    """A part of the platform: `up`, `degraded`, `down` or `off`, why, and since when."""

    state: str
    kind: str
    reason: str = ""
    since: str | None = None


class Process(Answer):
    """The worker that answered. Times are Unix seconds."""

    version: str
    python: str
    pid: int
    started_at: float
    uptime_s: float


class Resources(Answer):
    """Of the machine, in percent, and of the worker."""

    cpu_percent: float
    memory_percent: float
    disk_percent: float
    process_memory_mb: float


class ModelState(Answer):
    """A model that is loaded there, or could be."""

    name: str
    state: str
    version: str | None = None


class SystemStatus(Answer):
    """State of every part, of the worker that answered and of its models; `targets` are all names of models."""

    status: str
    components: dict[str, Component]
    process: Process
    resources: Resources
    models: list[ModelState]
    targets: list[str]


class Counts(Answer):
    """How many there are."""

    total: int
    by_status: dict[str, int] | None = None


class SystemStats(Answer):
    """How much there is, by name (`users`, `agents`, `tasks` ...), in the store, and through that worker's gateway."""

    platform: dict[str, Counts]
    store: dict[str, Any]
    gateway: dict[str, Any]


class SystemConfig(Answer):
    """What was set while the platform ran (`None` is the environment's value), and what is in force."""

    version: int
    config: dict[str, Any]
    in_force: dict[str, Any]


class Secret(Answer):
    """What is told of a stored secret. Times are ISO 8601, UTC."""

    name: str
    updated_at: str
    updated_by: str
    key_id: str
    is_readable: bool


class Pool(Answer):
    """The queue of tasks and the workers that take from it; `size` and others are of the worker that answered."""

    queued: int
    running: int
    processes: dict[str, Any]
    agents: list[dict[str, Any]]
    worker: str
    size: int
    min_size: int
    max_size: int
    max_per_agent: int
