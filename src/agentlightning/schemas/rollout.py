"""Rollouts, attempts and workers: pure data and the state machine. Knows nothing of storage.

Names, fields and status values are those of the public Agent Lightning 0.3 API.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

RolloutStatus = Literal["queuing", "preparing", "running", "failed", "succeeded", "cancelled", "requeuing"]
AttemptStatus = Literal["preparing", "running", "failed", "succeeded", "unresponsive", "timeout"]
RolloutMode = Literal["train", "val", "test"]
WorkerStatus = Literal["idle", "busy", "unknown"]
TaskInput = Any

QUEUED_STATUSES: frozenset[str] = frozenset({"queuing", "requeuing"})
TERMINAL_ROLLOUT_STATUSES: frozenset[str] = frozenset({"failed", "succeeded", "cancelled"})
TERMINAL_ATTEMPT_STATUSES: frozenset[str] = frozenset({"failed", "succeeded", "unresponsive", "timeout"})

# What a rollout's status may become. A terminal rollout may be queued again (an explicit retry).
ROLLOUT_TRANSITIONS: dict[str, frozenset[str]] = {
    "queuing": frozenset({"preparing", "running", "cancelled", "failed", "succeeded"}),
    "requeuing": frozenset({"preparing", "running", "cancelled", "failed", "succeeded"}),
    "preparing": frozenset({"running", "failed", "succeeded", "cancelled", "requeuing"}),
    "running": frozenset({"failed", "succeeded", "cancelled", "requeuing"}),
    "failed": frozenset({"requeuing", "queuing", "preparing"}),
    "succeeded": frozenset({"requeuing", "queuing", "preparing"}),
    "cancelled": frozenset({"requeuing", "queuing", "preparing"}),
}

# What an attempt's status may become. An unresponsive attempt may come back to life.
ATTEMPT_TRANSITIONS: dict[str, frozenset[str]] = {
    "preparing": frozenset({"running", "failed", "succeeded", "unresponsive", "timeout"}),
    "running": frozenset({"failed", "succeeded", "unresponsive", "timeout"}),
    "unresponsive": frozenset({"running", "failed", "succeeded", "timeout"}),
    "timeout": frozenset(),
    "failed": frozenset(),
    "succeeded": frozenset(),
}

# What else may be written of an attempt that another one has superseded: how it ended after all.
SUPERSEDED_TRANSITIONS: dict[str, frozenset[str]] = {"timeout": frozenset({"failed", "succeeded"})}


class Attempt(BaseModel):
    """One execution of a rollout by a worker. Times are Unix seconds, UTC."""

    rollout_id: str
    attempt_id: str
    sequence_id: int
    """1 for the first attempt of a rollout, then counting up."""
    start_time: float
    end_time: float | None = None
    status: AttemptStatus = "preparing"
    worker_id: str | None = None
    last_heartbeat_time: float | None = None
    metadata: dict[str, Any] | None = None


class RolloutConfig(BaseModel):
    """Time limits and retries of a rollout."""

    model_config = ConfigDict(extra="forbid")

    timeout_seconds: float | None = None
    """Longest duration of one attempt; `None` means no limit."""
    unresponsive_seconds: float | None = None
    """Longest silence (no span, no heartbeat) before an attempt counts as unresponsive."""
    max_attempts: int = Field(default=1, ge=1)
    """Attempts in all, the first included."""
    retry_condition: list[AttemptStatus] = Field(default_factory=list[AttemptStatus])
    """Attempt statuses that lead to another attempt while `max_attempts` is not reached."""


class Rollout(BaseModel):
    """A task on its way through the loop."""

    rollout_id: str
    input: TaskInput
    start_time: float
    end_time: float | None = None
    mode: RolloutMode | None = None
    resources_id: str | None = None
    status: RolloutStatus = "queuing"
    config: RolloutConfig = Field(default_factory=RolloutConfig)
    metadata: dict[str, Any] | None = None


class AttemptedRollout(Rollout):
    """A rollout with the attempt that is working on it."""

    attempt: Attempt

    @model_validator(mode="after")
    def _check_same_rollout(self) -> AttemptedRollout:
        if self.attempt.rollout_id != self.rollout_id:
            raise ValueError(f"attempt belongs to {self.attempt.rollout_id!r}, not to {self.rollout_id!r}")
        return self


class EnqueueRolloutRequest(BaseModel):
    """What a caller says of a new rollout.

    `rollout_id` and `idempotency_key` go beyond 0.3: either makes creation idempotent, so a crashed caller may simply
    repeat the request. From a key, the store makes the id.
    """

    input: TaskInput
    mode: RolloutMode | None = None
    resources_id: str | None = None
    config: RolloutConfig | None = None
    metadata: dict[str, Any] | None = None
    rollout_id: str | None = None
    idempotency_key: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _check_one_name(self) -> EnqueueRolloutRequest:
        if self.rollout_id and self.idempotency_key:
            raise ValueError("give rollout_id or idempotency_key, not both")
        return self


class Worker(BaseModel):
    """A runner as the store sees it."""

    worker_id: str
    status: WorkerStatus = "unknown"
    heartbeat_stats: dict[str, Any] | None = None
    last_heartbeat_time: float | None = None
    last_dequeue_time: float | None = None
    last_busy_time: float | None = None
    last_idle_time: float | None = None
    current_rollout_id: str | None = None
    current_attempt_id: str | None = None


def is_queuing(rollout: Rollout) -> bool:
    """Waiting to be claimed."""
    return rollout.status in QUEUED_STATUSES


def is_running(rollout: Rollout) -> bool:
    """Claimed by a worker and not ended."""
    return rollout.status in ("preparing", "running")


def is_finished(rollout: Rollout) -> bool:
    """In a terminal status."""
    return rollout.status in TERMINAL_ROLLOUT_STATUSES
