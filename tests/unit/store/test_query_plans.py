"""No everyday call reads a whole table: its cost must not grow with the store."""

from __future__ import annotations

import json
import re
import sqlite3
from typing import Any

import pytest

from agentlightning.kit.db.session import LIST_PARAMETER, SqliteSession
from agentlightning.kit.db.sqlite import connect
from agentlightning.schemas import EnqueueRolloutRequest
from agentlightning.store import verbs
from agentlightning.store.ops import events, lifecycle, queries, queue, resources, spans, watchdog, workers
from agentlightning.store.records import SpanRecord
from agentlightning.store.tables import sqlite_schema

_SCAN = re.compile(r"SCAN (r|a|s|rollouts|attempts|spans|resources|events|workers)\b")


class Explaining(SqliteSession):
    """Asks for the plan of every statement before it runs it."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        super().__init__(connection)
        self.scans: list[tuple[str, str]] = []

    def _execute(self, sql: str, params: Any) -> sqlite3.Cursor:
        text = LIST_PARAMETER.sub(r"IN (SELECT value FROM json_each(:\1))", sql)
        known = {k: json.dumps(v) if isinstance(v, list) else v for k, v in (params or {}).items()}
        self._explain(text, known)
        return super()._execute(sql, params)

    def run_many(self, sql: str, rows: Any) -> None:
        rows = list(rows)
        self._explain(sql, rows[0])
        super().run_many(sql, rows)

    def select(self, statement: Any) -> list[Any]:
        from agentlightning.kit.db.session import _DIALECT

        compiled = statement.compile(dialect=_DIALECT, compile_kwargs={"render_postcompile": True})
        if not str(compiled).startswith("SELECT count(*)"):  # the total of a page has to look at all
            self._explain(str(compiled), dict(compiled.params or {}))
        return super().select(statement)

    def _explain(self, sql: str, params: Any) -> None:
        for row in self._connection.execute(f"EXPLAIN QUERY PLAN {sql}", params):
            first_few = "USING" in row[3] and "LIMIT" in sql  # an index gives the order
            if _SCAN.search(row[3]) and not first_few:
                self.scans.append((row[3], sql))


@pytest.fixture
def db() -> Any:
    connection = connect(None)
    sqlite_schema().ensure(connection, ":memory:")
    yield Explaining(connection)
    connection.close()


def test_the_life_of_a_rollout(db: Explaining) -> None:
    request = EnqueueRolloutRequest(input="x", rollout_id="r1")
    queue.enqueue_many_rollouts(db, verbs.EnqueueManyRollouts(rollouts=[request, EnqueueRolloutRequest(input="y")]))
    claimed = queue.dequeue_many_rollouts(
        db, verbs.DequeueManyRollouts(limit=2, worker_id="w", claim_id="c", lease_s=9.0)
    )
    ids = [(r.rollout_id, r.attempt.attempt_id) for r in claimed]
    record = SpanRecord(*ids[0], 0, "s", "t", None, "name", 1.0, 2.0, "OK", b"\x80")
    spans.add_many_spans(db, verbs.AddManySpans(spans=[record]))
    spans.add_many_spans(db, verbs.AddManySpans(spans=[record]))  # again
    spans.get_many_span_sequence_ids(db, verbs.GetManySpanSequenceIds(rollout_attempt_ids=ids))
    watchdog.check_timeouts(db)
    workers.update_worker(db, verbs.UpdateWorker(worker_id="w"))
    for rollout_id, attempt_id in ids:
        lifecycle.update_attempt(
            db, verbs.UpdateAttempt(rollout_id=rollout_id, attempt_id=attempt_id, status="succeeded")
        )
    found, unknown = queries.finished_rollouts(db, [i for i, _ in ids])
    assert (len(found), unknown) == (2, [])
    events.write(db, db.records)
    assert db.scans == []


def test_reads(db: Explaining) -> None:
    queue.enqueue_many_rollouts(
        db, verbs.EnqueueManyRollouts(rollouts=[EnqueueRolloutRequest(input="x", rollout_id="r1")])
    )
    claimed = queue.dequeue_many_rollouts(db, verbs.DequeueManyRollouts())
    attempt_id = claimed[0].attempt.attempt_id
    newest = verbs.QueryRollouts(sort_by="start_time", sort_order="desc", limit=100)
    assert len(queries.query_rollouts(db, newest).items) == 1
    assert len(queries.query_rollouts(db, verbs.QueryRollouts(rollout_id_in=["r1", "r2"])).items) == 1
    assert queries.get_rollout_by_id(db, verbs.GetRolloutById(rollout_id="r1"))
    assert len(queries.query_attempts(db, verbs.QueryAttempts(rollout_id="r1")).items) == 1
    assert queries.query_spans(db, verbs.QuerySpans(rollout_id="r1", attempt_id="latest")).items == []
    assert queries.query_spans(db, verbs.QuerySpans(rollout_id="r1", attempt_id=attempt_id)).items == []
    assert spans.query_many_spans(db, verbs.QueryManySpans(rollout_ids=["r1"])) == []
    assert workers.get_worker_by_id(db, verbs.GetWorkerById(worker_id="w")) is None
    resources.get_latest_resources(db, verbs.GetLatestResources())
    events.write(db, db.records)
    assert len(events.query_events(db, verbs.QueryEvents(after=1)).items) == 1
    assert len(events.query_events(db, verbs.QueryEvents(rollout_id="r1")).items) == 2
    assert db.scans == []
