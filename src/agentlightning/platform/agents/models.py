"""Tables of agents: what they are now, all that they were, and the results of their evaluations."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Float, ForeignKey, Index, Integer, String, Text, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from agentlightning.platform.auth.models import NUMBER
from agentlightning.platform.columns import DOCUMENT, Moment
from agentlightning.platform.database import Base

_NEVER_AGAIN = {"sqlite_autoincrement": True}
_RUNNING = text("status = 'running'")

ACTIVE, PAUSED, DELETED = "active", "paused", "deleted"
"""States of an agent; a deleted one keeps its row, its history and its name."""


class Agent(Base):
    """An agent as it is now. `config` is its definition."""

    __tablename__ = "agents"
    __table_args__ = (
        Index("idx_agents_type", "type"),
        Index("idx_agents_status", "status"),
        Index("idx_agents_last_activity", "last_activity"),
        _NEVER_AGAIN,
    )

    id: Mapped[int] = mapped_column(NUMBER, primary_key=True)
    name: Mapped[str] = mapped_column(String(255), unique=True)
    type: Mapped[str] = mapped_column(String(100))
    description: Mapped[str | None] = mapped_column(Text)
    config: Mapped[dict[str, Any]] = mapped_column(DOCUMENT, default=dict)
    status: Mapped[str] = mapped_column(String(50), default=ACTIVE)
    created_at: Mapped[datetime] = mapped_column(Moment)
    updated_at: Mapped[datetime] = mapped_column(Moment)
    performance_metrics: Mapped[dict[str, Any]] = mapped_column(DOCUMENT, default=dict)
    last_activity: Mapped[datetime | None] = mapped_column(Moment)
    version: Mapped[int] = mapped_column(Integer, default=1)
    """Of the definition; every change makes the next one."""
    builtin: Mapped[str | None] = mapped_column(String(64))
    """Digest of the shipped definition that `config` is; `None` once somebody has changed it."""
    generation: Mapped[int] = mapped_column(Integer, default=1)
    """Counts restarts: what was started under an earlier one is to end."""
    restarted_at: Mapped[datetime | None] = mapped_column(Moment)
    created_by: Mapped[str] = mapped_column(String(255), default="system")


class AgentCapability(Base):
    """What an agent can be asked for, as its definition says: kept here, too, so that it can be searched for."""

    __tablename__ = "agent_capabilities"
    __table_args__ = (Index("ix_agent_capabilities_capability", "capability"),)

    agent_id: Mapped[int] = mapped_column(NUMBER, ForeignKey("agents.id", ondelete="CASCADE"), primary_key=True)
    capability: Mapped[str] = mapped_column(String(64), primary_key=True)


class AgentVersion(Base):
    """A definition that an agent had, or has. Never changed."""

    __tablename__ = "agent_versions"
    __table_args__ = (UniqueConstraint("agent_id", "version", name="uq_agent_versions_agent_id"), _NEVER_AGAIN)

    id: Mapped[int] = mapped_column(NUMBER, primary_key=True)
    agent_id: Mapped[int] = mapped_column(NUMBER, ForeignKey("agents.id", ondelete="CASCADE"))
    version: Mapped[int] = mapped_column(Integer)
    config: Mapped[dict[str, Any]] = mapped_column(DOCUMENT)
    created_at: Mapped[datetime] = mapped_column(Moment)
    created_by: Mapped[str] = mapped_column(String(255))
    reason: Mapped[str] = mapped_column(String(200))


class AgentEvaluation(Base):
    """One run of an agent's evaluation set, or a part of it. Of an agent, one runs at a time."""

    __tablename__ = "agent_evaluations"
    __table_args__ = (
        Index("ix_agent_evaluations_agent_id", "agent_id", "id"),
        Index(
            "uq_agent_evaluations_running", "agent_id", unique=True, sqlite_where=_RUNNING, postgresql_where=_RUNNING
        ),
        _NEVER_AGAIN,
    )

    id: Mapped[int] = mapped_column(NUMBER, primary_key=True)
    agent_id: Mapped[int] = mapped_column(NUMBER, ForeignKey("agents.id", ondelete="CASCADE"))
    version: Mapped[int] = mapped_column(Integer)
    split: Mapped[str] = mapped_column(String(16))
    status: Mapped[str] = mapped_column(String(16))
    started_at: Mapped[datetime] = mapped_column(Moment)
    deadline_at: Mapped[datetime] = mapped_column(Moment)
    finished_at: Mapped[datetime | None] = mapped_column(Moment)
    cases: Mapped[int] = mapped_column(Integer)
    passed: Mapped[int | None] = mapped_column(Integer)
    score: Mapped[float | None] = mapped_column(Float(53))
    results: Mapped[list[dict[str, Any]]] = mapped_column(DOCUMENT)
    created_by: Mapped[str] = mapped_column(String(255))
    worker: Mapped[str | None] = mapped_column(String(64))
    """Who runs it."""
    lease_until: Mapped[datetime | None] = mapped_column(Moment)
    """After that without a sign of life somebody else goes on with it."""
    attempts: Mapped[int] = mapped_column(Integer, default=1, server_default="1")
    owner_id: Mapped[int | None] = mapped_column(NUMBER)
    scopes: Mapped[list[str] | None] = mapped_column(DOCUMENT)
    """What the API key that it came with was limited to."""
