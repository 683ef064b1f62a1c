"""Training events: what has happened, as data. Knows nothing of storage."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

EVENT_KINDS: dict[str, str] = {
    "rollout.enqueued": "A rollout was put into the queue.",
    "rollout.started": "A rollout was created together with its first attempt, past the queue.",
    "rollout.updated": "Fields of a rollout were replaced, or it was queued again.",
    "rollout.completed": "A rollout has ended: succeeded, failed or cancelled.",
    "rollout.snapshot": "A rollout with its attempts as found when its history began with a migration.",
    "attempt.started": "A rollout was claimed, or an attempt was created by hand.",
    "attempt.running": "An attempt gave its first sign of life, or came back.",
    "attempt.updated": "Fields of an attempt were replaced.",
    "attempt.completed": "An attempt has ended: succeeded, failed, timed out or fell silent.",
    "claim.released": "A claim whose answer never reached the claimer was undone; its attempt never was.",
    "spans.added": "Spans of an attempt were stored.",
    "resource.added": "A snapshot of resources was stored.",
    "resource.updated": "The content of a snapshot of resources was replaced.",
    "feedback.given": "Somebody judged a rollout without a score.",
    "artifact.scored": "Somebody gave a rollout a score.",
    "preference.added": "One rollout was said to be better than another, or locks say so.",
    "preference.removed": "A preference that followed from locks no longer does.",
    "lineage.session_created": "Lineages were set up side by side.",
    "lineage.advanced": "A lineage got its next rollout.",
    "lineage.locked": "A lineage is kept as it is.",
    "lineage.unlocked": "A lineage is no longer kept as it is.",
    "resource.snapshot": "Resources as found when their history began with a migration.",
    "store.imported": "Another store's events were added before it; tells the order of resources and of the queue.",
}
"""Every kind of event, and what it says."""


class TrainingEvent(BaseModel):
    """One change of the store. Events are added and never changed."""

    no: int
    """Counts up in the order of commits; gaps are possible."""
    time: float
    """Of the commit, Unix seconds, UTC."""
    kind: str
    """One of `EVENT_KINDS`."""
    rollout_id: str | None = None
    attempt_id: str | None = None
    data: dict[str, Any] = Field(default_factory=dict)
    """The fields that changed, with their new values."""
