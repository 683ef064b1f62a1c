"""Spans: appended once per attempt and span id; their arrival is a sign of life."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from agentlightning.kit.db import Row, Session
from agentlightning.store import verbs
from agentlightning.store.ops import events, payloads
from agentlightning.store.ops.lifecycle import revive
from agentlightning.store.ops.rows import lock_rollouts, require_rollout, unknown_attempt
from agentlightning.store.records import SpanRecord

SPAN_COLUMNS = """r.rollout_id, a.attempt_id, s.sequence_id, s.span_id, s.trace_id, s.parent_id, s.name, s.start_time,
    s.end_time, s.status_code, s.packed_body"""

_ATTEMPT = """SELECT r.no, r.status, a.no, a.status, a.sequence_id = r.attempt_count, a.last_span_sequence_id
    FROM attempts a JOIN rollouts r ON r.no = a.rollout_no
    WHERE a.attempt_id = :attempt_id AND r.rollout_id = :rollout_id"""
_ATTEMPT_TO_CHANGE = f"{_ATTEMPT} /*pg FOR UPDATE OF r, a */"
_ATTEMPTS_TO_CHANGE = """SELECT r.no, r.status, a.no, a.status, a.sequence_id = r.attempt_count,
    a.last_span_sequence_id, r.rollout_id, a.attempt_id FROM attempts a JOIN rollouts r ON r.no = a.rollout_no
    WHERE a.attempt_id IN (:*attempt_ids) /*pg FOR UPDATE OF a */"""

_INSERT = """INSERT INTO spans (attempt_no, sequence_id, span_id, trace_id, parent_id, name, start_time, end_time,
    status_code, packed_body) VALUES (:attempt_no, :sequence_id, :span_id, :trace_id, :parent_id, :name, :start_time,
    :end_time, :status_code, :packed_body) ON CONFLICT (attempt_no, span_id) DO NOTHING"""

_KNOWN = """SELECT attempt_no, span_id FROM spans WHERE attempt_no IN (:*attempt_nos)
    AND span_id IN (:*span_ids)"""

_COUNT_UP = "UPDATE attempts SET last_span_sequence_id = :last WHERE no = :no"

_MANY = f"""SELECT {SPAN_COLUMNS} FROM rollouts r JOIN attempts a ON a.rollout_no = r.no
    JOIN spans s ON s.attempt_no = a.no WHERE r.rollout_id IN (:*ids)
    AND (:latest = 0 OR a.sequence_id = r.attempt_count) AND (s.name = :name OR :name IS NULL)
    ORDER BY r.no, a.sequence_id, s.sequence_id, s.no"""


_BODY = 10


def records_from_rows(db: Session, rows: list[Row]) -> list[SpanRecord]:
    """From `SPAN_COLUMNS`, with large values put back."""
    return [SpanRecord(*row) for row in payloads.resolve(db, rows, _BODY)]


def find_attempt(db: Session, rollout_id: str, attempt_id: str, *, to_change: bool = False) -> Row:
    """`(r.no, r.status, a.no, a.status, is latest, last span sequence id)`; `to_change` keeps others away from it.

    Raises:
        NotFoundError: No such rollout, or no such attempt of it.
    """
    row = db.first(_ATTEMPT_TO_CHANGE if to_change else _ATTEMPT, {"rollout_id": rollout_id, "attempt_id": attempt_id})
    if row is None:
        require_rollout(db, rollout_id)
        raise unknown_attempt(rollout_id, attempt_id)
    return row


def _find_attempts(db: Session, ids: Sequence[tuple[str, str]]) -> list[Row]:
    """As `find_attempt` to change, for many at once."""
    if len(ids) == 1:
        return [find_attempt(db, *ids[0], to_change=True)]
    lock_rollouts(db, [rollout_id for rollout_id, _ in ids])
    rows = db.all(_ATTEMPTS_TO_CHANGE, {"attempt_ids": [attempt_id for _, attempt_id in ids]})
    found = {(row[-2], row[-1]): row[:-2] for row in rows}
    return [found.get(both) or find_attempt(db, *both) for both in ids]  # which raises


def add_many_spans(db: Session, verb: verbs.AddManySpans) -> list[int | None]:
    """See `LightningStore.add_many_spans`; gives each span's sequence id, `None` for a duplicate."""
    return _add_spans(db, verb.spans)


