"""What people and judges say of rollouts: scores, thumbs, comments, preferences, lineages. Knows nothing of storage."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

Thumb = Literal["up", "down"]
PreferenceSource = Literal["person", "lock", "judge"]
LineageStepKind = Literal["rollout", "locked", "unlocked"]

SCORE_MIN = 0.0
SCORE_MAX = 10.0
"""The scale of scores unless another is given."""
LINEAGES = 4
"""How many lineages are compared side by side unless another number is given."""


class Feedback(BaseModel):
    """A judgement of one rollout. What was not said is `None`; no score is not a score of 0."""

    feedback_id: str
    rollout_id: str
    attempt_id: str | None = None
    """Which attempt; `None` means the rollout as a whole."""
    score: float | None = None
    score_min: float = SCORE_MIN
    score_max: float = SCORE_MAX
    thumb: Thumb | None = None
    comment: str | None = None
    author: str | None = None
    create_time: float
    metadata: dict[str, Any] | None = None

    @property
    def normalized_score(self) -> float | None:
        """The score between 0 (worst) and 1 (best); `None` when there is none."""
        if self.score is None:
            return None
        return (self.score - self.score_min) / (self.score_max - self.score_min)


class Preference(BaseModel):
    """One rollout is better than another."""

    preference_id: str
    chosen_rollout_id: str
    rejected_rollout_id: str
    chosen_attempt_id: str | None = None
    """Which attempt; `None` means the latest."""
    rejected_attempt_id: str | None = None
    source: PreferenceSource = "person"
    """`lock`: follows from which lineages are locked."""
    weight: float = 1.0
    """How much it counts in training, above 0."""
    margin: float | None = None
    """How much better, on a scale of the author's, 0 or more."""
    comment: str | None = None
    author: str | None = None
    session_id: str | None = None
    """Where it comes from, for `source="lock"`."""
    cycle: int | None = None
    create_time: float
    metadata: dict[str, Any] | None = None


class Lineage(BaseModel):
    """A series of rollouts, one a cycle, each made to be better than the one before."""

    lineage_id: str
    session_id: str
    position: int
    """From 0, the order in which they are shown."""
    name: str | None = None
    locked: bool = False
    """Kept as it is while the others are made anew."""
    locked_cycle: int | None = None
    """In which cycle it was locked."""
    cycle: int | None = None
    """Of its newest rollout."""
    rollout_id: str | None = None
    """Its newest rollout."""


class LineageSession(BaseModel):
    """Lineages that are compared side by side."""

    session_id: str
    name: str | None = None
    create_time: float
    lineages: list[Lineage] = Field(default_factory=list[Lineage])
    metadata: dict[str, Any] | None = None


class LineageStep(BaseModel):
    """Something that happened to a lineage."""

    lineage_id: str
    position: int
    """Of the lineage."""
    kind: LineageStepKind
    cycle: int
    rollout_id: str | None = None
    """For `kind="rollout"`."""
    author: str | None = None
    create_time: float
