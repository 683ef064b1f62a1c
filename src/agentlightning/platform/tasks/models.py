"""Tables of tasks and of what happened to them."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Boolean, Float, ForeignKey, Index, Integer, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from agentlightning.platform.auth.models import NUMBER
from agentlightning.platform.columns import DOCUMENT, Moment
from agentlightning.platform.database import Base

PENDING, RUNNING, COMPLETED, FAILED, CANCELLED = "pending", "running", "completed", "failed", "cancelled"
STATUSES = (PENDING, RUNNING, COMPLETED, FAILED, CANCELLED)
ENDED = (COMPLETED, FAILED, CANCELLED)

_NEVER_AGAIN = {"sqlite_autoincrement": True}


class Task(Base):
    """One task. Who runs it holds a lease; when that ends without a sign of life, somebody else runs it."""

    __tablename__ = "tasks"
    __table_args__ = (
        Index("idx_tasks_status", "status", "turn_s", "id"),
        Index("idx_tasks_agent_id", "agent_id", "id"),
        Index("idx_tasks_created_at", "created_at"),
        Index("ix_tasks_owner_id", "owner_id", "id"),
        UniqueConstraint("owner_id", "idempotency_key", name="uq_tasks_owner_id"),
        _NEVER_AGAIN,
    )

    id: Mapped[int] = mapped_column(NUMBER, primary_key=True)
    task_description: Mapped[str] = mapped_column(Text)
    agent_id: Mapped[int] = mapped_column(NUMBER, ForeignKey("agents.id"))
    status: Mapped[str] = mapped_column(String(50))
    priority: Mapped[str] = mapped_column(String(20))
    result: Mapped[dict[str, Any] | None] = mapped_column(DOCUMENT)
    created_at: Mapped[datetime] = mapped_column(Moment)
    started_at: Mapped[datetime | None] = mapped_column(Moment)
    completed_at: Mapped[datetime | None] = mapped_column(Moment)
    execution_time_ms: Mapped[int | None] = mapped_column(Integer)
    error_message: Mapped[str | None] = mapped_column(Text)

    owner_id: Mapped[int] = mapped_column(NUMBER, ForeignKey("users.id", ondelete="CASCADE"))
    urgency: Mapped[int] = mapped_column(Integer)
    """The priority as a number, 1 to 10."""
    turn_s: Mapped[float] = mapped_column(Float(53), server_default="0")
    """When it was made, in Unix seconds, less some for its urgency: the smallest comes first, so that none starves."""
    context: Mapped[dict[str, Any]] = mapped_column(DOCUMENT)
    session_id: Mapped[str | None] = mapped_column(String(128))
    """The conversation it belongs to."""
    idempotency_key: Mapped[str | None] = mapped_column(String(128))
    request_digest: Mapped[str] = mapped_column(String(64))
    """Of what was asked for: the same key with something else is a mistake."""
    scopes: Mapped[list[str] | None] = mapped_column(DOCUMENT)
    """What the API key that it came with was limited to; `None` is everything that the role may do."""
    use_cache: Mapped[bool] = mapped_column(Boolean)
    timeout_s: Mapped[float] = mapped_column(Float(53))
    """Of one attempt."""
    deadline_at: Mapped[datetime] = mapped_column(Moment)
    """When it fails, wherever it is."""
    attempts: Mapped[int] = mapped_column(Integer)
    max_attempts: Mapped[int] = mapped_column(Integer)
    not_before: Mapped[datetime] = mapped_column(Moment)
    leased_by: Mapped[str | None] = mapped_column(String(64))
    lease_until: Mapped[datetime | None] = mapped_column(Moment)
    cancelled_at: Mapped[datetime | None] = mapped_column(Moment)
    error_code: Mapped[str | None] = mapped_column(String(64))
    error_hint: Mapped[str | None] = mapped_column(Text)
    agent_generation: Mapped[int | None] = mapped_column(Integer)
    """Of the agent when the attempt began; a restart ends what older ones do."""
    agent_version: Mapped[int | None] = mapped_column(Integer)
    """Of the definition it was run with."""
    rollout_id: Mapped[str | None] = mapped_column(String(64))
    """Its record in the store."""


class TaskRow(NamedTuple):
    """What is told of a task, with its agent's name; fields as in `Task`."""

    id: int
    status: str
    task_description: str
    agent_id: int
    agent_version: int | None
    priority: str
    urgency: int
    context: dict[str, Any]
    session_id: str | None
    attempts: int
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    execution_time_ms: int | None
    result: dict[str, Any] | None
    error_code: str | None
    error_message: str | None
    error_hint: str | None
    rollout_id: str | None
    owner_id: int
    agent: str


class Event(Base):
    """Something that happened, as numbers to look it up by. Numbers grow in the order of commits."""

    __tablename__ = "events"
    __table_args__ = (Index("ix_events_created_at", "created_at"), _NEVER_AGAIN)

    seq: Mapped[int] = mapped_column(NUMBER, primary_key=True)
    event: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(Moment)
    owner_id: Mapped[int | None] = mapped_column(NUMBER)
    """Who may see it besides admins; `None` is everybody who may read agents."""
    agent_id: Mapped[int | None] = mapped_column(NUMBER)
    agent: Mapped[str] = mapped_column(String(255))
    task_id: Mapped[int | None] = mapped_column(NUMBER)
    data: Mapped[dict[str, Any]] = mapped_column(DOCUMENT)
    """Small: a few numbers and words."""
