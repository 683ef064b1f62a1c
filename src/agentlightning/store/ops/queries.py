"""Reads whose filters, order and page are chosen at run time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import and_

from agentlightning.kit.db import Session, contains, one_of
from agentlightning.schemas import Attempt, AttemptedRollout, PaginatedResult, ResourcesUpdate, Rollout, Worker
from agentlightning.schemas.rollout import TERMINAL_ROLLOUT_STATUSES
from agentlightning.store import verbs
from agentlightning.store.ops.paging import Condition, columns, combine, named, page, result, text_filters
from agentlightning.store.ops.resources import resources_from_rows
from agentlightning.store.ops.rows import (
    ROLLOUT_STATUS,
    SELECT_WITH_LATEST,
    attempts_from_rows,
    by_id,
    find_rollout,
    require_rollout,
    rollouts_from_rows,
    unknown_rollout,
)
from agentlightning.store.ops.spans import find_attempt, records_from_rows
from agentlightning.store.ops.workers import worker_from_row
from agentlightning.store.tables import attempts, resources, rollouts, spans, workers
from agentlightning.store.verbs import SpanPage

_LATEST = and_(attempts.c.rollout_no == rollouts.c.no, attempts.c.sequence_id == rollouts.c.attempt_count)
FEW = 16
"""So many rollouts are read whole without asking first which of them have ended."""
_STATUSES = "SELECT r.rollout_id, r.status FROM rollouts r WHERE r.rollout_id IN (:*ids)"
_COUNT_ROLLOUTS = "SELECT row_count FROM row_counts WHERE table_name = 'rollouts'"
_WHOLE = f"{SELECT_WITH_LATEST} WHERE r.rollout_id IN (:*ids)"

# The orders of columns are those that the `…_from_row` functions expect.
_ATTEMPT_FIELDS = columns(
    attempts, "attempt_id sequence_id start_time end_time status worker_id last_heartbeat_time packed_metadata"
)
_ROLLOUT_FIELDS = columns(
    rollouts,
    "rollout_id packed_input start_time end_time mode resources_id status packed_config packed_metadata",
)
_RESOURCES_FIELDS = columns(resources, "resources_id create_time update_time version packed_resources")
_WORKER_FIELDS = columns(
    workers,
    "worker_id status packed_heartbeat_stats last_heartbeat_time last_dequeue_time last_busy_time last_idle_time "
    "current_rollout_id current_attempt_id",
)
_SPAN_FIELDS = [
    rollouts.c.rollout_id,
    attempts.c.attempt_id,
    *columns(spans, "sequence_id span_id trace_id parent_id name start_time end_time status_code packed_body"),
]


def query_rollouts(db: Session, verb: verbs.QueryRollouts) -> PaginatedResult[Rollout]:
    """See `LightningStore.query_rollouts`."""
    conditions: list[Condition] = []
    if verb.status_in is not None:
        conditions.append(one_of(rollouts.c.status, verb.status_in))
    if verb.rollout_id_in is not None:
        conditions.append(one_of(rollouts.c.rollout_id, verb.rollout_id_in))
    if verb.rollout_id_contains is not None:
        conditions.append(contains(rollouts.c.rollout_id, verb.rollout_id_contains))
    rows, total = page(
        db,
        verb,
        rollouts.outerjoin(attempts, _LATEST),
        [*_ROLLOUT_FIELDS, *_ATTEMPT_FIELDS],
        combine(conditions, verb.filter_logic),
        named(rollouts, "rollout_id start_time end_time mode resources_id status"),
        rollouts.c.no,
        counted=rollouts,
        count_all=_COUNT_ROLLOUTS,
    )
    return result(verb, rollouts_from_rows(db, rows), total)


def get_rollout_by_id(db: Session, verb: verbs.GetRolloutById) -> Rollout | None:
    """See `LightningStore.get_rollout_by_id`."""
    return find_rollout(db, verb.rollout_id)


def finished_rollouts(db: Session, rollout_ids: Sequence[str]) -> tuple[dict[str, Rollout], list[str]]:
    """Those that have ended, by id, and the ids that do not exist."""
    if len(rollout_ids) > FEW:  # most of many are still running, and whole rows cost more than statuses
        rows = db.all(_STATUSES, {"ids": list(rollout_ids)})
        known = {row[0] for row in rows}
        ended = [rollout_id for rollout_id, status in rows if status in TERMINAL_ROLLOUT_STATUSES]
        found = by_id(db, db.all(_WHOLE, {"ids": ended})) if ended else {}
    else:
        rows = db.all(_WHOLE, {"ids": list(rollout_ids)})
        known = {row[0] for row in rows}
        found = by_id(db, [row for row in rows if row[ROLLOUT_STATUS] in TERMINAL_ROLLOUT_STATUSES])
    return found, [rollout_id for rollout_id in rollout_ids if rollout_id not in known]


def merged_finished_rollouts(
    db: Session, together: Sequence[Sequence[str]]
) -> list[tuple[dict[str, Rollout], list[str]]]:
    """`finished_rollouts` for each, in one query for all."""
    everything = [i for ids in together for i in ids]
    if len(set(everything)) < len(everything):  # callers must not share what they get
        return [finished_rollouts(db, ids) for ids in together]
    found, unknown = finished_rollouts(db, everything)
    missing = set(unknown)
    return [({i: found[i] for i in ids if i in found}, [i for i in ids if i in missing]) for ids in together]


def query_attempts(db: Session, verb: verbs.QueryAttempts) -> PaginatedResult[Attempt]:
    """See `LightningStore.query_attempts`."""
    rows, total = page(
        db,
        verb,
        attempts,
        _ATTEMPT_FIELDS,
        attempts.c.rollout_no == require_rollout(db, verb.rollout_id),
        named(attempts, "attempt_id sequence_id start_time end_time status worker_id last_heartbeat_time"),
        attempts.c.no,
    )
    return result(verb, attempts_from_rows(db, verb.rollout_id, rows), total)


def get_latest_attempt(db: Session, verb: verbs.GetLatestAttempt) -> Attempt | None:
    """See `LightningStore.get_latest_attempt`."""
    rollout = find_rollout(db, verb.rollout_id)
    if rollout is None:
        raise unknown_rollout(verb.rollout_id)
    return rollout.attempt if isinstance(rollout, AttemptedRollout) else None


def query_spans(db: Session, verb: verbs.QuerySpans) -> SpanPage:
    """See `LightningStore.query_spans`."""
    if verb.attempt_id is None or verb.attempt_id == "latest":
        where = rollouts.c.no == require_rollout(db, verb.rollout_id)
        if verb.attempt_id == "latest":
            where = and_(where, attempts.c.sequence_id == rollouts.c.attempt_count)
    else:
        where = attempts.c.no == find_attempt(db, verb.rollout_id, verb.attempt_id)[2]
    filters = text_filters(verb, named(spans, "trace_id span_id parent_id name"))
    source = rollouts.join(attempts, attempts.c.rollout_no == rollouts.c.no).join(
        spans, spans.c.attempt_no == attempts.c.no
    )
    sortable = {
        **named(spans, "sequence_id trace_id span_id parent_id name start_time end_time"),
        "rollout_id": rollouts.c.rollout_id,
        "attempt_id": attempts.c.attempt_id,
    }
    rows, total = page(
        db, verb, source, _SPAN_FIELDS, and_(where, combine(filters, verb.filter_logic)), sortable, spans.c.no
    )
    items = records_from_rows(db, rows)
    return SpanPage(items=items, limit=verb.limit, offset=verb.offset, total=total)


def query_resources(db: Session, verb: verbs.QueryResources) -> PaginatedResult[ResourcesUpdate]:
    """See `LightningStore.query_resources`."""
    rows, total = page(
        db,
        verb,
        resources,
        _RESOURCES_FIELDS,
        combine(text_filters(verb, named(resources, "resources_id")), "and"),
        named(resources, "resources_id create_time update_time version"),
        resources.c.no,
    )
    return result(verb, resources_from_rows(db, rows), total)


def query_workers(db: Session, verb: verbs.QueryWorkers) -> PaginatedResult[Worker]:
    """See `LightningStore.query_workers`."""
    conditions: list[Condition] = []
    if verb.status_in is not None:
        conditions.append(one_of(workers.c.status, verb.status_in))
    if verb.worker_id_contains is not None:
        conditions.append(contains(workers.c.worker_id, verb.worker_id_contains))
    rows, total = page(
        db,
        verb,
        workers,
        _WORKER_FIELDS,
        combine(conditions, verb.filter_logic),
        named(
            workers,
            "worker_id status last_heartbeat_time last_dequeue_time last_busy_time last_idle_time "
            "current_rollout_id current_attempt_id",
        ),
        workers.c.no,
    )
    return result(verb, [worker_from_row(row) for row in rows], total)


def statistics(db: Session, verb: verbs.Statistics) -> dict[str, Any]:
    """See `LightningStore.statistics`."""
    tables = ("rollouts", "attempts", "spans", "resources", "workers")
    return {f"total_{table}": db.all(f"SELECT count(*) FROM {table}")[0][0] for table in tables}
