"""One evaluation of an agent at a time."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_RUNNING = sa.text("status = 'running'")


def upgrade() -> None:
    # Nobody goes on with one that has no lease; of several that run, the newest one goes on.
    op.execute(
        "UPDATE agent_evaluations SET status = 'interrupted', finished_at = CURRENT_TIMESTAMP "
        "WHERE status = 'running' AND (lease_until IS NULL OR EXISTS (SELECT 1 FROM agent_evaluations AS newer "
        "WHERE newer.agent_id = agent_evaluations.agent_id AND newer.id > agent_evaluations.id "
        "AND newer.status = 'running' AND newer.lease_until IS NOT NULL))"
    )
    op.create_index(
        "uq_agent_evaluations_running",
        "agent_evaluations",
        ["agent_id"],
        unique=True,
        sqlite_where=_RUNNING,
        postgresql_where=_RUNNING,
    )


def downgrade() -> None:
    op.drop_index("uq_agent_evaluations_running", "agent_evaluations")
