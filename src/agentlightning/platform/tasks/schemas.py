"""What the tasks' endpoints take and give. Fields that are not named here are refused, not ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StringConstraints,
    field_validator,
)

from agentlightning.platform.envelope import Success
from agentlightning.platform.tasks.models import Task, TaskRow
from agentlightning.schemas.plain import plain_json, plain_text, stripped

_NO_CONTROLS = r"^[^\x00-\x1f\x7f]*$"
_NO_NUL = r"^[^\x00]*$"
Text = Annotated[
    str,
    StringConstraints(min_length=1, max_length=100_000, pattern=_NO_NUL),
    AfterValidator(stripped),
    AfterValidator(plain_text),
]
Comment = Annotated[str, StringConstraints(max_length=10_000, pattern=_NO_NUL), AfterValidator(plain_text)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=_NO_CONTROLS), AfterValidator(plain_text)]
Status = Literal["pending", "running", "completed", "failed", "cancelled"]

MAX_CONTEXT_BYTES = 200_000


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class AssignIn(_In):
    """A task. `agent` is an agent's number or name (`agent_id` means the same); with a type or nothing the best fitting
    one is taken.
    """

    task: Text
    agent: Annotated[
        Name | Annotated[int, Field(ge=1, le=2**62)] | None,
        Field(validation_alias=AliasChoices("agent", "agent_id")),
    ] = None
    agent_type: Name | None = None
    priority: Literal["low", "medium", "high"] | Annotated[int, Field(strict=True, ge=1, le=10)] = "medium"
    context: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Facts for the agent, as JSON."""
    session_id: Name | None = None
    """The conversation that this continues."""
    timeout_s: Annotated[float, Field(gt=0, le=86_400, strict=True)] | None = None
    """Of one attempt."""
    idempotency_key: Name | None = None
    """Repeated with the same key, the call answers the same task."""
    cache: StrictBool = False
    """Take an answer that the same agent has given you to the same task within the last hour."""

    @field_validator("context")
    @classmethod
    def _plain(cls, value: dict[str, Any]) -> dict[str, Any]:
        plain_json(value)
        if len(orjson.dumps(value)) > MAX_CONTEXT_BYTES:
            raise ValueError(f"more than {MAX_CONTEXT_BYTES} bytes")
        return value


class ExecuteIn(AssignIn):
    """A task whose result is waited for."""

    wait_s: Annotated[float, Field(ge=0, le=600, strict=True)] = 60.0


class FeedbackIn(_In):
    """What you think of a result: at least one of the three."""

    score: Annotated[float, Field(ge=0, le=1, strict=True)] | None = None
    thumb: Literal["up", "down"] | None = None
    comment: Comment | None = None


class TaskError(BaseModel):
    """Why it failed, or why its last attempt did."""

    code: str
    message: str
    hint: str


class TaskOut(BaseModel):
    """A task."""

    task_id: int
    status: Status
    task: str
    agent_id: int
    agent: str
    agent_version: int | None
    priority: str
    urgency: int
    context: dict[str, Any]
    session_id: str | None
    attempts: int
    created_at: str
    started_at: str | None
    completed_at: str | None
    execution_time_ms: int | None
    result: dict[str, Any] | None
    error: TaskError | None
    rollout_id: str | None
    owner_id: str


class AssignedOut(TaskOut):
    """A new task, and why its agent has it."""

    assigned_because: str


class AssignSuccess(Success[AssignedOut]):
    """`task_id` stands at the top level, too."""

    task_id: int


class TasksPage(BaseModel):
    """Newest first; `next` is the next page's `before`."""

    tasks: list[TaskOut]
    next: int | None


class ResultOut(BaseModel):
    """What came out."""

    task_id: int
    status: Status
    result: dict[str, Any] | None
    error: TaskError | None


class TraceOut(BaseModel):
    """The spans of the task's attempts."""

    task_id: int
    rollout_id: str | None
    spans: list[dict[str, Any]]
    total: int


class FeedbackOut(BaseModel):
    """What was kept."""

    feedback_id: str
    task_id: int
    score: float | None
    thumb: str | None
    comment: str | None


class TicketOut(BaseModel):
    """Good once, for `expires_in` seconds: `new WebSocket(url, ["agl.events", "ticket." + ticket])`."""

    ticket: str
    expires_in: int


class AgentLoad(BaseModel):
    """Unfinished tasks of an agent."""

    agent_id: int
    agent: str
    type: str
    pending: int
    running: int


class PoolOut(BaseModel):
    """The workers: of all processes (`processes`, by the tasks they run), and of the one that answers."""

    queued: int
    running: int
    processes: dict[str, int]
    agents: list[AgentLoad]
    worker: str
    size: int
    min_size: int
    max_size: int
    max_per_agent: int


def task_out(task: Task, agent: str, kind: type[TaskOut] = TaskOut, **more: Any) -> TaskOut:
    """A row as an answer."""
    return kind(**task_view(task, agent), **more)


def task_view(task: Task | TaskRow, agent: str) -> dict[str, Any]:
    """The same as plain values."""
    return {
        "task_id": task.id,
        "status": task.status,
        "task": task.task_description,
        "agent_id": task.agent_id,
        "agent": agent,
        "agent_version": task.agent_version,
        "priority": task.priority,
        "urgency": task.urgency,
        "context": task.context,
        "session_id": task.session_id,
        "attempts": task.attempts,
        "created_at": _time(task.created_at) or "",
        "started_at": _time(task.started_at),
        "completed_at": _time(task.completed_at),
        "execution_time_ms": task.execution_time_ms,
        "result": task.result,
        "error": error_out(task),
        "rollout_id": task.rollout_id,
        "owner_id": f"user_{task.owner_id}",
    }


def error_out(task: Task | TaskRow) -> TaskError | None:
    """Why it, or its last attempt, failed."""
    if task.error_code is None:
        return None
    return TaskError(code=task.error_code, message=task.error_message or "", hint=task.error_hint or "")


def _time(value: Any) -> str | None:
    return None if value is None else value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
