"""Status changes: of attempts, what they mean for the rollout and the worker, and of rollouts themselves.

The allowed transitions are data in `schemas.rollout`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agentlightning.kit.clock import now
from agentlightning.kit.db import Row, Session
from agentlightning.kit.errors import BadInputError, ConflictError
from agentlightning.schemas import Attempt, AttemptStatus, Rollout, RolloutConfig
from agentlightning.schemas.building import construct
from agentlightning.schemas.rollout import (
    ATTEMPT_TRANSITIONS,
    QUEUED_STATUSES,
    ROLLOUT_TRANSITIONS,
    SUPERSEDED_TRANSITIONS,
    TERMINAL_ATTEMPT_STATUSES,
    TERMINAL_ROLLOUT_STATUSES,
)
from agentlightning.store import verbs
from agentlightning.store.ops import events, payloads, resources, workers
from agentlightning.store.ops.rows import (
    ATTEMPT_BLOB,
    ATTEMPT_COLUMNS,
    PACKED_COLUMNS,
    ROLLOUT_COLUMNS,
    attempt_values,
    lock_rollouts,
    pack_config,
    require_rollout,
    rollouts_from_rows,
    unknown_attempt,
    unknown_rollout,
    unpack_config,
)
from agentlightning.store.records import pack
from agentlightning.store.verbs import UNSET

FINISHED = "finished"
"""Announced with the rollout's id."""
QUEUED = "queued"
"""Announced without a key: there is work."""

MAX_LOST_ATTEMPTS = 3
"""So many attempts more than `max_attempts` a rollout gets for workers that vanish."""

NEXT_QUEUE_POSITION = "(SELECT coalesce(max(queue_position), 0) + 1 FROM rollouts WHERE queue_position IS NOT NULL)"

_END = "UPDATE rollouts SET status = :status, end_time = :end_time, queue_position = NULL WHERE no = :no"
_QUEUE = f"""UPDATE rollouts SET status = :status, end_time = NULL,
    queue_position = coalesce(queue_position, {NEXT_QUEUE_POSITION}) WHERE no = :no"""
_PROCEED = "UPDATE rollouts SET status = :status, end_time = NULL, queue_position = NULL WHERE no = :no"

_FIND = f"""SELECT r.no, r.status, r.attempt_count, r.packed_config, a.no, {ATTEMPT_COLUMNS}
    FROM rollouts r JOIN attempts a ON a.rollout_no = r.no WHERE r.rollout_id = :rollout_id"""
_FIND_LATEST = f"{_FIND} AND a.sequence_id = r.attempt_count"
_FIND_ONE = f"{_FIND} AND a.attempt_id = :attempt_id /*pg FOR UPDATE OF r, a */"
_FOUND_WIDTH = 5
_FIND_MANY = f"""SELECT r.no, r.status, r.attempt_count, r.packed_config, a.no, {ATTEMPT_COLUMNS}, r.rollout_id
    FROM attempts a JOIN rollouts r ON r.no = a.rollout_no WHERE a.attempt_id IN (:*ids) /*pg FOR UPDATE OF a */"""

_WRITE_ATTEMPT = """UPDATE attempts SET status = :status, end_time = :end_time, worker_id = :worker_id,
    last_heartbeat_time = :last_heartbeat_time, packed_metadata = :metadata, lease_until = CASE WHEN :active = 1
    THEN CASE WHEN :renews = 1 THEN :now + lease_s ELSE lease_until END END, watched = CASE WHEN :active = 1 AND
    (timeout_seconds IS NOT NULL OR unresponsive_seconds IS NOT NULL) THEN 1 END WHERE no = :no"""

_SIGN_OF_LIFE = """UPDATE attempts SET last_heartbeat_time = :now, last_span_sequence_id = :last,
    lease_until = CASE WHEN lease_until IS NOT NULL THEN :now + lease_s END WHERE no = :no"""
_REVIVE = """UPDATE attempts SET last_heartbeat_time = :now, last_span_sequence_id = :last, status = 'running',
    end_time = NULL, lease_until = :now + lease_s,
    watched = CASE WHEN timeout_seconds IS NOT NULL OR unresponsive_seconds IS NOT NULL THEN 1 END WHERE no = :no"""

_SET_LIMITS = """UPDATE attempts SET timeout_seconds = :timeout_seconds, unresponsive_seconds = :unresponsive_seconds,
    watched = CASE WHEN status IN ('preparing', 'running') AND :limited = 1 THEN 1 END
    WHERE rollout_no = :no"""


