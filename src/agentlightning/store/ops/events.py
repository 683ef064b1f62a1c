"""Training events: recorded by operations, written together right before the commit, in the order of commits.

An event carries the fields that it changed, so that folding all events gives the tables again (`ops/replay.py`).
Liveness (heartbeats, leases, workers, reserved sequence ids) is no history and records nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec

from agentlightning.kit.clock import now
from agentlightning.kit.db import Params, Session
from agentlightning.store.ops import payloads
from agentlightning.store.records import pack

RECORDED = "recorded"
"""Announced without a key: there are new events."""

_INSERT = """INSERT INTO events (time, kind, rollout_id, attempt_id, packed_data)
    VALUES (:time, :kind, :rollout_id, :attempt_id, :data)"""


def record(
    db: Session,
    kind: str,
    data: Mapping[str, Any],
    *,
    rollout_id: str | None = None,
    attempt_id: str | None = None,
) -> None:
    """Record that something has happened; forgotten when the operation fails.

    Args:
        db: The operation's session.
        kind: One of `EVENT_KINDS`.
        data: The fields that changed; what is packed already goes in as `packed(...)`, without being encoded again.
        rollout_id: Whom it happened to.
        attempt_id: Likewise.

    Raises:
        BadInputError: `data` holds something that is not plain data.
        PayloadTooLargeError: It is larger than the store takes.
    """
    row = {"kind": kind, "rollout_id": rollout_id, "attempt_id": attempt_id, "data": pack(data, "The event")}
    db.record(payloads.stashed_one(db, row, "data"))  # here, since before the commit is too late to wait for anybody


def packed(column: bytes | None) -> msgspec.Raw | None:
    """The content of a `packed_*` column, to be put into an event's data as it is."""
    return None if column is None else msgspec.Raw(column)


def write(db: Session, rows: Sequence[Params]) -> None:
    """Write what a transaction has recorded; the last thing in it."""
    at = now()
    for row in rows:
        cast(dict[str, Any], row)["time"] = at
    db.run_many(_INSERT, rows)
    db.announce(RECORDED)
