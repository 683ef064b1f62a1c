"""The table of experiments."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Boolean, ForeignKey, Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from agentlightning.platform.auth.models import NUMBER
from agentlightning.platform.columns import DOCUMENT, Moment
from agentlightning.platform.database import Base

CREATED, RUNNING, COMPLETED, FAILED, STOPPED = "created", "running", "completed", "failed", "stopped"
OPEN = (CREATED, RUNNING)


class Experiment(Base):
    """An agent's improvement: what was asked for, how far it is, what came of it."""

    __tablename__ = "rl_experiments"
    __table_args__ = (
        Index("idx_rl_experiments_status", "status"),
        Index("idx_rl_experiments_agent_id", "agent_id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(NUMBER, primary_key=True)
    name: Mapped[str] = mapped_column(String(255), unique=True)
    algorithm: Mapped[str] = mapped_column(String(50))
    config: Mapped[dict[str, Any]] = mapped_column(DOCUMENT)
    status: Mapped[str] = mapped_column(String(50), default=CREATED)
    agent_id: Mapped[int | None] = mapped_column(NUMBER, ForeignKey("agents.id", ondelete="SET NULL"))
    start_time: Mapped[datetime | None] = mapped_column(Moment)
    end_time: Mapped[datetime | None] = mapped_column(Moment)
    metrics: Mapped[dict[str, Any]] = mapped_column(DOCUMENT, default=dict)
    checkpoints: Mapped[list[dict[str, Any]]] = mapped_column(DOCUMENT, default=list)
    created_at: Mapped[datetime] = mapped_column(Moment)
    agent_version: Mapped[int] = mapped_column(Integer)
    """Which definition is improved."""
    reason: Mapped[str] = mapped_column(String(500), default="")
    """Why it was begun."""
    created_by: Mapped[int | None] = mapped_column(NUMBER, ForeignKey("users.id", ondelete="SET NULL"))
    error_message: Mapped[str | None] = mapped_column(Text)
    stop_requested: Mapped[bool] = mapped_column(Boolean, default=False)
    worker: Mapped[str | None] = mapped_column(String(64))
    """Who runs it."""
    lease_until: Mapped[datetime | None] = mapped_column(Moment)
    """When it may be taken by another, if nothing is heard."""
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    applied_version: Mapped[int | None] = mapped_column(Integer)
    """Version of the agent that its result became."""