def merged_add_many_spans(db: Session, together: Sequence[verbs.AddManySpans]) -> list[list[int | None]]:
    """`add_many_spans` for each, in a few statements for all."""
    numbers = iter(_add_spans(db, [span for verb in together for span in verb.spans]))
    return [[next(numbers) for _ in verb.spans] for verb in together]


def _add_spans(db: Session, records: Sequence[SpanRecord]) -> list[int | None]:
    groups: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        groups[record.rollout_id, record.attempt_id].append(index)
    attempts = _find_attempts(db, list(groups))
    known = _known_spans(db, [row[2] for row in attempts if row[5] > 0], records)
    result: list[int | None] = [None] * len(records)
    rows: list[dict[str, Any]] = []
    with db.deferring():
        for row, (ids, indices) in zip(attempts, groups.items(), strict=True):
            seen = known.get(row[2], set())
            added, last = _numbered(row, [(i, records[i]) for i in indices], seen, result)
            if added:
                rows += added
                _note_arrival(db, ids, row, added, last)
    if rows:
        db.run_many(_INSERT, payloads.stashed_bodies(db, rows))
    return result


def _known_spans(db: Session, attempt_nos: list[int], records: Sequence[SpanRecord]) -> dict[int, set[str]]:
    """Which of these spans attempts have already; those without any need not be asked."""
    known: defaultdict[int, set[str]] = defaultdict(set)
    if attempt_nos:
        params = {"attempt_nos": attempt_nos, "span_ids": [record.span_id for record in records]}
        for attempt_no, span_id in db.all(_KNOWN, params):
            known[attempt_no].add(span_id)
    return known


def _numbered(
    attempt: Row, records: list[tuple[int, SpanRecord]], seen: set[str], result: list[int | None]
) -> tuple[list[dict[str, Any]], int]:
    """Rows of the spans that are new, and the attempt's last sequence id after them."""
    last = attempt[5]
    rows: list[dict[str, Any]] = []
    for index, record in records:
        if record.span_id in seen:
            continue
        seen.add(record.span_id)
        number = record.sequence_id if record.sequence_id > 0 else last + 1
        last = max(last, number)
        result[index] = number
        rows.append(_span_row(attempt[2], number, record))
    return rows, last


def _note_arrival(db: Session, ids: tuple[str, str], attempt: Row, rows: Sequence[dict[str, Any]], last: int) -> None:
    """What new spans mean for their attempt."""
    rollout_id, attempt_id = ids
    data = {"span_ids": [r["span_id"] for r in rows], "sequence_ids": [r["sequence_id"] for r in rows]}
    events.record(db, "spans.added", data, rollout_id=rollout_id, attempt_id=attempt_id)
    if attempt[4]:
        revive(db, attempt[:4], rollout_id, attempt_id, last)
    else:
        db.run(_COUNT_UP, {"last": last, "no": attempt[2]})


def _span_row(attempt_no: int, sequence_id: int, record: SpanRecord) -> dict[str, Any]:
    return {
        "attempt_no": attempt_no,
        "sequence_id": sequence_id,
        "span_id": record.span_id,
        "trace_id": record.trace_id,
        "parent_id": record.parent_id,
        "name": record.name,
        "start_time": record.start_time,
        "end_time": record.end_time,
        "status_code": record.status_code,
        "packed_body": record.body,
    }


def get_many_span_sequence_ids(db: Session, verb: verbs.GetManySpanSequenceIds) -> list[int]:
    """See `LightningStore.get_many_span_sequence_ids`."""
    lock_rollouts(db, [rollout_id for rollout_id, _ in verb.rollout_attempt_ids])
    numbers: list[int] = []
    for rollout_id, attempt_id in verb.rollout_attempt_ids:
        row = find_attempt(db, rollout_id, attempt_id, to_change=True)
        numbers.append(row[5] + 1)
        db.run(_COUNT_UP, {"last": row[5] + 1, "no": row[2]})
    return numbers


def query_many_spans(db: Session, verb: verbs.QueryManySpans) -> list[SpanRecord]:
    """See `LightningStore.query_many_spans`."""
    params = {
        "ids": verb.rollout_ids,
        "latest": 1 if verb.attempt_id == "latest" else 0,
        "name": verb.name,
    }
    return records_from_rows(db, db.all(_MANY, params))
