"""Workers: heartbeats, and busy or idle as it follows from claiming and from attempts."""

from __future__ import annotations

from agentlightning.kit.clock import now
from agentlightning.kit.db import Row, Session
from agentlightning.schemas import Worker
from agentlightning.schemas.building import construct
from agentlightning.store import verbs
from agentlightning.store.records import pack, unpack
from agentlightning.store.verbs import UNSET

WORKER_COLUMNS = """worker_id, status, packed_heartbeat_stats, last_heartbeat_time, last_dequeue_time, last_busy_time,
    last_idle_time, current_rollout_id, current_attempt_id"""

_BUSY = """INSERT INTO workers
    (worker_id, status, last_busy_time, current_rollout_id, current_attempt_id, last_dequeue_time)
    VALUES (:worker_id, 'busy', :now, :rollout_id, :attempt_id, :dequeued)
    ON CONFLICT (worker_id) DO UPDATE SET status = 'busy', last_busy_time = excluded.last_busy_time,
    current_rollout_id = excluded.current_rollout_id, current_attempt_id = excluded.current_attempt_id,
    last_dequeue_time = coalesce(excluded.last_dequeue_time, workers.last_dequeue_time)"""

_FREE = """INSERT INTO workers (worker_id, status, last_idle_time) VALUES (:worker_id, :status, :now)
    ON CONFLICT (worker_id) DO UPDATE SET status = excluded.status, last_idle_time = excluded.last_idle_time,
    current_rollout_id = NULL, current_attempt_id = NULL"""

_EMPTY_HANDED = """INSERT INTO workers (worker_id, status, last_idle_time, last_dequeue_time)
    VALUES (:worker_id, 'idle', :now, :now)
    ON CONFLICT (worker_id) DO UPDATE SET last_dequeue_time = excluded.last_dequeue_time, status = 'idle',
    last_idle_time = CASE WHEN workers.status = 'idle' THEN workers.last_idle_time ELSE excluded.last_idle_time END"""

_HEARTBEAT = """INSERT INTO workers (worker_id, status, last_heartbeat_time, packed_heartbeat_stats)
    VALUES (:worker_id, 'unknown', :now, :stats)
    ON CONFLICT (worker_id) DO UPDATE SET last_heartbeat_time = :now,
    packed_heartbeat_stats = CASE WHEN :given THEN :stats ELSE workers.packed_heartbeat_stats END"""


_RENEW_LEASES = """UPDATE attempts SET lease_until = :now + lease_s
    WHERE worker_id = :worker_id AND lease_until IS NOT NULL"""


def worker_from_row(row: Row) -> Worker:
    """From `WORKER_COLUMNS`."""
    return construct(
        Worker,
        {
            "worker_id": row[0],
            "status": row[1],
            "heartbeat_stats": unpack(row[2]),
            "last_heartbeat_time": row[3],
            "last_dequeue_time": row[4],
            "last_busy_time": row[5],
            "last_idle_time": row[6],
            "current_rollout_id": row[7],
            "current_attempt_id": row[8],
        },
    )


def mark_busy(db: Session, worker_id: str, rollout_id: str, attempt_id: str, *, dequeued: bool) -> None:
    """The worker works on the attempt; `dequeued` when it has just claimed it."""
    at = now()
    db.run(
        _BUSY,
        {
            "worker_id": worker_id,
            "now": at,
            "rollout_id": rollout_id,
            "attempt_id": attempt_id,
            "dequeued": at if dequeued else None,
        },
        once_per="worker_id",
    )


def mark_empty_handed(db: Session, worker_id: str) -> None:
    """The worker asked for work and there was none."""
    db.run(_EMPTY_HANDED, {"worker_id": worker_id, "now": now()}, once_per="worker_id")


def follow_attempt(db: Session, worker_id: str, rollout_id: str, attempt_id: str, status: str) -> None:
    """Set the worker's status to what its attempt's status says."""
    if status in ("succeeded", "failed", "timeout", "unresponsive"):
        free = "idle" if status in ("succeeded", "failed") else "unknown"
        db.run(_FREE, {"worker_id": worker_id, "status": free, "now": now()}, once_per="worker_id")
    else:
        mark_busy(db, worker_id, rollout_id, attempt_id, dequeued=False)


def get_worker_by_id(db: Session, verb: verbs.GetWorkerById) -> Worker | None:
    """See `LightningStore.get_worker_by_id`."""
    row = db.first(f"SELECT {WORKER_COLUMNS} FROM workers WHERE worker_id = :worker_id", {"worker_id": verb.worker_id})
    return None if row is None else worker_from_row(row)


def update_worker(db: Session, verb: verbs.UpdateWorker) -> Worker:
    """See `LightningStore.update_worker`."""
    given = verb.heartbeat_stats is not UNSET
    stats = pack(verb.heartbeat_stats, "heartbeat_stats") if given else None
    db.run(_RENEW_LEASES, {"worker_id": verb.worker_id, "now": now()})
    rows = db.all(
        f"{_HEARTBEAT} RETURNING {WORKER_COLUMNS}",
        {"worker_id": verb.worker_id, "now": now(), "stats": stats, "given": given},
    )
    return worker_from_row(rows[0])