def move_rollout(db: Session, no: int, rollout_id: str, status: str, also: Mapping[str, Any] | None = None) -> None:
    """Write a status and what goes with it: end time, place in the queue, announcement, event.

    Args:
        db: The operation's session.
        no: Of the rollout.
        rollout_id: Likewise.
        status: The new one.
        also: Other fields that changed at the same time, for the event.
    """
    if status in TERMINAL_ROLLOUT_STATUSES:
        end_time = now()
        db.run(_END, {"status": status, "end_time": end_time, "no": no})
        db.announce(FINISHED, rollout_id)
        data = {**(also or {}), "status": status, "end_time": end_time}
        events.record(db, "rollout.completed", data, rollout_id=rollout_id)
    else:
        _place_rollout(db, no, status)
        events.record(db, "rollout.updated", {**(also or {}), "status": status}, rollout_id=rollout_id)


def _place_rollout(db: Session, no: int, status: str) -> None:
    """Write a status other than the final ones; the event is up to the caller."""
    if status in QUEUED_STATUSES:
        db.run(_QUEUE, {"status": status, "no": no})
        db.announce(QUEUED)
    else:
        db.run(_PROCEED, {"status": status, "no": no})


def rollout_status_after(attempt_status: str, sequence_id: int, config: RolloutConfig, *, lost: bool = False) -> str:
    """What the status of its latest attempt makes of a rollout.

    Args:
        attempt_status: Of the attempt.
        sequence_id: Its number.
        config: Of the rollout.
        lost: The attempt's lease has run out: the worker is to blame, not the task, so it is handed out again whatever
            the retry condition; but not for ever, since it may be the task that kills its workers.
    """
    if lost:
        return "requeuing" if sequence_id < config.max_attempts + MAX_LOST_ATTEMPTS else "failed"
    if attempt_status in ("preparing", "running", "succeeded"):
        return attempt_status
    if attempt_status in config.retry_condition and sequence_id < config.max_attempts:
        return "requeuing"
    return "failed"


def check_transition(kind: str, name: str, allowed: dict[str, frozenset[str]], old: str, new: str) -> None:
    """Raise unless `old` may become `new`; staying the same is always allowed.

    Raises:
        BadInputError: There is no such status.
        ConflictError: Not allowed.
    """
    if new not in allowed:
        raise BadInputError(f"{new!r} is no status; use one of {', '.join(sorted(allowed))}.")
    if new != old and new not in allowed[old]:
        possible = ", ".join(sorted(allowed[old])) or "nothing else"
        raise ConflictError(
            f"{kind} {name} is {old} and cannot become {new}.",
            hint=f"From {old} it may become: {possible}.",
            details={"id": name, "status": old, "requested": new},
        )


def update_attempt(db: Session, verb: verbs.UpdateAttempt) -> Attempt:
    """See `LightningStore.update_attempt`."""
    if verb.attempt_id == "latest":
        lock_rollouts(db, [verb.rollout_id])  # which one is the latest must not change while we look
        row = db.first(_FIND_LATEST, {"rollout_id": verb.rollout_id})
    else:
        row = db.first(_FIND_ONE, {"rollout_id": verb.rollout_id, "attempt_id": verb.attempt_id})
    if row is None:
        require_rollout(db, verb.rollout_id)
        raise unknown_attempt(verb.rollout_id, verb.attempt_id)
    return _change_attempt(db, row, verb)


def merged_update_attempt(db: Session, together: Sequence[verbs.UpdateAttempt]) -> list[Attempt]:
    """`update_attempt` for each, in a few statements for all."""
    ids = [verb.attempt_id for verb in together]
    rollout_ids = [verb.rollout_id for verb in together]
    if "latest" in ids or len(set(rollout_ids)) < len(together):  # one may depend on what another changes
        return [update_attempt(db, verb) for verb in together]
    lock_rollouts(db, rollout_ids)
    found = {(row[-1], row[_FOUND_WIDTH]): row[:-1] for row in db.all(_FIND_MANY, {"ids": ids})}
    for verb in together:
        if (verb.rollout_id, verb.attempt_id) not in found:
            require_rollout(db, verb.rollout_id)
            raise unknown_attempt(verb.rollout_id, verb.attempt_id)
    with db.deferring():
        return [_change_attempt(db, found[verb.rollout_id, verb.attempt_id], verb) for verb in together]


