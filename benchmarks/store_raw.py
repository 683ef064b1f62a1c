"""The rows of one rollout's life written by hand, into the store's own tables: what disk and database allow.

Used by `benchmarks/store.py`. A rollout is the same rows and the same bytes as there, and nothing else: no models, no
checks, no queue, no waiting. `one` commits once a rollout, `each` after every step that the store acknowledges;
`events` commits once and writes the rows of the event log as well: then they are the very rows that the store writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from typing import Any

SPANS = 7
CONNECTIONS = 64
# What the store records of one such rollout, and how many bytes each takes.
EVENTS = {
    "rollout.enqueued": 129,
    "attempt.started": 51,
    "spans.added": 133,
    "attempt.running": 49,
    "spans.added, the reward": 43,
    "attempt.completed": 36,
    "rollout.completed": 36,
}


def raw_sqlite(how: str, seconds: float, folder: str) -> dict[str, float]:
    """The rows of one rollout, written by hand into the same tables; `how`: `one` or `each` commit."""
    import sqlite3

    from agentlightning.store.tables import sqlite_schema

    db = sqlite3.connect(f"{folder}/raw.db", isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = normal")
    db.execute("PRAGMA foreign_keys = ON")
    for statement in sqlite_schema().statements:
        db.execute(statement)
    each = how == "each"
    done = 0
    body = os.urandom(450)
    started, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() < started + seconds:
        done += 1
        rollout_id, attempt_id = f"ro-{done:020}", f"at-{done:020}"
        db.execute("BEGIN IMMEDIATE")
        db.execute(
            """INSERT INTO rollouts (rollout_id, packed_input, start_time, mode, status, packed_config, packed_metadata,
            attempt_count, queue_position) VALUES (?, ?, 1.0, 'train', 'queuing', x'80', x'80', 0, ?)""",
            (rollout_id, body[:60], done),
        )
        if each:
            db.execute("COMMIT")
            db.execute("BEGIN IMMEDIATE")
        db.execute(
            "UPDATE rollouts SET status = 'preparing', queue_position = NULL, attempt_count = 1 WHERE no = ?", (done,)
        )
        db.execute(
            """INSERT INTO attempts (rollout_no, attempt_id, sequence_id, start_time, status, worker_id,
            last_span_sequence_id) VALUES (?, ?, 1, 1.0, 'preparing', 'worker', 0)""",
            (done, attempt_id),
        )
        if each:
            db.execute("COMMIT")
            db.execute("BEGIN IMMEDIATE")
        db.executemany(
            """INSERT INTO spans (attempt_no, sequence_id, span_id, trace_id, name, start_time, end_time, status_code,
            packed_body) VALUES (?, ?, ?, ?, 'openai.chat.completion', 1.0, 2.0, 'OK', ?)""",
            [(done, i, os.urandom(8).hex(), os.urandom(16).hex(), body) for i in range(SPANS - 1)],
        )
        db.execute("UPDATE attempts SET last_heartbeat_time = 1.0, last_span_sequence_id = 6 WHERE no = ?", (done,))
        if each:
            db.execute("COMMIT")
            db.execute("BEGIN IMMEDIATE")
        db.execute(
            """INSERT INTO spans (attempt_no, sequence_id, span_id, trace_id, name, start_time, end_time, status_code,
            packed_body) VALUES (?, ?, ?, ?, 'agentlightning.annotation', 1.0, 2.0, 'OK', ?)""",
            (done, SPANS, os.urandom(8).hex(), os.urandom(16).hex(), body[:60]),
        )
        db.execute("UPDATE attempts SET last_heartbeat_time = 1.0, last_span_sequence_id = 7 WHERE no = ?", (done,))
        if each:
            db.execute("COMMIT")
            db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE attempts SET status = 'succeeded', end_time = 2.0 WHERE no = ?", (done,))
        db.execute("UPDATE rollouts SET status = 'succeeded', end_time = 2.0 WHERE no = ?", (done,))
        if how == "events":
            db.executemany(
                "INSERT INTO events (time, kind, rollout_id, attempt_id, packed_data) VALUES (1.0, ?, ?, ?, ?)",
                [(kind, rollout_id, attempt_id, body[:size]) for kind, size in EVENTS.items()],
            )
        db.execute("COMMIT")
    elapsed = time.perf_counter() - started
    db.close()
    return {"rate": done / elapsed, "cpu_ms": 1e3 * (time.process_time() - cpu) / done}


async def raw_postgres(how: str, concurrency: int, seconds: float) -> dict[str, float]:
    """The same by hand on PostgreSQL; each runner has a connection, up to as many as a server takes."""
    import asyncpg

    from agentlightning.store.tables import postgres_ddl

    url = os.environ["AGL_BENCH_POSTGRES_URL"]
    setup = await asyncpg.connect(url)
    await setup.execute("DROP SCHEMA IF EXISTS agl_bench_raw CASCADE; CREATE SCHEMA agl_bench_raw")
    await setup.execute("SET search_path = agl_bench_raw;" + ";".join(postgres_ddl()))
    await setup.close()
    body = os.urandom(450)
    done = 0
    connections = [
        await asyncpg.connect(url, server_settings={"search_path": "agl_bench_raw"})
        for _ in range(min(concurrency, CONNECTIONS))
    ]

    async def runner(db: Any, until: float) -> None:
        nonlocal done
        while time.perf_counter() < until:
            if how == "each":
                await raw_postgres_rollout(db, body)
            else:
                async with db.transaction():
                    await raw_postgres_rollout(db, body, with_events=how == "events")
            done += 1

    await asyncio.gather(*(runner(db, time.perf_counter() + 0.3) for db in connections))  # warm
    done = 0
    started, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(runner(db, started + seconds) for db in connections))
    elapsed = time.perf_counter() - started
    return {"rate": done / elapsed, "cpu_ms": 1e3 * (time.process_time() - cpu) / max(1, done)}


async def raw_postgres_rollout(db: Any, body: bytes, *, with_events: bool = False) -> None:
    """Five transactions, or five steps of one: `transaction()` inside another is a savepoint."""
    outer = db.is_in_transaction()
    name = os.urandom(10).hex()

    def step() -> Any:
        return contextlib.nullcontext() if outer else db.transaction()

    no = await db.fetchval(
        """INSERT INTO rollouts (rollout_id, packed_input, start_time, mode, status, packed_config, packed_metadata,
        attempt_count, queue_position) VALUES ($1, $2, 1.0, 'train', 'queuing', $3, $3, 0,
        (SELECT coalesce(max(queue_position), 0) + 1 FROM rollouts WHERE queue_position IS NOT NULL)) RETURNING no""",
        f"ro-{name}",
        body[:60],
        b"x",
    )
    async with step():
        await db.execute(
            "UPDATE rollouts SET status = 'preparing', queue_position = NULL, attempt_count = 1 WHERE no = $1", no
        )
        attempt = await db.fetchval(
            """INSERT INTO attempts (rollout_no, attempt_id, sequence_id, start_time, status, worker_id,
            last_span_sequence_id) VALUES ($1, $2, 1, 1.0, 'preparing', 'worker', 0) RETURNING no""",
            no,
            f"at-{name}",
        )
    async with step():
        await db.executemany(
            """INSERT INTO spans (attempt_no, sequence_id, span_id, trace_id, name, start_time, end_time, status_code,
            packed_body) VALUES ($1, $2, $3, $4, 'openai.chat.completion', 1.0, 2.0, 'OK', $5)""",
            [(attempt, i, os.urandom(8).hex(), os.urandom(16).hex(), body) for i in range(SPANS - 1)],
        )
        await db.execute(
            "UPDATE attempts SET last_heartbeat_time = 1.0, last_span_sequence_id = 6 WHERE no = $1", attempt
        )
    async with step():
        await db.execute(
            """INSERT INTO spans (attempt_no, sequence_id, span_id, trace_id, name, start_time, end_time, status_code,
            packed_body) VALUES ($1, $2, $3, $4, 'agentlightning.annotation', 1.0, 2.0, 'OK', $5)""",
            attempt,
            SPANS,
            os.urandom(8).hex(),
            os.urandom(16).hex(),
            body[:60],
        )
        await db.execute(
            "UPDATE attempts SET last_heartbeat_time = 1.0, last_span_sequence_id = 7 WHERE no = $1", attempt
        )
    async with step():
        await db.execute("UPDATE attempts SET status = 'succeeded', end_time = 2.0 WHERE no = $1", attempt)
        await db.execute("UPDATE rollouts SET status = 'succeeded', end_time = 2.0 WHERE no = $1", no)
        if with_events:
            await db.executemany(
                "INSERT INTO events (time, kind, rollout_id, attempt_id, packed_data) VALUES (1.0, $1, $2, $3, $4)",
                [(kind, f"ro-{name}", f"at-{name}", body[:size]) for kind, size in EVENTS.items()],
            )
