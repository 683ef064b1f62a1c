"""The tables, in SQLAlchemy Core: DDL and run-time queries come from here. Knows no operations.

Rows refer to each other by their integer `no` (also the order of creation); the string ids are what callers see.
Columns named `packed_*` hold msgpack (`records.pack`).
"""

from __future__ import annotations

import sqlite3

from sqlalchemy import (
    BigInteger,
    Column,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
)
from sqlalchemy.dialects.sqlite.base import SQLiteDialect
from sqlalchemy.pool import StaticPool
from sqlalchemy.schema import CreateIndex, CreateTable

from agentlightning.kit.db.sqlite import Schema

REVISIONS = ("0001", "0002", "0003", "0004", "0005")
"""Every version of the tables, oldest first."""
SCHEMA_VERSION = int(REVISIONS[-1])
APPLICATION_ID = 0x41474C31  # "AGL1"

Number = BigInteger().with_variant(Integer(), "sqlite")
# Bytes, not a language, decide the order: faster, and the same in both databases.
Name = Text().with_variant(Text(collation="C"), "postgresql")

metadata = MetaData()

rollouts = Table(
    "rollouts",
    metadata,
    Column("no", Number, primary_key=True),
    Column("rollout_id", Name, nullable=False, unique=True),
    Column("packed_input", LargeBinary, nullable=False),
    Column("start_time", Float, nullable=False),
    Column("end_time", Float),
    Column("mode", Name),
    Column("resources_id", Name),
    Column("status", Name, nullable=False),
    Column("packed_config", LargeBinary, nullable=False),
    Column("packed_metadata", LargeBinary),
    Column("attempt_count", Number, nullable=False),
    Column("queue_position", Number),  # NULL: not in the queue
)
Index(
    "rollouts_queue",
    rollouts.c.queue_position,
    sqlite_where=rollouts.c.queue_position.isnot(None),
    postgresql_where=rollouts.c.queue_position.isnot(None),
)

Index("rollouts_start_time", rollouts.c.start_time)

