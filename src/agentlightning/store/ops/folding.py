"""Events folded into tables: what an event tells is done again, to a database that holds what the earlier ones told.

Large values are already put back. Spans and the events themselves are rows that are copied, see `replay`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agentlightning.kit.db import Session
from agentlightning.schemas import TrainingEvent
from agentlightning.schemas.rollout import QUEUED_STATUSES, TERMINAL_ROLLOUT_STATUSES
from agentlightning.store.ops import payloads
from agentlightning.store.ops.lifecycle import NEXT_QUEUE_POSITION
from agentlightning.store.ops.rows import unpack_config
from agentlightning.store.records import pack

Fold = Callable[[Session, TrainingEvent], None]

_PACKED = ("input", "config", "metadata", "resources")
_LIMITED = "timeout_seconds IS NOT NULL OR unresponsive_seconds IS NOT NULL"

_ADD_ROLLOUT = """INSERT INTO rollouts (rollout_id, packed_input, start_time, end_time, mode, resources_id, status,
    packed_config, packed_metadata, attempt_count, queue_position) VALUES (:rollout_id, :input, :start_time, :end_time,
    :mode, :resources_id, :status, :config, :metadata, :attempt_count, :queue_position)"""
_ADD_ATTEMPT = """INSERT INTO attempts (rollout_no, attempt_id, sequence_id, start_time, end_time, status, worker_id,
    last_heartbeat_time, packed_metadata, last_span_sequence_id, watched, timeout_seconds, unresponsive_seconds)
    VALUES (:rollout_no, :attempt_id, :sequence_id, :start_time, :end_time, :status, :worker_id, :last_heartbeat_time,
    :metadata, :last, :watched, :timeout_seconds, :unresponsive_seconds)"""
_TO_TAIL = f"""UPDATE rollouts SET status = :status, end_time = NULL,
    queue_position = coalesce(queue_position, {NEXT_QUEUE_POSITION}) WHERE rollout_id = :rollout_id"""
_TO_HEAD = """UPDATE rollouts SET status = CASE WHEN attempt_count = 1 THEN 'queuing' ELSE 'requeuing' END,
    end_time = NULL, attempt_count = attempt_count - 1,
    queue_position = (SELECT coalesce(min(queue_position), 1) - 1 FROM rollouts WHERE queue_position IS NOT NULL)
    WHERE rollout_id = :rollout_id"""
_OUT_OF_QUEUE = """UPDATE rollouts SET status = :status, end_time = :end_time, queue_position = NULL
    WHERE rollout_id = :rollout_id"""
_CLAIM = """UPDATE rollouts SET status = 'preparing', end_time = NULL, queue_position = NULL,
    attempt_count = :sequence_id WHERE rollout_id = :rollout_id"""
_SET_STATUS = f"""UPDATE attempts SET status = :status, end_time = :end_time,
    watched = CASE WHEN :active = 1 AND ({_LIMITED}) THEN 1 END WHERE attempt_id = :attempt_id"""
_SET_LIMITS = """UPDATE attempts SET timeout_seconds = :timeout_seconds, unresponsive_seconds = :unresponsive_seconds,
    watched = CASE WHEN status IN ('preparing', 'running') AND :limited = 1 THEN 1 END WHERE rollout_no = :no"""
_COUNT_SPANS = """UPDATE attempts SET last_span_sequence_id = :last
    WHERE attempt_id = :attempt_id AND last_span_sequence_id < :last"""
_ADD_RESOURCES = """INSERT INTO resources (resources_id, create_time, update_time, version, packed_resources, position)
    VALUES (:resources_id, :create_time, :update_time, :version, :resources, coalesce(:position,
    (SELECT coalesce(max(position), 0) + 1 FROM resources)))"""
_SET_RESOURCES = """UPDATE resources SET update_time = :update_time, version = :version, packed_resources = :resources,
    position = (SELECT coalesce(max(position), 0) + 1 FROM resources) WHERE resources_id = :resources_id"""

_RESOURCES_LAST = """UPDATE resources SET position = (SELECT max(position) + 1 FROM resources)
    WHERE resources_id = :resources_id"""
_QUEUED_LAST = f"""UPDATE rollouts SET queue_position = {NEXT_QUEUE_POSITION}
    WHERE rollout_id = :rollout_id AND queue_position IS NOT NULL"""


def _packed(data: dict[str, Any], what: str) -> dict[str, Any]:
    """The values of packed columns packed again; an input may be `None`, everything else is then absent."""
    return {
        name: pack(value, what) if name in _PACKED and (value is not None or name == "input") else value
        for name, value in data.items()
    }


def _write(db: Session, sql: str, row: dict[str, Any]) -> None:
    db.run(sql, payloads.stashed_one(db, row, *(name for name in _PACKED if name != "config")))


def _rollout_no(db: Session, rollout_id: str | None) -> tuple[int, bytes] | None:
    row = db.first("SELECT no, packed_config FROM rollouts WHERE rollout_id = :id", {"id": rollout_id})
    return None if row is None else (row[0], row[1])


def _limits(config: bytes) -> dict[str, Any]:
    found = unpack_config(config)
    return {"timeout_seconds": found.timeout_seconds, "unresponsive_seconds": found.unresponsive_seconds}


def _add_rollout(db: Session, event: TrainingEvent, status: str) -> None:
    defaults = {"end_time": None, "status": status, "attempt_count": 0, "queue_position": None}
    _write(db, _ADD_ROLLOUT, {"rollout_id": event.rollout_id, **defaults, **_packed(event.data, "An event")})


def _add_attempt(db: Session, rollout_id: str | None, attempt: dict[str, Any]) -> None:
    found = _rollout_no(db, rollout_id)
    if found is None:
        return
    no, config = found
    row = {
        "end_time": None,
        "status": "preparing",
        "last_heartbeat_time": None,
        "metadata": None,
        "last": max(attempt.get("sequence_ids", ()), default=0),
        **_limits(config),
        **_packed(attempt, "An event"),
    }
    limited = row["timeout_seconds"] is not None or row["unresponsive_seconds"] is not None
    row["watched"] = 1 if limited and row["status"] in ("preparing", "running") else None
    _write(db, _ADD_ATTEMPT, {**row, "rollout_no": no})


def _enqueued(db: Session, event: TrainingEvent) -> None:
    _add_rollout(db, event, "queuing")
    db.run(_TO_TAIL, {"status": "queuing", "rollout_id": event.rollout_id})


def _started(db: Session, event: TrainingEvent) -> None:
    attempt = event.data.pop("attempt")
    _add_rollout(db, event, "preparing")
    _claimed(db, event.model_copy(update={"data": attempt}))


def _claimed(db: Session, event: TrainingEvent) -> None:
    db.run(_CLAIM, {"rollout_id": event.rollout_id, "sequence_id": event.data["sequence_id"]})
    _add_attempt(db, event.rollout_id, {"attempt_id": event.attempt_id, **event.data})


def _rollout_snapshot(db: Session, event: TrainingEvent) -> None:
    attempts = event.data.pop("attempts")
    event.data["attempt_count"] = attempts[-1]["sequence_id"] if attempts else 0
    _add_rollout(db, event, event.data["status"])
    for attempt in attempts:
        _add_attempt(db, event.rollout_id, attempt)


def _place(db: Session, rollout_id: str | None, status: str, end_time: float | None = None) -> None:
    if status in QUEUED_STATUSES:
        db.run(_TO_TAIL, {"status": status, "rollout_id": rollout_id})
    else:
        ended = end_time if status in TERMINAL_ROLLOUT_STATUSES else None
        db.run(_OUT_OF_QUEUE, {"status": status, "end_time": ended, "rollout_id": rollout_id})


def _rollout_updated(db: Session, event: TrainingEvent) -> None:
    changes = _packed(event.data, "An event")
    columns = {name: changes[name] for name in ("mode", "resources_id", *_PACKED) if name in changes}
    for name in columns:
        column = f"packed_{name}" if name in _PACKED else name
        _write(
            db,
            f"UPDATE rollouts SET {column} = :{name} WHERE rollout_id = :rollout_id",
            {name: columns[name], "rollout_id": event.rollout_id},
        )
    if "config" in changes and (found := _rollout_no(db, event.rollout_id)) is not None:
        limits = _limits(changes["config"])
        limited = 0 if set(limits.values()) == {None} else 1
        db.run(_SET_LIMITS, {**limits, "limited": limited, "no": found[0]})
    if "status" in changes:
        _place(db, event.rollout_id, changes["status"], changes.get("end_time"))


def _attempt_updated(db: Session, event: TrainingEvent) -> None:
    changes = _packed(event.data, "An event")
    key = {"attempt_id": event.attempt_id}
    if "worker_id" in changes:
        worker_id = changes["worker_id"]
        db.run("UPDATE attempts SET worker_id = :id WHERE attempt_id = :attempt_id", {**key, "id": worker_id})
    if "metadata" in changes:
        sql = "UPDATE attempts SET packed_metadata = :metadata WHERE attempt_id = :attempt_id"
        _write(db, sql, {**key, "metadata": changes["metadata"]})
    if "status" in changes:
        active = 1 if changes["status"] == "running" else 0
        row = {"status": changes["status"], "end_time": changes["end_time"], "active": active}
        db.run(_SET_STATUS, {**key, **row})
    if "rollout_status" in changes:
        _place(db, event.rollout_id, changes["rollout_status"])


def _released(db: Session, event: TrainingEvent) -> None:
    db.run("DELETE FROM attempts WHERE attempt_id = :id", {"id": event.attempt_id})
    db.run(_TO_HEAD, {"rollout_id": event.rollout_id})


def _spans_added(db: Session, event: TrainingEvent) -> None:
    db.run(_COUNT_SPANS, {"attempt_id": event.attempt_id, "last": max(event.data["sequence_ids"])})


def _resources_added(db: Session, event: TrainingEvent) -> None:
    _write(db, _ADD_RESOURCES, {"position": None, **_packed(event.data, "An event")})


def _resources_updated(db: Session, event: TrainingEvent) -> None:
    _write(db, _SET_RESOURCES, _packed(event.data, "An event"))


def _imported(db: Session, event: TrainingEvent) -> None:
    for resources_id in event.data["resources"]:
        db.run(_RESOURCES_LAST, {"resources_id": resources_id})
    for rollout_id in event.data["queue"]:
        db.run(_QUEUED_LAST, {"rollout_id": rollout_id})


FOLDS: dict[str, Fold] = {
    "rollout.enqueued": _enqueued,
    "rollout.started": _started,
    "rollout.updated": _rollout_updated,
    "rollout.completed": _rollout_updated,
    "rollout.snapshot": _rollout_snapshot,
    "attempt.started": _claimed,
    "attempt.running": _attempt_updated,
    "attempt.updated": _attempt_updated,
    "attempt.completed": _attempt_updated,
    "claim.released": _released,
    "spans.added": _spans_added,
    "resource.added": _resources_added,
    "resource.updated": _resources_updated,
    "resource.snapshot": _resources_added,
    "store.imported": _imported,
}
"""By kind of event; those of people's judgements are in `folding_judgements`."""


def copied(event: TrainingEvent) -> TrainingEvent:
    """An event whose data may be taken apart."""
    return event.model_copy(update={"data": dict(event.data)})
