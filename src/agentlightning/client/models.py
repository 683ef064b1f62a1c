"""What the API answers, as typed data. Fields that a newer platform adds are kept as extras."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Answer(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(extra="allow")


class User(Answer):
    """A user. Times are Unix seconds."""

    user_id: str
    username: str
    role: str
    permissions: list[str]
    disabled: bool
    must_change_password: bool
    created_at: float
    last_login_at: float | None = None


class NewUser(User):
    """A user with the one-time password made for it, if one was."""

    one_time_password: str | None = None


class ApiKey(Answer):
    """An API key, without the key."""

    id: int
    name: str
    prefix: str
    permissions: list[str] | None = None
    created_at: float
    expires_at: float | None = None
    used_at: float | None = None


class NewApiKey(ApiKey):
    """An API key with the key itself, which is shown once."""

    key: str


class AuditEntry(Answer):
    """Who did what, when."""

    id: int
    at: float
    actor: str
    action: str
    target: str
    request_id: str
    address: str
    details: dict[str, Any]


class Agent(Answer):
    """An agent in a list. Times are ISO 8601, UTC."""

    id: int
    name: str
    type: str
    description: str | None = None
    status: str
    version: int
    role: str
    capabilities: list[str]
    tools: list[str]
    model: str | None = None
    shipped: bool
    created_at: str
    updated_at: str
    last_activity: str | None = None


class FullAgent(Agent):
    """An agent with its definition."""

    created_by: str
    generation: int
    restarted_at: str | None = None
    performance_metrics: dict[str, Any]
    definition: dict[str, Any]


class TaskError(Answer):
    """Why a task failed, or why its last attempt did."""

    code: str
    message: str
    hint: str


class Task(Answer):
    """A task: `pending`, `running`, `completed`, `failed` or `cancelled`. Times are ISO 8601, UTC."""

    task_id: int
    status: str
    task: str
    agent_id: int
    agent: str
    agent_version: int | None = None
    priority: str
    urgency: int
    context: dict[str, Any]
    session_id: str | None = None
    attempts: int
    created_at: str
    started_at: str | None = None
    completed_at: str | None = None
    execution_time_ms: int | None = None
    result: dict[str, Any] | None = None
    error: TaskError | None = None
    rollout_id: str | None = None
    owner_id: str

    @property
    def is_over(self) -> bool:
        """Whether it has ended, well or not."""
        return self.status in ("completed", "failed", "cancelled")

    @property
    def output(self) -> str | None:
        """The agent's answer; `None` while there is none."""
        return None if self.result is None else self.result.get("output")


class Item(Answer):
    """An item of knowledge. Times are Unix seconds; `truncated` says that `content` goes on."""

    id: int
    title: str
    content: str
    truncated: bool
    category: str | None = None
    tags: list[str]
    metadata: dict[str, Any]
    source: str | None = None
    version: int
    created_at: float
    updated_at: float
    created_by: str


class Experiment(Answer):
    """An agent's improvement. Times are ISO 8601, UTC."""

    id: int
    name: str
    algorithm: str
    config: dict[str, Any]
    status: str
    agent_id: int | None = None
    agent_version: int
    reason: str
    start_time: str | None = None
    end_time: str | None = None
    created_at: str
    metrics: dict[str, Any]
    checkpoints: list[dict[str, Any]]
    error_message: str | None = None
    stop_requested: bool
    applied_version: int | None = None

    @property
    def is_over(self) -> bool:
        """Whether it has ended, well or not."""
        return self.status in ("completed", "failed", "stopped")


class KeptMemory(Answer):
    """Something remembered; a recalled one has `score` and `why`. Times are Unix seconds."""

    id: int
    text: str
    kind: str | None = None
    session_id: str | None = None
    score: float | None = None
    why: dict[str, Any] | None = None


class Conversation(Answer):
    """A session; `entries` (`position`, `type`, `content`) only where one was asked for."""

    session_id: str
    messages: int
    summary: str
    entries: list[dict[str, Any]] | None = None


class ToolInfo(Answer):
    """A tool: whether it works there, why not, and whether you may use it."""

    name: str
    description: str
    parameters: dict[str, Any]
    available: bool
    reason: str
    allowed: bool


class ToolResult(Answer):
    """What a tool has answered."""

    tool: str
    text: str
    data: Any = None
    is_error: bool
