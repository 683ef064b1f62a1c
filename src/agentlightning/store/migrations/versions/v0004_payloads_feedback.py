"""Large values stored once; feedback, preferences and lineages.

Revision ID: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

Number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
Name = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    _payloads()
    _feedback()
    _lineages()
    _preferences()


def _payloads() -> None:
    op.create_table(
        "payloads",
        sa.Column("no", Number, primary_key=True),
        sa.Column("hash", Name, nullable=False, unique=True),
        sa.Column("size", Number, nullable=False),
        sa.Column("epoch", Number, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "payload_epochs",
        sa.Column("no", Number, primary_key=True),
        sa.Column("start_time", sa.Float, nullable=False),
        sa.Column("end_time", sa.Float),
        sa.Column("removed", Number),
        sa.Column("removed_bytes", Number),
    )


def _feedback() -> None:
    op.create_table(
        "feedback",
        sa.Column("no", Number, primary_key=True),
        sa.Column("feedback_id", Name, nullable=False, unique=True),
        sa.Column("rollout_no", Number, sa.ForeignKey("rollouts.no"), nullable=False),
        sa.Column("attempt_id", Name),
        sa.Column("score", sa.Float),
        sa.Column("score_min", sa.Float, nullable=False),
        sa.Column("score_max", sa.Float, nullable=False),
        sa.Column("thumb", Name),
        sa.Column("comment", sa.Text),
        sa.Column("author", Name),
        sa.Column("create_time", sa.Float, nullable=False),
        sa.Column("packed_metadata", sa.LargeBinary),
    )
    op.create_index("feedback_rollout", "feedback", ["rollout_no"])


def _lineages() -> None:
    op.create_table(
        "lineage_sessions",
        sa.Column("no", Number, primary_key=True),
        sa.Column("session_id", Name, nullable=False, unique=True),
        sa.Column("name", sa.Text),
        sa.Column("create_time", sa.Float, nullable=False),
        sa.Column("packed_metadata", sa.LargeBinary),
    )
    op.create_table(
        "lineages",
        sa.Column("no", Number, primary_key=True),
        sa.Column("lineage_id", Name, nullable=False, unique=True),
        sa.Column("session_no", Number, sa.ForeignKey("lineage_sessions.no"), nullable=False),
        sa.Column("position", Number, nullable=False),
        sa.Column("name", sa.Text),
        sa.Column("locked_cycle", Number),
        sa.UniqueConstraint("session_no", "position"),
    )
    op.create_table(
        "lineage_steps",
        sa.Column("no", Number, primary_key=True),
        sa.Column("lineage_no", Number, sa.ForeignKey("lineages.no"), nullable=False),
        sa.Column("kind", Name, nullable=False),
        sa.Column("cycle", Number, nullable=False),
        sa.Column("rollout_no", Number, sa.ForeignKey("rollouts.no")),
        sa.Column("author", Name),
        sa.Column("create_time", sa.Float, nullable=False),
    )
    op.create_index("lineage_steps_lineage", "lineage_steps", ["lineage_no"])
    op.create_index("lineage_steps_rollout", "lineage_steps", ["rollout_no"])
    has_rollout = sa.text("rollout_no IS NOT NULL")
    op.create_index(
        "lineage_steps_cycle",
        "lineage_steps",
        ["lineage_no", "cycle"],
        unique=True,
        sqlite_where=has_rollout,
        postgresql_where=has_rollout,
    )


def _preferences() -> None:
    op.create_table(
        "preferences",
        sa.Column("no", Number, primary_key=True),
        sa.Column("preference_id", Name, nullable=False, unique=True),
        sa.Column("chosen_no", Number, sa.ForeignKey("rollouts.no"), nullable=False),
        sa.Column("rejected_no", Number, sa.ForeignKey("rollouts.no"), nullable=False),
        sa.Column("chosen_attempt_id", Name),
        sa.Column("rejected_attempt_id", Name),
        sa.Column("source", Name, nullable=False),
        sa.Column("weight", sa.Float, nullable=False),
        sa.Column("margin", sa.Float),
        sa.Column("comment", sa.Text),
        sa.Column("author", Name),
        sa.Column("session_no", Number, sa.ForeignKey("lineage_sessions.no")),
        sa.Column("cycle", Number),
        sa.Column("create_time", sa.Float, nullable=False),
        sa.Column("packed_metadata", sa.LargeBinary),
    )
    op.create_index("preferences_chosen", "preferences", ["chosen_no"])
    op.create_index("preferences_rejected", "preferences", ["rejected_no"])
    op.create_index("preferences_session", "preferences", ["session_no", "cycle"])
