"""Reads whose filters, order and page are chosen at run time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Select, and_, func, or_, select, true
from sqlalchemy.sql import FromClause

from agentlightning.kit.db import Row, Session, contains, one_of
from agentlightning.kit.errors import BadInputError
from agentlightning.schemas import Attempt, AttemptedRollout, PaginatedResult, ResourcesUpdate, Rollout, Worker
from agentlightning.schemas.rollout import TERMINAL_ROLLOUT_STATUSES
from agentlightning.store import verbs
from agentlightning.store.ops.resources import resources_from_row
from agentlightning.store.ops.rows import (
    SELECT_WITH_LATEST,
    attempt_from_row,
    by_id,
    find_rollout,
    require_rollout,
    rollout_from_row,
    unknown_rollout,
)
from agentlightning.store.ops.spans import find_attempt, record_from_row
from agentlightning.store.ops.workers import worker_from_row
from agentlightning.store.tables import attempts, resources, rollouts, spans, workers
from agentlightning.store.verbs import FilterLogic, Page, SpanPage

R = TypeVar("R")
Condition = ColumnElement[bool]


def _combine(conditions: Sequence[Condition], logic: FilterLogic) -> Condition:
    if not conditions:
        return true()
    return or_(*conditions) if logic == "or" else and_(*conditions)


def _text_filters(verb: object, columns: Mapping[str, ColumnElement[Any]]) -> list[Condition]:
    """Conditions from fields called `x` (equal) and `x_contains` of the verb, for every column `x`."""
    conditions: list[Condition] = []
    for name, column in columns.items():
        equal, part = getattr(verb, name, None), getattr(verb, f"{name}_contains", None)
        if equal is not None:
            conditions.append(column == equal)
        if part is not None:
            conditions.append(contains(column, part))
    return conditions


def _page(
    db: Session,
    verb: Page[R],
    source: FromClause,
    columns: Sequence[ColumnElement[Any]],
    where: Condition,
    sortable: Mapping[str, ColumnElement[Any]],
    number: ColumnElement[Any],
    *,
    counted: FromClause | None = None,
) -> tuple[list[Row], int]:
    """Rows of the page, and how many match in all: as many as in `counted`, where that has fewer joins."""
    if verb.limit < -1 or verb.offset < 0:
        raise BadInputError(
            f"limit={verb.limit}, offset={verb.offset} is no page.", hint="limit: -1 for all, or ≥ 0; offset: ≥ 0."
        )
    if verb.sort_order not in ("asc", "desc"):
        raise BadInputError(f"sort_order is {verb.sort_order!r}.", hint="Use 'asc' or 'desc'.")
    if verb.sort_by is not None and verb.sort_by not in sortable:
        raise BadInputError(f"Cannot sort by {verb.sort_by!r}.", hint=f"Use one of: {', '.join(sortable)}.")
    keys = [number] if verb.sort_by is None else [sortable[verb.sort_by], number]
    query: Select[Any] = select(*columns).select_from(source).where(where)
    query = query.order_by(*(_ordered(key, verb.sort_order) for key in keys))
    if verb.limit != -1:
        query = query.limit(verb.limit)
    if verb.offset:
        query = query.offset(verb.offset)
    rows = db.select(query)
    if verb.limit == -1 and not verb.offset:
        return rows, len(rows)
    total = db.select(select(func.count()).select_from(source if counted is None else counted).where(where))
    return rows, total[0][0]


def _ordered(key: ColumnElement[Any], order: str) -> ColumnElement[Any]:
    """Missing values come first when ascending; without saying so the databases differ."""
    if not getattr(key, "nullable", True):
        return key.desc() if order == "desc" else key.asc()  # so that PostgreSQL can use the index
    return key.desc().nulls_last() if order == "desc" else key.asc().nulls_first()


def _result(verb: Page[R], items: list[Any], total: int) -> PaginatedResult[Any]:
    return PaginatedResult[Any].model_construct(items=items, limit=verb.limit, offset=verb.offset, total=total)


def _columns(table: FromClause, names: str) -> list[ColumnElement[Any]]:
    return [table.c[name] for name in names.split()]


def _named(table: FromClause, names: str) -> dict[str, ColumnElement[Any]]:
    return {name: table.c[name] for name in names.split()}


_LATEST = and_(attempts.c.rollout_no == rollouts.c.no, attempts.c.sequence_id == rollouts.c.attempt_count)
# The orders of columns are those that the `…_from_row` functions expect.
_ATTEMPT_FIELDS = _columns(
    attempts, "attempt_id sequence_id start_time end_time status worker_id last_heartbeat_time packed_metadata"
)
_ROLLOUT_FIELDS = _columns(
    rollouts,
    "rollout_id packed_input start_time end_time mode resources_id status packed_config packed_metadata",
)
_RESOURCES_FIELDS = _columns(resources, "resources_id create_time update_time version packed_resources")
_WORKER_FIELDS = _columns(
    workers,
    "worker_id status packed_heartbeat_stats last_heartbeat_time last_dequeue_time last_busy_time last_idle_time "
    "current_rollout_id current_attempt_id",
)
_SPAN_FIELDS = [
    rollouts.c.rollout_id,
    attempts.c.attempt_id,
    *_columns(spans, "sequence_id span_id trace_id parent_id name start_time end_time status_code packed_body"),
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
    rows, total = _page(
        db,
        verb,
        rollouts.outerjoin(attempts, _LATEST),
        [*_ROLLOUT_FIELDS, *_ATTEMPT_FIELDS],
        _combine(conditions, verb.filter_logic),
        _named(rollouts, "rollout_id start_time end_time mode resources_id status"),
        rollouts.c.no,
        counted=rollouts,
    )
    return _result(verb, [rollout_from_row(row) for row in rows], total)


def get_rollout_by_id(db: Session, verb: verbs.GetRolloutById) -> Rollout | None:
    """See `LightningStore.get_rollout_by_id`."""
    return find_rollout(db, verb.rollout_id)


def finished_rollouts(db: Session, rollout_ids: Sequence[str]) -> tuple[dict[str, Rollout], list[str]]:
    """Those that have ended, by id, and the ids that do not exist."""
    ids = "r.rollout_id IN (:*ids)"
    rows = db.all(f"SELECT r.rollout_id, r.status FROM rollouts r WHERE {ids}", {"ids": list(rollout_ids)})
    known = {row[0]: row[1] for row in rows}
    ended = [rollout_id for rollout_id, status in known.items() if status in TERMINAL_ROLLOUT_STATUSES]
    found = by_id(db.all(f"{SELECT_WITH_LATEST} WHERE {ids}", {"ids": ended})) if ended else {}
    return found, [rollout_id for rollout_id in rollout_ids if rollout_id not in known]


def query_attempts(db: Session, verb: verbs.QueryAttempts) -> PaginatedResult[Attempt]:
    """See `LightningStore.query_attempts`."""
    rows, total = _page(
        db,
        verb,
        attempts,
        _ATTEMPT_FIELDS,
        attempts.c.rollout_no == require_rollout(db, verb.rollout_id),
        _named(attempts, "attempt_id sequence_id start_time end_time status worker_id last_heartbeat_time"),
        attempts.c.no,
    )
    return _result(verb, [attempt_from_row(verb.rollout_id, row) for row in rows], total)


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
    filters = _text_filters(verb, _named(spans, "trace_id span_id parent_id name"))
    source = rollouts.join(attempts, attempts.c.rollout_no == rollouts.c.no).join(
        spans, spans.c.attempt_no == attempts.c.no
    )
    sortable = {
        **_named(spans, "sequence_id trace_id span_id parent_id name start_time end_time"),
        "rollout_id": rollouts.c.rollout_id,
        "attempt_id": attempts.c.attempt_id,
    }
    rows, total = _page(
        db, verb, source, _SPAN_FIELDS, and_(where, _combine(filters, verb.filter_logic)), sortable, spans.c.no
    )
    items = [record_from_row(row) for row in rows]
    return SpanPage(items=items, limit=verb.limit, offset=verb.offset, total=total)


def query_resources(db: Session, verb: verbs.QueryResources) -> PaginatedResult[ResourcesUpdate]:
    """See `LightningStore.query_resources`."""
    rows, total = _page(
        db,
        verb,
        resources,
        _RESOURCES_FIELDS,
        _combine(_text_filters(verb, _named(resources, "resources_id")), "and"),
        _named(resources, "resources_id create_time update_time version"),
        resources.c.no,
    )
    return _result(verb, [resources_from_row(row) for row in rows], total)


def query_workers(db: Session, verb: verbs.QueryWorkers) -> PaginatedResult[Worker]:
    """See `LightningStore.query_workers`."""
    conditions: list[Condition] = []
    if verb.status_in is not None:
        conditions.append(one_of(workers.c.status, verb.status_in))
    if verb.worker_id_contains is not None:
        conditions.append(contains(workers.c.worker_id, verb.worker_id_contains))
    rows, total = _page(
        db,
        verb,
        workers,
        _WORKER_FIELDS,
        _combine(conditions, verb.filter_logic),
        _named(
            workers,
            "worker_id status last_heartbeat_time last_dequeue_time last_busy_time last_idle_time "
            "current_rollout_id current_attempt_id",
        ),
        workers.c.no,
    )
    return _result(verb, [worker_from_row(row) for row in rows], total)


def statistics(db: Session, verb: verbs.Statistics) -> dict[str, Any]:
    """See `LightningStore.statistics`."""
    tables = ("rollouts", "attempts", "spans", "resources", "workers")
    return {f"total_{table}": db.all(f"SELECT count(*) FROM {table}")[0][0] for table in tables}