def _change_attempt(db: Session, row: Row, verb: verbs.UpdateAttempt, *, lost: bool = False) -> Attempt:
    values = attempt_values(verb.rollout_id, payloads.resolve(db, [row[_FOUND_WIDTH:]], ATTEMPT_BLOB)[0])
    changes: dict[str, Any] = {}
    if verb.status is not UNSET:
        changes = _set_attempt_status(values, verb.status, superseded=values["sequence_id"] != row[2])
    if lost and changes:
        changes["reason"] = "its lease has run out"
    if verb.worker_id is not UNSET and verb.worker_id != values["worker_id"]:
        changes["worker_id"] = values["worker_id"] = verb.worker_id
    if verb.last_heartbeat_time is not UNSET:
        if not isinstance(verb.last_heartbeat_time, int | float | None):
            raise BadInputError(f"{verb.last_heartbeat_time!r} is no time.", hint="Give Unix seconds.")
        values["last_heartbeat_time"] = verb.last_heartbeat_time
    if verb.metadata is not UNSET:
        values["metadata"] = verb.metadata
    attempt = construct(Attempt, values)
    row_now: dict[str, Any] = {
        "status": attempt.status,
        "end_time": attempt.end_time,
        "worker_id": attempt.worker_id,
        "last_heartbeat_time": attempt.last_heartbeat_time,
        "metadata": None if attempt.metadata is None else pack(attempt.metadata, "The attempt's metadata"),
        "active": 0 if attempt.status in TERMINAL_ATTEMPT_STATUSES else 1,
        "renews": 0 if verb.status is UNSET and verb.last_heartbeat_time is UNSET else 1,
        "now": now(),
        "no": row[4],
    }
    row_now = payloads.stashed_one(db, row_now, "metadata")
    db.run(_WRITE_ATTEMPT, row_now)
    if verb.metadata is not UNSET:
        changes["metadata"] = events.packed(row_now["metadata"])
    wanted = _rollout_follows(row, attempt, lost=lost) if verb.status is not UNSET else None
    _record_and_carry_over(db, row[0], attempt, changes, wanted)
    if attempt.worker_id and (verb.status is not UNSET or verb.worker_id is not UNSET):
        workers.follow_attempt(db, attempt.worker_id, attempt.rollout_id, attempt.attempt_id, attempt.status)
    return attempt


def _set_attempt_status(values: dict[str, Any], status: Any, *, superseded: bool) -> dict[str, Any]:
    """Change the status and its end time in an attempt's values; returns what has changed."""
    old = values["status"]
    if not (superseded and status in SUPERSEDED_TRANSITIONS.get(old, ())):
        check_transition("Attempt", values["attempt_id"], ATTEMPT_TRANSITIONS, old, status)
    if status == old:
        return {}
    changes = {"status": status, "end_time": now() if status in TERMINAL_ATTEMPT_STATUSES else None}
    values.update(changes)
    return changes


def _rollout_follows(row: Row, attempt: Attempt, *, lost: bool) -> str | None:
    """The status that a rollout takes after its latest attempt; `None`: it stays as it is.

    One that has ended stays: a cancellation beats a late success.
    """
    status, attempt_count, packed_config = row[1:4]
    if attempt.sequence_id != attempt_count or status in TERMINAL_ROLLOUT_STATUSES:
        return None
    wanted = rollout_status_after(attempt.status, attempt.sequence_id, unpack_config(packed_config), lost=lost)
    # An attempt that was given up, and its rollout queued again, may still come back: then it is the one that counts.
    return wanted if wanted != status and wanted in ROLLOUT_TRANSITIONS[status] else None


def _record_and_carry_over(
    db: Session, rollout_no: int, attempt: Attempt, changes: dict[str, Any], rollout_status: str | None
) -> None:
    """Record an attempt's changes and let its rollout follow: in the same event, unless it has ended."""
    ids = {"rollout_id": attempt.rollout_id, "attempt_id": attempt.attempt_id}
    if changes:
        kind = "attempt.updated"
        if "status" in changes:
            kind = "attempt.completed" if attempt.status in TERMINAL_ATTEMPT_STATUSES else "attempt.running"
        if rollout_status is not None and rollout_status not in TERMINAL_ROLLOUT_STATUSES:
            events.record(db, kind, {**changes, "rollout_status": rollout_status}, **ids)
            _place_rollout(db, rollout_no, rollout_status)
            return
        events.record(db, kind, changes, **ids)
    if rollout_status is not None:
        move_rollout(db, rollout_no, attempt.rollout_id, rollout_status)


