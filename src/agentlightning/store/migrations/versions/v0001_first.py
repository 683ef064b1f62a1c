"""The first tables.

Revision ID: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

Number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
Name = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "rollouts",
        sa.Column("no", Number, primary_key=True),
        sa.Column("rollout_id", Name, nullable=False, unique=True),
        sa.Column("packed_input", sa.LargeBinary, nullable=False),
        sa.Column("start_time", sa.Float, nullable=False),
        sa.Column("end_time", sa.Float),
        sa.Column("mode", Name),
        sa.Column("resources_id", Name),
        sa.Column("status", Name, nullable=False),
        sa.Column("packed_config", sa.LargeBinary, nullable=False),
        sa.Column("packed_metadata", sa.LargeBinary),
        sa.Column("attempt_count", Number, nullable=False),
        sa.Column("queue_position", Number),
    )
    _partial_index("rollouts_queue", "rollouts", "queue_position")
    op.create_table(
        "attempts",
        sa.Column("no", Number, primary_key=True),
        sa.Column("rollout_no", Number, sa.ForeignKey("rollouts.no"), nullable=False),
        sa.Column("attempt_id", Name, nullable=False, unique=True),
        sa.Column("sequence_id", Number, nullable=False),
        sa.Column("start_time", sa.Float, nullable=False),
        sa.Column("end_time", sa.Float),
        sa.Column("status", Name, nullable=False),
        sa.Column("worker_id", Name),
        sa.Column("last_heartbeat_time", sa.Float),
        sa.Column("packed_metadata", sa.LargeBinary),
        sa.Column("last_span_sequence_id", Number, nullable=False),
        sa.Column("watched", sa.Integer),
        sa.Column("timeout_seconds", sa.Float),
        sa.Column("unresponsive_seconds", sa.Float),
        sa.Column("claim_id", Name),
        sa.UniqueConstraint("rollout_no", "sequence_id"),
    )
    _partial_index("attempts_watched", "attempts", "watched")
    _partial_index("attempts_claim", "attempts", "claim_id")
    op.create_table(
        "spans",
        sa.Column("no", Number, primary_key=True),
        sa.Column("attempt_no", Number, sa.ForeignKey("attempts.no"), nullable=False),
        sa.Column("sequence_id", Number, nullable=False),
        sa.Column("span_id", Name, nullable=False),
        sa.Column("trace_id", Name, nullable=False),
        sa.Column("parent_id", Name),
        sa.Column("name", Name, nullable=False),
        sa.Column("start_time", sa.Float),
        sa.Column("end_time", sa.Float),
        sa.Column("status_code", Name, nullable=False),
        sa.Column("packed_body", sa.LargeBinary, nullable=False),
        sa.UniqueConstraint("attempt_no", "span_id"),
    )
    op.create_table(
        "resources",
        sa.Column("no", Number, primary_key=True),
        sa.Column("resources_id", Name, nullable=False, unique=True),
        sa.Column("create_time", sa.Float, nullable=False),
        sa.Column("update_time", sa.Float, nullable=False),
        sa.Column("version", Number, nullable=False),
        sa.Column("packed_resources", sa.LargeBinary, nullable=False),
        sa.Column("position", Number, nullable=False, unique=True),
    )
    op.create_table(
        "workers",
        sa.Column("no", Number, primary_key=True),
        sa.Column("worker_id", Name, nullable=False, unique=True),
        sa.Column("status", Name, nullable=False),
        sa.Column("packed_heartbeat_stats", sa.LargeBinary),
        sa.Column("last_heartbeat_time", sa.Float),
        sa.Column("last_dequeue_time", sa.Float),
        sa.Column("last_busy_time", sa.Float),
        sa.Column("last_idle_time", sa.Float),
        sa.Column("current_rollout_id", Name),
        sa.Column("current_attempt_id", Name),
    )


def _partial_index(name: str, table: str, column: str) -> None:
    present = sa.text(f"{column} IS NOT NULL")
    op.create_index(name, table, [column], sqlite_where=present, postgresql_where=present)
