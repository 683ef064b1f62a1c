"""The queue: rollouts enter at the tail, are claimed at the head, oldest first."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import islice
from typing import Any

from pydantic import ValidationError

from agentlightning.kit.clock import now
from agentlightning.kit.db import Row, Session
from agentlightning.kit.errors import ConflictError
from agentlightning.kit.ids import id_from_key, new_id
from agentlightning.schemas import Attempt, AttemptedRollout, EnqueueRolloutRequest, Rollout, RolloutConfig
from agentlightning.schemas.building import construct
from agentlightning.store import verbs
from agentlightning.store.ops import events, payloads, resources, workers
from agentlightning.store.ops.lifecycle import NEXT_QUEUE_POSITION, QUEUED
from agentlightning.store.ops.rows import (
    ATTEMPT_COLUMNS,
    PACKED_COLUMNS,
    ROLLOUT_BLOBS,
    ROLLOUT_COLUMNS,
    SELECT_WITH_LATEST,
    attempted,
    by_id,
    default_config,
    find_rollout,
    lock_rollouts,
    pack_config,
    rollout_values,
    rollouts_from_rows,
    unknown_rollout,
)
from agentlightning.store.ops.watchdog import check_lease, check_timeouts
from agentlightning.store.records import bad_model, pack

_INSERT_ROLLOUT = """INSERT INTO rollouts (rollout_id, packed_input, start_time, mode, resources_id, status,
    packed_config, packed_metadata, attempt_count) VALUES (:rollout_id, :packed_input, :start_time,
    :mode, :resources_id, :status, :packed_config, :packed_metadata, :attempt_count)"""

# Rows of one call may get the same position; `no` keeps them in order.
_ENQUEUE_ROLLOUT = f"""INSERT INTO rollouts (rollout_id, packed_input, start_time, mode, resources_id, status,
    packed_config, packed_metadata, attempt_count, queue_position) VALUES (:rollout_id, :packed_input, :start_time,
    :mode, :resources_id, :status, :packed_config, :packed_metadata, :attempt_count, {NEXT_QUEUE_POSITION})"""

_INSERT_ATTEMPT = """INSERT INTO attempts (rollout_no, attempt_id, sequence_id, start_time, status, worker_id,
    last_span_sequence_id, watched, timeout_seconds, unresponsive_seconds, claim_id, lease_s, lease_until)
    VALUES (:rollout_no, :attempt_id, :sequence_id, :start_time, 'preparing', :worker_id, 0, :watched,
    :timeout_seconds, :unresponsive_seconds, :claim_id, :lease_s, :lease_until)"""

_HEAD = f"""SELECT {ROLLOUT_COLUMNS}, r.no, r.attempt_count FROM rollouts r WHERE r.queue_position IS NOT NULL
    ORDER BY r.queue_position, r.no LIMIT :limit /*pg FOR UPDATE OF r SKIP LOCKED */"""

_CLAIM = """UPDATE rollouts SET status = 'preparing', queue_position = NULL, end_time = NULL,
    attempt_count = :sequence_id WHERE no = :rollout_no"""

_CLAIMED_BEFORE = f"""SELECT {ROLLOUT_COLUMNS}, {ATTEMPT_COLUMNS}, a.claim_id FROM attempts a
    JOIN rollouts r ON r.no = a.rollout_no AND r.attempt_count = a.sequence_id
    WHERE a.claim_id IN (:*ids) AND a.status IN ('preparing', 'running') AND r.status IN ('preparing', 'running')
    ORDER BY a.no"""
_LOCK_CLAIMS = "SELECT pg_advisory_xact_lock(hashtextextended(id, 0)) FROM unnest(CAST(:ids AS text[])) AS id"
_ASKED_AGAIN = """UPDATE attempts SET last_heartbeat_time = :now,
    lease_until = CASE WHEN lease_until IS NOT NULL THEN :now + lease_s END WHERE claim_id IN (:*ids)"""

_RELEASE = """UPDATE rollouts SET status = CASE WHEN attempt_count = 1 THEN 'queuing' ELSE 'requeuing' END,
    attempt_count = attempt_count - 1,
    queue_position = (SELECT coalesce(min(queue_position), 1) - 1 FROM rollouts WHERE queue_position IS NOT NULL)
    WHERE rollout_id = :rollout_id AND status = 'preparing' AND attempt_count = :sequence_id RETURNING no"""


def enqueue_many_rollouts(db: Session, verb: verbs.EnqueueManyRollouts) -> list[Rollout]:
    """See `LightningStore.enqueue_many_rollouts`."""
    ids = [_id_of(request) for request in verb.rollouts]
    existing = _find_existing(db, [rollout_id for rollout_id in ids if rollout_id])
    fallback = resources.latest_id(db)
    for resources_id in {r.resources_id for r in verb.rollouts if r.resources_id is not None}:
        resources.require(db, resources_id)
    rows: list[dict[str, Any]] = []
    result: list[Rollout] = []
    for request, rollout_id in zip(verb.rollouts, ids, strict=True):
        known = existing.get(rollout_id) if rollout_id else None
        if known is not None:
            _check_same(known, request.input)
            result.append(known)
            continue
        rollout = _new_rollout(request, "queuing", fallback)
        rows.append(_rollout_row(rollout, attempt_count=0))
        result.append(rollout)
        if rollout_id:
            existing[rollout_id] = rollout  # the same id twice in one call
    if rows:
        written = payloads.stashed(db, rows, *PACKED_COLUMNS)
        db.run_many(_ENQUEUE_ROLLOUT, written)
        for row in written:
            events.record(db, "rollout.enqueued", _rollout_data(row), rollout_id=row["rollout_id"])
        db.announce(QUEUED)
    return result


def merged_enqueue_many_rollouts(db: Session, together: Sequence[verbs.EnqueueManyRollouts]) -> list[list[Rollout]]:
    """`enqueue_many_rollouts` for each, in a few statements for all."""
    everything = verbs.EnqueueManyRollouts(rollouts=[request for verb in together for request in verb.rollouts])
    rollouts = iter(enqueue_many_rollouts(db, everything))
    return [[next(rollouts) for _ in verb.rollouts] for verb in together]


def start_rollout(db: Session, verb: verbs.StartRollout) -> AttemptedRollout:
    """See `LightningStore.start_rollout`."""
    if verb.rollout_id and (known := find_rollout(db, verb.rollout_id)):
        _check_same(known, verb.input)
        if not isinstance(known, AttemptedRollout):
            raise ConflictError(f"Rollout {known.rollout_id!r} is queued already.", hint="Claim it, or use another id.")
        return known
    if verb.resources_id is not None:
        resources.require(db, verb.resources_id)
    try:
        request = EnqueueRolloutRequest(
            input=verb.input,
            mode=verb.mode,
            resources_id=verb.resources_id,
            config=verb.config,
            metadata=verb.metadata,
            rollout_id=verb.rollout_id,
        )
    except ValidationError as error:
        raise bad_model(error) from error
    rollout = _new_rollout(request, "preparing", resources.latest_id(db))
    row = payloads.stashed_one(db, _rollout_row(rollout, attempt_count=1), *PACKED_COLUMNS)
    db.run(_INSERT_ROLLOUT, row)
    no = db.all("SELECT no FROM rollouts WHERE rollout_id = :id", {"id": rollout.rollout_id})[0][0]
    attempt = _new_attempt(rollout.rollout_id, 1, verb.worker_id)
    db.run(_INSERT_ATTEMPT, _attempt_row(no, attempt, rollout.config, None))
    data = {**_rollout_data(row), "attempt": _attempt_data(attempt)}
    events.record(db, "rollout.started", data, rollout_id=rollout.rollout_id, attempt_id=attempt.attempt_id)
    if verb.worker_id:
        workers.mark_busy(db, verb.worker_id, rollout.rollout_id, attempt.attempt_id, dequeued=False)
    return attempted(dict(rollout.__dict__), attempt)


def dequeue_many_rollouts(
    db: Session, verb: verbs.DequeueManyRollouts, *, since: float = 0.0
) -> list[AttemptedRollout]:
    """Claim without waiting; see `LightningStore.dequeue_many_rollouts`, and `check_timeouts` for `since`."""
    return merged_dequeue_many_rollouts(db, [verb], since=since)[0]


def merged_dequeue_many_rollouts(
    db: Session, together: Sequence[verbs.DequeueManyRollouts], *, since: float = 0.0
) -> list[list[AttemptedRollout]]:
    """`dequeue_many_rollouts` for each, in a few statements for all; who comes first gets the oldest."""
    for verb in together:
        check_lease(verb.lease_s)
    given = _claimed_before(db, {verb.claim_id for verb in together if verb.claim_id is not None})
    fresh = [verb for verb in together if verb.claim_id not in given]
    if fresh and not db.memo.get("timeouts checked"):
        check_timeouts(db, since=since)
        db.memo["timeouts checked"] = True
    wanted = sum(max(0, verb.limit) for verb in fresh)
    head = iter(payloads.resolve(db, db.all(_HEAD, {"limit": wanted}), *ROLLOUT_BLOBS)) if wanted else iter(())
    rows: list[dict[str, Any]] = []
    result: list[list[AttemptedRollout]] = []
    with db.deferring():
        for verb in together:
            if verb.claim_id in given:  # before this transaction, or by the same claim a moment ago
                result.append(given[verb.claim_id])
                continue
            claimed = [_claim(db, row, verb, rows) for row in islice(head, max(0, verb.limit))]
            _mark_claimer(db, verb.worker_id, claimed)
            if verb.claim_id is not None and claimed:
                given[verb.claim_id] = claimed
            result.append(claimed)
        if rows:
            db.run_many(_CLAIM, rows)
            db.run_many(_INSERT_ATTEMPT, rows)
    return result


def _claim(db: Session, row: Row, verb: verbs.DequeueManyRollouts, rows: list[dict[str, Any]]) -> AttemptedRollout:
    """Hand out a row of `_HEAD`; what has to be written is added to `rows`."""
    values = rollout_values(row)
    values["status"], values["end_time"] = "preparing", None
    attempt = _new_attempt(row[0], row[-1] + 1, verb.worker_id)
    rows.append(_attempt_row(row[-2], attempt, values["config"], verb.claim_id, verb.lease_s))
    _record_start(db, attempt)
    return attempted(values, attempt)


def _mark_claimer(db: Session, worker_id: str | None, claimed: Sequence[AttemptedRollout]) -> None:
    if worker_id and claimed:  # a worker's row shows one assignment: the last
        last = claimed[-1]
        workers.mark_busy(db, worker_id, last.rollout_id, last.attempt.attempt_id, dequeued=True)
    elif worker_id:
        workers.mark_empty_handed(db, worker_id)


def _claimed_before(db: Session, claim_ids: Collection[str]) -> dict[str | None, list[AttemptedRollout]]:
    """What these claims have given already; those that have given nothing are left out.

    Whoever asks again lives, and gets these: they are marked, so that nobody takes them back on behalf of the first
    answer, which went astray.
    """
    if not claim_ids:
        return {}
    ordered = sorted(claim_ids)
    db.lock(_LOCK_CLAIMS, {"ids": ordered})  # the same claim may arrive at two processes at once
    rows = db.all(_CLAIMED_BEFORE, {"ids": ordered})
    if not rows:
        return {}
    db.run(_ASKED_AGAIN, {"ids": ordered, "now": now()})
    found: dict[str | None, list[AttemptedRollout]] = {}
    for row, rollout in zip(rows, rollouts_from_rows(db, [row[:-1] for row in rows]), strict=True):
        if isinstance(rollout, AttemptedRollout):
            found.setdefault(row[-1], []).append(rollout)
    return found


def has_queued(db: Session) -> bool:
    """Whether anything is in the queue, or was until a claim that is under way."""
    return db.first("SELECT 1 FROM rollouts WHERE queue_position IS NOT NULL LIMIT 1") is not None


def release_claims(db: Session, claimed: Sequence[AttemptedRollout]) -> int:
    """Undo claims whose answer never reached the claimer: back to the head of the queue, attempts forgotten."""
    released = 0
    lock_rollouts(db, [rollout.rollout_id for rollout in claimed])
    for rollout in reversed(claimed):
        attempt = rollout.attempt
        key = {"rollout_id": rollout.rollout_id, "sequence_id": attempt.sequence_id}
        untouched = db.first(
            """SELECT 1 FROM attempts WHERE attempt_id = :id AND status = 'preparing' AND last_span_sequence_id = 0
            AND last_heartbeat_time IS NULL""",
            {"id": attempt.attempt_id},
        )
        if untouched and db.all(_RELEASE, key):
            db.run("DELETE FROM attempts WHERE attempt_id = :id", {"id": attempt.attempt_id})
            data = {"sequence_id": attempt.sequence_id}
            events.record(db, "claim.released", data, rollout_id=rollout.rollout_id, attempt_id=attempt.attempt_id)
            released += 1
    if released:
        db.announce(QUEUED)
    return released


def release_claim(db: Session, verb: verbs.ReleaseClaim) -> int:
    """As `release_claims`, for a claim by its name."""
    rows = db.all(_CLAIMED_BEFORE, {"ids": [verb.claim_id]})
    claimed = rollouts_from_rows(db, [row[:-1] for row in rows])
    return release_claims(db, [rollout for rollout in claimed if isinstance(rollout, AttemptedRollout)])


def start_attempt(db: Session, verb: verbs.StartAttempt) -> AttemptedRollout:
    """See `LightningStore.start_attempt`."""
    check_lease(verb.lease_s)
    if verb.claim_id is not None and (before := _claimed_before(db, {verb.claim_id})):
        return before[verb.claim_id][0]
    lock_rollouts(db, [verb.rollout_id])
    row = db.first(
        f"SELECT {ROLLOUT_COLUMNS}, r.no, r.attempt_count FROM rollouts r WHERE r.rollout_id = :id",
        {"id": verb.rollout_id},
    )
    if row is None:
        raise unknown_rollout(verb.rollout_id)
    rollout = rollouts_from_rows(db, [row[:-2]])[0]
    rollout.status, rollout.end_time = "preparing", None
    attempt = _new_attempt(rollout.rollout_id, row[-1] + 1, verb.worker_id)
    params = _attempt_row(row[-2], attempt, rollout.config, verb.claim_id, verb.lease_s)
    db.run(_CLAIM, params)
    db.run(_INSERT_ATTEMPT, params)
    _record_start(db, attempt)
    if verb.worker_id:
        workers.mark_busy(db, verb.worker_id, rollout.rollout_id, attempt.attempt_id, dequeued=False)
    return attempted(dict(rollout.__dict__), attempt)


def _id_of(request: EnqueueRolloutRequest) -> str | None:
    """The id that the caller has named, or that follows from the key."""
    if request.idempotency_key:
        return id_from_key("ro", request.idempotency_key)
    return request.rollout_id


def _find_existing(db: Session, rollout_ids: list[str]) -> dict[str, Rollout]:
    if not rollout_ids:
        return {}
    return by_id(
        db,
        db.all(
            f"{SELECT_WITH_LATEST} WHERE r.rollout_id IN (:*ids)",
            {"ids": rollout_ids},
        ),
    )


def _check_same(known: Rollout, given_input: Any) -> None:
    mine, theirs = pack(known.input, "The input"), pack(given_input, "The rollout's input")
    if mine != theirs:
        raise ConflictError(
            f"Rollout {known.rollout_id!r} exists with another input.",
            hint="Use a new id for a new task.",
            details={"rollout_id": known.rollout_id},
        )


def _new_rollout(request: EnqueueRolloutRequest, status: str, latest_resources: str | None) -> Rollout:
    return construct(
        Rollout,
        {
            "rollout_id": _id_of(request) or new_id("ro"),
            "input": request.input,
            "start_time": now(),
            "end_time": None,
            "mode": request.mode,
            "resources_id": request.resources_id if request.resources_id is not None else latest_resources,
            "status": status,
            "config": default_config() if request.config is None else request.config.model_copy(deep=True),
            "metadata": dict(request.metadata) if request.metadata is not None else {},
        },
    )


def _rollout_row(rollout: Rollout, *, attempt_count: int) -> dict[str, Any]:
    return {
        "rollout_id": rollout.rollout_id,
        "packed_input": pack(rollout.input, "The rollout's input"),
        "start_time": rollout.start_time,
        "mode": rollout.mode,
        "resources_id": rollout.resources_id,
        "status": rollout.status,
        "packed_config": pack_config(rollout.config),
        "packed_metadata": pack(rollout.metadata, "The rollout's metadata"),
        "attempt_count": attempt_count,
    }


def _rollout_data(row: dict[str, Any]) -> dict[str, Any]:
    """A new rollout's row as an event's data."""
    return {
        "input": events.packed(row["packed_input"]),
        "start_time": row["start_time"],
        "mode": row["mode"],
        "resources_id": row["resources_id"],
        "config": events.packed(row["packed_config"]),
        "metadata": events.packed(row["packed_metadata"]),
    }


def _attempt_data(attempt: Attempt) -> dict[str, Any]:
    return {"sequence_id": attempt.sequence_id, "start_time": attempt.start_time, "worker_id": attempt.worker_id}


def _record_start(db: Session, attempt: Attempt) -> None:
    ids = {"rollout_id": attempt.rollout_id, "attempt_id": attempt.attempt_id}
    events.record(db, "attempt.started", _attempt_data(attempt), **ids)


def _new_attempt(rollout_id: str, sequence_id: int, worker_id: str | None) -> Attempt:
    return construct(
        Attempt,
        {
            "rollout_id": rollout_id,
            "attempt_id": new_id("at"),
            "sequence_id": sequence_id,
            "start_time": now(),
            "end_time": None,
            "status": "preparing",
            "worker_id": worker_id,
            "last_heartbeat_time": None,
            "metadata": None,
        },
    )


def _attempt_row(
    rollout_no: int, attempt: Attempt, config: RolloutConfig, claim_id: str | None, lease_s: float | None = None
) -> dict[str, Any]:
    limits = (config.timeout_seconds, config.unresponsive_seconds)
    return {
        "rollout_no": rollout_no,
        "attempt_id": attempt.attempt_id,
        "sequence_id": attempt.sequence_id,
        "start_time": attempt.start_time,
        "worker_id": attempt.worker_id,
        "watched": None if limits == (None, None) else 1,
        "timeout_seconds": limits[0],
        "unresponsive_seconds": limits[1],
        "claim_id": claim_id,
        "lease_s": lease_s,
        "lease_until": None if lease_s is None else attempt.start_time + lease_s,
    }