def revive(db: Session, row: Row, rollout_id: str, attempt_id: str, last_span_sequence_id: int) -> None:
    """A sign of life of the latest attempt (`row`: r.no, r.status, a.no, a.status): it and its rollout are running."""
    rollout_no, rollout_status, attempt_no, attempt_status = row
    params = {"now": now(), "last": last_span_sequence_id, "no": attempt_no}
    follows = rollout_status in ("preparing", "requeuing", "queuing")
    if attempt_status in ("preparing", "unresponsive"):
        db.run(_REVIVE, params)
        data = {"status": "running", "end_time": None}
        if follows:
            _place_rollout(db, rollout_no, "running")
            data["rollout_status"] = "running"
        events.record(db, "attempt.running", data, rollout_id=rollout_id, attempt_id=attempt_id)
        return
    db.run(_SIGN_OF_LIFE, params)
    if attempt_status == "running" and follows:
        move_rollout(db, rollout_no, rollout_id, "running")


def give_up(db: Session, rollout_id: str, attempt_id: str, status: AttemptStatus, *, lost: bool) -> None:
    """End an attempt that took too long or fell silent; see `rollout_status_after` for `lost`."""
    row = db.first(_FIND_ONE, {"rollout_id": rollout_id, "attempt_id": attempt_id})
    if row is not None:
        verb = verbs.UpdateAttempt(rollout_id=rollout_id, attempt_id=attempt_id, status=status)
        _change_attempt(db, row, verb, lost=lost)


def update_rollout(db: Session, verb: verbs.UpdateRollout) -> Rollout:
    """See `LightningStore.update_rollout`."""
    lock_rollouts(db, [verb.rollout_id])
    row = db.first("SELECT no, status FROM rollouts WHERE rollout_id = :id", {"id": verb.rollout_id})
    if row is None:
        raise unknown_rollout(verb.rollout_id)
    no, old = row
    changes = _changed_columns(db, verb)
    if changes:
        changes = payloads.stashed_one(db, changes, *PACKED_COLUMNS)
        assignments = ", ".join(f"{column} = :{column}" for column in changes)
        db.run(f"UPDATE rollouts SET {assignments} WHERE no = :no", {**changes, "no": no})
    if verb.config is not UNSET:
        limits = (verb.config.timeout_seconds, verb.config.unresponsive_seconds)
        db.run(
            _SET_LIMITS,
            {
                "timeout_seconds": limits[0],
                "unresponsive_seconds": limits[1],
                "limited": 0 if limits == (None, None) else 1,
                "no": no,
            },
        )
    status = old if verb.status is UNSET else verb.status
    check_transition("Rollout", verb.rollout_id, ROLLOUT_TRANSITIONS, old, status)
    data = {
        name.removeprefix("packed_"): events.packed(value) if name.startswith("packed_") else value
        for name, value in changes.items()
    }
    if status != old:
        move_rollout(db, no, verb.rollout_id, status, data)
    elif data:
        events.record(db, "rollout.updated", data, rollout_id=verb.rollout_id)
    fresh = db.all(f"SELECT {ROLLOUT_COLUMNS} FROM rollouts r WHERE r.no = :no", {"no": no})
    return rollouts_from_rows(db, fresh)[0]


def _changed_columns(db: Session, verb: verbs.UpdateRollout) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if verb.input is not UNSET:
        changes["packed_input"] = pack(verb.input, "The rollout's input")
    if verb.mode is not UNSET:
        if verb.mode not in (None, "train", "val", "test"):
            raise BadInputError(f"{verb.mode!r} is no mode; use 'train', 'val', 'test' or None.")
        changes["mode"] = verb.mode
    if verb.resources_id is not UNSET:
        if verb.resources_id is not None:
            resources.require(db, verb.resources_id)
        changes["resources_id"] = verb.resources_id
    if verb.config is not UNSET:
        changes["packed_config"] = pack_config(verb.config)
    if verb.metadata is not UNSET:
        changes["packed_metadata"] = None if verb.metadata is None else pack(verb.metadata, "The metadata")
    return changes
