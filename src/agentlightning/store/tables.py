"""The tables, in SQLAlchemy Core: DDL and run-time queries come from here. Knows no operations.

Rows refer to each other by their integer `no` (also the order of creation); the string ids are what callers see.
Columns named `packed_*` hold msgpack (`records.pack`).
"""

from __future__ import annotations

from sqlalchemy import (
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.dialects.sqlite.base import SQLiteDialect
from sqlalchemy.schema import CreateIndex, CreateTable

from agentlightning.kit.db.sqlite import Schema

SCHEMA_VERSION = 1
APPLICATION_ID = 0x41474C31  # "AGL1"

metadata = MetaData()

rollouts = Table(
    "rollouts",
    metadata,
    Column("no", Integer, primary_key=True),
    Column("rollout_id", Text, nullable=False, unique=True),
    Column("packed_input", LargeBinary, nullable=False),
    Column("start_time", Float, nullable=False),
    Column("end_time", Float),
    Column("mode", Text),
    Column("resources_id", Text),
    Column("status", Text, nullable=False),
    Column("packed_config", LargeBinary, nullable=False),
    Column("packed_metadata", LargeBinary),
    Column("attempt_count", Integer, nullable=False),
    Column("queue_position", Integer),  # NULL: not in the queue
)
Index(
    "rollouts_queue",
    rollouts.c.queue_position,
    sqlite_where=rollouts.c.queue_position.isnot(None),
    postgresql_where=rollouts.c.queue_position.isnot(None),
)

attempts = Table(
    "attempts",
    metadata,
    Column("no", Integer, primary_key=True),
    Column("rollout_no", Integer, ForeignKey("rollouts.no"), nullable=False),
    Column("attempt_id", Text, nullable=False, unique=True),
    Column("sequence_id", Integer, nullable=False),
    Column("start_time", Float, nullable=False),
    Column("end_time", Float),
    Column("status", Text, nullable=False),
    Column("worker_id", Text),
    Column("last_heartbeat_time", Float),
    Column("packed_metadata", LargeBinary),
    Column("last_span_sequence_id", Integer, nullable=False),
    Column("watched", Integer),  # 1: active and has a limit below; else NULL
    Column("timeout_seconds", Float),
    Column("unresponsive_seconds", Float),
    Column("claim_id", Text),
    UniqueConstraint("rollout_no", "sequence_id"),
)
Index(
    "attempts_watched",
    attempts.c.watched,
    sqlite_where=attempts.c.watched.isnot(None),
    postgresql_where=attempts.c.watched.isnot(None),
)
Index(
    "attempts_claim",
    attempts.c.claim_id,
    sqlite_where=attempts.c.claim_id.isnot(None),
    postgresql_where=attempts.c.claim_id.isnot(None),
)

spans = Table(
    "spans",
    metadata,
    Column("no", Integer, primary_key=True),
    Column("attempt_no", Integer, ForeignKey("attempts.no"), nullable=False),
    Column("sequence_id", Integer, nullable=False),
    Column("span_id", Text, nullable=False),
    Column("trace_id", Text, nullable=False),
    Column("parent_id", Text),
    Column("name", Text, nullable=False),
    Column("start_time", Float),
    Column("end_time", Float),
    Column("status_code", Text, nullable=False),
    Column("packed_body", LargeBinary, nullable=False),
    UniqueConstraint("attempt_no", "span_id"),
)

resources = Table(
    "resources",
    metadata,
    Column("no", Integer, primary_key=True),
    Column("resources_id", Text, nullable=False, unique=True),
    Column("create_time", Float, nullable=False),
    Column("update_time", Float, nullable=False),
    Column("version", Integer, nullable=False),
    Column("packed_resources", LargeBinary, nullable=False),
    Column("position", Integer, nullable=False, unique=True),  # the highest is the latest
)

workers = Table(
    "workers",
    metadata,
    Column("no", Integer, primary_key=True),
    Column("worker_id", Text, nullable=False, unique=True),
    Column("status", Text, nullable=False),
    Column("packed_heartbeat_stats", LargeBinary),
    Column("last_heartbeat_time", Float),
    Column("last_dequeue_time", Float),
    Column("last_busy_time", Float),
    Column("last_idle_time", Float),
    Column("current_rollout_id", Text),
    Column("current_attempt_id", Text),
)


def sqlite_schema() -> Schema:
    """DDL of all tables for SQLite."""
    dialect = SQLiteDialect()
    statements: list[str] = []
    for table in metadata.sorted_tables:
        statements.append(str(CreateTable(table).compile(dialect=dialect)))
        statements += [str(CreateIndex(index).compile(dialect=dialect)) for index in sorted(table.indexes, key=str)]
    return Schema(statements, version=SCHEMA_VERSION, application_id=APPLICATION_ID)
