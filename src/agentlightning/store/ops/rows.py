"""Rows of rollouts and attempts as objects, and back. Column lists here and unpacking stay side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agentlightning.kit.db import Row, Session
from agentlightning.kit.errors import NotFoundError
from agentlightning.schemas import Attempt, AttemptedRollout, Rollout, RolloutConfig
from agentlightning.schemas.building import construct
from agentlightning.store.ops import payloads
from agentlightning.store.records import pack, unpack

ROLLOUT_COLUMNS = """r.rollout_id, r.packed_input, r.start_time, r.end_time, r.mode, r.resources_id, r.status,
    r.packed_config, r.packed_metadata"""
_ROLLOUT_WIDTH = 9
ROLLOUT_STATUS = 6

ATTEMPT_COLUMNS = """a.attempt_id, a.sequence_id, a.start_time, a.end_time, a.status, a.worker_id,
    a.last_heartbeat_time, a.packed_metadata"""

# Where packed values stand that may be large: to write, and in rows of the columns above.
PACKED_COLUMNS = ("packed_input", "packed_metadata")
ROLLOUT_BLOBS = (1, 8)
ATTEMPT_BLOB = 7

SELECT_WITH_LATEST = f"""SELECT {ROLLOUT_COLUMNS}, {ATTEMPT_COLUMNS} FROM rollouts r
    LEFT JOIN attempts a ON a.rollout_no = r.no AND a.sequence_id = r.attempt_count"""

_LOCK = "SELECT 1 FROM rollouts WHERE rollout_id IN (:*ids) ORDER BY no FOR UPDATE"

_DEFAULT_CONFIG = dict(vars(RolloutConfig()))
_PACKED_DEFAULT_CONFIG = pack({}, "config")


def pack_config(config: RolloutConfig | None) -> bytes:
    """Only what differs from the defaults."""
    if config is None or vars(config) == _DEFAULT_CONFIG:
        return _PACKED_DEFAULT_CONFIG
    return pack(config.model_dump(exclude_defaults=True), "The rollout's config")


def unpack_config(blob: bytes) -> RolloutConfig:
    """Inverse of `pack_config`; a fresh object every time."""
    return default_config() if blob == _PACKED_DEFAULT_CONFIG else RolloutConfig(**unpack(blob))


def default_config() -> RolloutConfig:
    """A fresh `RolloutConfig()`, in a third of the time."""
    return construct(RolloutConfig, {**_DEFAULT_CONFIG, "retry_condition": []}, given=())


def attempt_values(rollout_id: str, row: Row) -> dict[str, Any]:
    """Fields of an attempt from `ATTEMPT_COLUMNS`."""
    return {
        "rollout_id": rollout_id,
        "attempt_id": row[0],
        "sequence_id": row[1],
        "start_time": row[2],
        "end_time": row[3],
        "status": row[4],
        "worker_id": row[5],
        "last_heartbeat_time": row[6],
        "metadata": unpack(row[7]),
    }


def rollout_values(row: Row) -> dict[str, Any]:
    """Fields of a rollout from `ROLLOUT_COLUMNS`."""
    return {
        "rollout_id": row[0],
        "input": unpack(row[1]),
        "start_time": row[2],
        "end_time": row[3],
        "mode": row[4],
        "resources_id": row[5],
        "status": row[6],
        "config": unpack_config(row[7]),
        "metadata": unpack(row[8]),
    }


def rollout_from_row(row: Row) -> Rollout:
    """From `ROLLOUT_COLUMNS`, or with the latest attempt from `SELECT_WITH_LATEST`."""
    values = rollout_values(row)
    if len(row) == _ROLLOUT_WIDTH or row[_ROLLOUT_WIDTH] is None:
        return construct(Rollout, values)
    return attempted(values, construct(Attempt, attempt_values(row[0], row[_ROLLOUT_WIDTH:])))


def rollouts_from_rows(db: Session, rows: list[Row]) -> list[Rollout]:
    """As `rollout_from_row`, with large values put back."""
    if not rows:
        return []
    blobs = ROLLOUT_BLOBS if len(rows[0]) == _ROLLOUT_WIDTH else (*ROLLOUT_BLOBS, _ROLLOUT_WIDTH + ATTEMPT_BLOB)
    return [rollout_from_row(row) for row in payloads.resolve(db, rows, *blobs)]


def attempts_from_rows(db: Session, rollout_id: str, rows: list[Row]) -> list[Attempt]:
    """From `ATTEMPT_COLUMNS`, with large values put back."""
    return [construct(Attempt, attempt_values(rollout_id, row)) for row in payloads.resolve(db, rows, ATTEMPT_BLOB)]


def attempted(values: dict[str, Any], attempt: Attempt) -> AttemptedRollout:
    """A rollout's values, which become the object's own, with its attempt."""
    values["attempt"] = attempt
    return construct(AttemptedRollout, values)


def find_rollout(db: Session, rollout_id: str) -> Rollout | None:
    """The rollout with its latest attempt."""
    row = db.first(f"{SELECT_WITH_LATEST} WHERE r.rollout_id = :rollout_id", {"rollout_id": rollout_id})
    return None if row is None else rollouts_from_rows(db, [row])[0]


def lock_rollouts(db: Session, rollout_ids: Sequence[str]) -> None:
    """Keep other writers away from these rollouts, their attempts and spans until the transaction ends.

    Whoever reads a rollout in order to change it, or what belongs to it, comes here first; always in the same order, so
    that two never wait for each other.
    """
    db.lock(_LOCK, {"ids": list(rollout_ids)})


def require_rollout(db: Session, rollout_id: str) -> int:
    """The rollout's `no`.

    Raises:
        NotFoundError: It does not exist.
    """
    row = db.first("SELECT no FROM rollouts WHERE rollout_id = :rollout_id", {"rollout_id": rollout_id})
    if row is None:
        raise unknown_rollout(rollout_id)
    return row[0]


def unknown_rollout(rollout_id: str) -> NotFoundError:
    """The error for it."""
    return NotFoundError(f"There is no rollout {rollout_id!r}.", details={"rollout_id": rollout_id})


def unknown_attempt(rollout_id: str, attempt_id: str) -> NotFoundError:
    """The error for it."""
    return NotFoundError(
        f"Rollout {rollout_id!r} has no attempt {attempt_id!r}.",
        details={"rollout_id": rollout_id, "attempt_id": attempt_id},
    )


def by_id(db: Session, rows: list[Row]) -> dict[str, Rollout]:
    """Rollouts of `rows` by id."""
    return {rollout.rollout_id: rollout for rollout in rollouts_from_rows(db, rows)}
