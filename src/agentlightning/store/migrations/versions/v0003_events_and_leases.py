"""Training events, and leases of attempts.

What is there already gets its history's first event: a snapshot.

Revision ID: 0003
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import msgspec
import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

Number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
Name = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")

_BATCH = 1000
_ROLLOUTS = """SELECT no, rollout_id, packed_input, start_time, end_time, mode, resources_id, status, packed_config,
    packed_metadata, attempt_count, queue_position FROM rollouts WHERE no > :after ORDER BY no LIMIT :limit"""
_ATTEMPTS = """SELECT rollout_no, no, attempt_id, sequence_id, start_time, end_time, status, worker_id,
    last_heartbeat_time, packed_metadata FROM attempts WHERE rollout_no > :after AND rollout_no <= :last
    ORDER BY rollout_no, sequence_id"""
_SPANS = """SELECT s.attempt_no, s.span_id, s.sequence_id FROM spans s JOIN attempts a ON a.no = s.attempt_no
    WHERE a.rollout_no > :after AND a.rollout_no <= :last ORDER BY s.attempt_no, s.no"""
_RESOURCES = """SELECT resources_id, create_time, update_time, version, packed_resources, position
    FROM resources ORDER BY position"""

events = sa.table("events", *(sa.column(name) for name in ("time", "kind", "rollout_id", "attempt_id", "packed_data")))


def upgrade() -> None:
    op.create_table(
        "events",
        sa.Column("no", Number, primary_key=True),
        sa.Column("time", sa.Float, nullable=False),
        sa.Column("kind", Name, nullable=False),
        sa.Column("rollout_id", Name),
        sa.Column("attempt_id", Name),
        sa.Column("packed_data", sa.LargeBinary, nullable=False),
    )
    _index("events_rollout", "events", "rollout_id", "rollout_id")
    op.add_column("attempts", sa.Column("lease_s", sa.Float))
    op.add_column("attempts", sa.Column("lease_until", sa.Float))
    _index("attempts_lease", "attempts", "lease_until", "lease_until")
    _index("attempts_lease_worker", "attempts", "worker_id", "lease_until")
    for batch in _snapshots():
        op.bulk_insert(events, batch)  # type: ignore[arg-type]


def _index(name: str, table: str, column: str, present: str) -> None:
    condition = sa.text(f"{present} IS NOT NULL")
    op.create_index(name, table, [column], sqlite_where=condition, postgresql_where=condition)


def _snapshots() -> Iterator[list[dict[str, Any]]]:
    """Events that say what there is, a batch at a time."""
    at = time.time()

    def event(kind: str, rollout_id: str | None, data: dict[str, Any]) -> dict[str, Any]:
        packed = msgspec.msgpack.encode(data)
        return {"time": at, "kind": kind, "rollout_id": rollout_id, "attempt_id": None, "packed_data": packed}

    resources = [dict(row) for row in _all(_RESOURCES)]
    for row in resources:
        row["resources"] = _raw(row.pop("packed_resources"))
    if resources:
        yield [event("resource.snapshot", None, row) for row in resources]
    after = 0
    while rollouts := [dict(row) for row in _all(_ROLLOUTS, after=after, limit=_BATCH)]:
        attempts = _attempts(after, rollouts[-1]["no"])
        after = rollouts[-1]["no"]
        yield [event("rollout.snapshot", row["rollout_id"], _rollout(row, attempts)) for row in rollouts]


def _attempts(after: int, last: int) -> dict[int, list[dict[str, Any]]]:
    """By the rollout's `no`."""
    spans = {
        no: [(row["span_id"], row["sequence_id"]) for row in rows]
        for no, rows in groupby(_all(_SPANS, after=after, last=last), key=lambda row: row["attempt_no"])
    }
    found: dict[int, list[dict[str, Any]]] = {}
    for row in (dict(r) for r in _all(_ATTEMPTS, after=after, last=last)):
        added = spans.get(row.pop("no"), [])
        row["metadata"] = _raw(row.pop("packed_metadata"))
        row |= {"span_ids": [s for s, _ in added], "sequence_ids": [n for _, n in added]}
        found.setdefault(row.pop("rollout_no"), []).append(row)
    return found


def _rollout(row: dict[str, Any], attempts: dict[int, list[dict[str, Any]]]) -> dict[str, Any]:
    data = {name: value for name, value in row.items() if name not in ("no", "rollout_id", "attempt_count")}
    for name in ("input", "config", "metadata"):
        data[name] = _raw(data.pop(f"packed_{name}"))
    return {**data, "attempts": attempts.get(row["no"], [])}


def _raw(blob: Any) -> msgspec.Raw | None:
    """Packed values become part of the event as they are."""
    return None if blob is None else msgspec.Raw(bytes(blob))


def _all(query: str, **params: int) -> Iterator[Any]:
    return iter(op.get_bind().execute(sa.text(query), params).mappings().all())