attempts = Table(
    "attempts",
    metadata,
    Column("no", Number, primary_key=True),
    Column("rollout_no", Number, ForeignKey("rollouts.no"), nullable=False),
    Column("attempt_id", Name, nullable=False, unique=True),
    Column("sequence_id", Number, nullable=False),
    Column("start_time", Float, nullable=False),
    Column("end_time", Float),
    Column("status", Name, nullable=False),
    Column("worker_id", Name),
    Column("last_heartbeat_time", Float),
    Column("packed_metadata", LargeBinary),
    Column("last_span_sequence_id", Number, nullable=False),
    Column("watched", Integer),  # 1: active and has a limit below; else NULL
    Column("timeout_seconds", Float),
    Column("unresponsive_seconds", Float),
    Column("claim_id", Name),
    UniqueConstraint("rollout_no", "sequence_id"),
    Column("lease_s", Float),
    Column("lease_until", Float),  # when the claim ends unless renewed; NULL: never, or the attempt has ended
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
Index(
    "attempts_lease",
    attempts.c.lease_until,
    sqlite_where=attempts.c.lease_until.isnot(None),
    postgresql_where=attempts.c.lease_until.isnot(None),
)
Index(
    "attempts_lease_worker",
    attempts.c.worker_id,
    sqlite_where=attempts.c.lease_until.isnot(None),
    postgresql_where=attempts.c.lease_until.isnot(None),
)

spans = Table(
    "spans",
    metadata,
    Column("no", Number, primary_key=True),
    Column("attempt_no", Number, ForeignKey("attempts.no"), nullable=False),
    Column("sequence_id", Number, nullable=False),
    Column("span_id", Name, nullable=False),
    Column("trace_id", Name, nullable=False),
    Column("parent_id", Name),
    Column("name", Name, nullable=False),
    Column("start_time", Float),
    Column("end_time", Float),
    Column("status_code", Name, nullable=False),
    Column("packed_body", LargeBinary, nullable=False),
    UniqueConstraint("attempt_no", "span_id"),
)

resources = Table(
    "resources",
    metadata,
    Column("no", Number, primary_key=True),
    Column("resources_id", Name, nullable=False, unique=True),
    Column("create_time", Float, nullable=False),
    Column("update_time", Float, nullable=False),
    Column("version", Number, nullable=False),
    Column("packed_resources", LargeBinary, nullable=False),
    Column("position", Number, nullable=False, unique=True),  # the highest is the latest
)

# What happened, in the order of commits; rows are added and never changed. See `ops/events.py`.
events = Table(
    "events",
    metadata,
    Column("no", Number, primary_key=True),
    Column("time", Float, nullable=False),
    Column("kind", Name, nullable=False),
    Column("rollout_id", Name),
    Column("attempt_id", Name),
    Column("packed_data", LargeBinary, nullable=False),
)
Index(
    "events_rollout",
    events.c.rollout_id,
    sqlite_where=events.c.rollout_id.isnot(None),
    postgresql_where=events.c.rollout_id.isnot(None),
)

workers = Table(
    "workers",
    metadata,
    Column("no", Number, primary_key=True),
    Column("worker_id", Name, nullable=False, unique=True),
    Column("status", Name, nullable=False),
    Column("packed_heartbeat_stats", LargeBinary),
    Column("last_heartbeat_time", Float),
    Column("last_dequeue_time", Float),
    Column("last_busy_time", Float),
    Column("last_idle_time", Float),
    Column("current_rollout_id", Name),
    Column("current_attempt_id", Name),
)

payloads = Table(
    "payloads",
    metadata,
    Column("no", Number, primary_key=True),
    Column("hash", Name, nullable=False, unique=True),  # SHA-256 of the piece, hex
    Column("size", Number, nullable=False),  # bytes, unpacked
    Column("epoch", Number, nullable=False),
    Column("data", LargeBinary, nullable=False),  # zstd; last, so that the others are read without it
)

payload_epochs = Table(
    "payload_epochs",  # one for each garbage collection
    metadata,
    Column("no", Number, primary_key=True),
    Column("start_time", Float, nullable=False),
    Column("end_time", Float),
    Column("removed", Number),
    Column("removed_bytes", Number),
)

feedback = Table(
    "feedback",
    metadata,
    Column("no", Number, primary_key=True),
    Column("feedback_id", Name, nullable=False, unique=True),
    Column("rollout_no", Number, ForeignKey("rollouts.no"), nullable=False),
    Column("attempt_id", Name),
    Column("score", Float),
    Column("score_min", Float, nullable=False),
    Column("score_max", Float, nullable=False),
    Column("thumb", Name),
    Column("comment", Text),
    Column("author", Name),
    Column("create_time", Float, nullable=False),
    Column("packed_metadata", LargeBinary),
)
Index("feedback_rollout", feedback.c.rollout_no)

lineage_sessions = Table(
    "lineage_sessions",
    metadata,
    Column("no", Number, primary_key=True),
    Column("session_id", Name, nullable=False, unique=True),
    Column("name", Text),
    Column("create_time", Float, nullable=False),
    Column("packed_metadata", LargeBinary),
)

lineages = Table(
    "lineages",
    metadata,
    Column("no", Number, primary_key=True),
    Column("lineage_id", Name, nullable=False, unique=True),
    Column("session_no", Number, ForeignKey("lineage_sessions.no"), nullable=False),
    Column("position", Number, nullable=False),
    Column("name", Text),
    Column("locked_cycle", Number),  # NULL: not locked
    UniqueConstraint("session_no", "position"),
)

lineage_steps = Table(
    "lineage_steps",
    metadata,
    Column("no", Number, primary_key=True),
    Column("lineage_no", Number, ForeignKey("lineages.no"), nullable=False),
    Column("kind", Name, nullable=False),
    Column("cycle", Number, nullable=False),
    Column("rollout_no", Number, ForeignKey("rollouts.no")),
    Column("author", Name),
    Column("create_time", Float, nullable=False),
)
Index("lineage_steps_lineage", lineage_steps.c.lineage_no)
Index("lineage_steps_rollout", lineage_steps.c.rollout_no)
Index(
    "lineage_steps_cycle",
    lineage_steps.c.lineage_no,
    lineage_steps.c.cycle,
    unique=True,
    sqlite_where=lineage_steps.c.rollout_no.isnot(None),
    postgresql_where=lineage_steps.c.rollout_no.isnot(None),
)

preferences = Table(
    "preferences",
    metadata,
    Column("no", Number, primary_key=True),
    Column("preference_id", Name, nullable=False, unique=True),
    Column("chosen_no", Number, ForeignKey("rollouts.no"), nullable=False),
    Column("rejected_no", Number, ForeignKey("rollouts.no"), nullable=False),
    Column("chosen_attempt_id", Name),
    Column("rejected_attempt_id", Name),
    Column("source", Name, nullable=False),
    Column("weight", Float, nullable=False),
    Column("margin", Float),
    Column("comment", Text),
    Column("author", Name),
    Column("session_no", Number, ForeignKey("lineage_sessions.no")),
    Column("cycle", Number),
    Column("create_time", Float, nullable=False),
    Column("packed_metadata", LargeBinary),
)
Index("preferences_chosen", preferences.c.chosen_no)
Index("preferences_rejected", preferences.c.rejected_no)
Index("preferences_session", preferences.c.session_no, preferences.c.cycle)


# How many rollouts there are: counting a million of them takes longer than everything else that a list of the newest
# needs. On SQLite, which has one writer, triggers keep the number; on PostgreSQL they would make writers wait for each
# other, so it is counted.
_SQLITE_COUNTS = (
    "CREATE TABLE row_counts (table_name TEXT NOT NULL PRIMARY KEY, row_count INTEGER NOT NULL)",
    "INSERT INTO row_counts SELECT 'rollouts', count(*) FROM rollouts",
    """CREATE TRIGGER rollouts_counted_in AFTER INSERT ON rollouts BEGIN
    UPDATE row_counts SET row_count = row_count + 1 WHERE table_name = 'rollouts'; END""",
    """CREATE TRIGGER rollouts_counted_out AFTER DELETE ON rollouts BEGIN
    UPDATE row_counts SET row_count = row_count - 1 WHERE table_name = 'rollouts'; END""",
)
_POSTGRES_COUNTS = ("CREATE VIEW row_counts AS SELECT 'rollouts' AS table_name, count(*) AS row_count FROM rollouts",)


def sqlite_schema() -> Schema:
    """DDL of all tables for SQLite; older files are migrated when they are opened."""
    statements = [
        *_ddl(SQLiteDialect()),
        *_SQLITE_COUNTS,
        "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)",
        f"INSERT INTO alembic_version VALUES ('{REVISIONS[-1]}')",
    ]
    return Schema(statements, version=SCHEMA_VERSION, application_id=APPLICATION_ID, upgrade=_upgrade_sqlite)


def _upgrade_sqlite(connection: sqlite3.Connection, version: int) -> None:
    from agentlightning.store.migrations import upgrade

    engine = create_engine("sqlite://", creator=lambda: connection, poolclass=StaticPool)

    def nothing(_: object) -> None:
        """The transaction and the connection belong to our caller."""

    for step in ("do_commit", "do_rollback", "do_close"):
        setattr(engine.dialect, step, nothing)
    with engine.connect() as wrapped:
        upgrade(wrapped, current=f"{version:04}")


def postgres_ddl() -> list[str]:
    """DDL of all tables for PostgreSQL."""
    from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

    return [*_ddl(PGDialect_psycopg()), *_POSTGRES_COUNTS]


def _ddl(dialect: Dialect) -> list[str]:
    statements: list[str] = []
    for table in metadata.sorted_tables:
        statements.append(str(CreateTable(table).compile(dialect=dialect)))
        statements += [str(CreateIndex(index).compile(dialect=dialect)) for index in sorted(table.indexes, key=str)]
    return statements
