"""Events of feedback, preferences and lineages folded into tables; see `folding`."""

from __future__ import annotations

from typing import Any

from agentlightning.kit.db import Session
from agentlightning.schemas import TrainingEvent
from agentlightning.store.ops import payloads
from agentlightning.store.ops.folding import Fold
from agentlightning.store.records import pack

# A rollout may have been pruned with its events while others still name it: then there is nothing to refer to.
_ADD_FEEDBACK = """INSERT INTO feedback (feedback_id, rollout_no, attempt_id, score, score_min, score_max, thumb,
    comment, author, create_time, packed_metadata) SELECT :feedback_id, no, :attempt_id, :score, :score_min,
    :score_max, :thumb, :comment, :author, :create_time, :metadata FROM rollouts WHERE rollout_id = :rollout_id"""
_ADD_PREFERENCE = """INSERT INTO preferences (preference_id, chosen_no, rejected_no, chosen_attempt_id,
    rejected_attempt_id, source, weight, margin, comment, author, session_no, cycle, create_time, packed_metadata)
    SELECT :preference_id, c.no, r.no, :chosen_attempt_id, :rejected_attempt_id, :source, :weight, :margin, :comment,
    :author, (SELECT no FROM lineage_sessions WHERE session_id = :session_id), :cycle, :create_time, :metadata
    FROM rollouts c JOIN rollouts r ON r.rollout_id = :rejected_rollout_id WHERE c.rollout_id = :chosen_rollout_id"""
_ADD_SESSION = """INSERT INTO lineage_sessions (session_id, name, create_time, packed_metadata)
    VALUES (:session_id, :name, :create_time, :metadata)"""
_ADD_LINEAGE = """INSERT INTO lineages (lineage_id, session_no, position, name)
    SELECT :lineage_id, no, :position, :name FROM lineage_sessions WHERE session_id = :session_id"""
_ADD_STEP = """INSERT INTO lineage_steps (lineage_no, kind, cycle, rollout_no, author, create_time)
    SELECT no, :kind, :cycle, (SELECT no FROM rollouts WHERE rollout_id = :rollout_id), :author, :create_time
    FROM lineages WHERE lineage_id = :lineage_id"""
_SET_LOCK = "UPDATE lineages SET locked_cycle = :cycle WHERE lineage_id = :lineage_id"


def _write(db: Session, sql: str, data: dict[str, Any]) -> None:
    metadata = data.get("metadata")
    row = {**data, "metadata": None if metadata is None else pack(metadata, "An event")}
    db.run(sql, payloads.stashed_one(db, row, "metadata"))


def _judged(db: Session, event: TrainingEvent) -> None:
    _write(db, _ADD_FEEDBACK, event.data)


def _preferred(db: Session, event: TrainingEvent) -> None:
    _write(db, _ADD_PREFERENCE, event.data)


def _no_longer_preferred(db: Session, event: TrainingEvent) -> None:
    db.run("DELETE FROM preferences WHERE preference_id = :id", {"id": event.data["preference_id"]})


def _session_created(db: Session, event: TrainingEvent) -> None:
    _write(db, _ADD_SESSION, {"create_time": event.time, **event.data})
    session_id = event.data["session_id"]
    for position, name in enumerate(event.data["names"] or [None] * event.data["lineages"]):
        row = {"session_id": session_id, "position": position, "name": name}
        db.run(_ADD_LINEAGE, {**row, "lineage_id": f"{session_id}.{position}"})


def _advanced(db: Session, event: TrainingEvent) -> None:
    step = {"create_time": event.time, **event.data, "kind": "rollout", "rollout_id": event.rollout_id}
    db.run(_ADD_STEP, step)


def _locked(db: Session, event: TrainingEvent) -> None:
    _set_lock(db, event, "locked", event.data["cycle"])


def _unlocked(db: Session, event: TrainingEvent) -> None:
    _set_lock(db, event, "unlocked", None)


def _set_lock(db: Session, event: TrainingEvent, kind: str, cycle: int | None) -> None:
    db.run(_SET_LOCK, {"cycle": cycle, "lineage_id": event.data["lineage_id"]})
    db.run(_ADD_STEP, {"create_time": event.time, **event.data, "kind": kind, "rollout_id": None})


FOLDS: dict[str, Fold] = {
    "feedback.given": _judged,
    "artifact.scored": _judged,
    "preference.added": _preferred,
    "preference.removed": _no_longer_preferred,
    "lineage.session_created": _session_created,
    "lineage.advanced": _advanced,
    "lineage.locked": _locked,
    "lineage.unlocked": _unlocked,
}
"""By kind of event."""
