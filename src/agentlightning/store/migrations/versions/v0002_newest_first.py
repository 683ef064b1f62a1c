"""Rollouts by time, so that listing the newest does not read all of them.

Revision ID: 0002
"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_index("rollouts_start_time", "rollouts", ["start_time"])
