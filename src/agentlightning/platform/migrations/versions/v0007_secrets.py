"""Secrets that are kept encrypted; evaluations that another process goes on with; tasks that wait get more urgent."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "stored_secrets",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("sealed", sa.Text, nullable=False),
        sa.Column("key_id", sa.String(16), nullable=False),
        sa.Column("updated_at", MOMENT, nullable=False),
        sa.Column("updated_by", sa.String(255), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_stored_secrets"),
    )
    op.add_column("agent_evaluations", sa.Column("worker", sa.String(64)))
    op.add_column("agent_evaluations", sa.Column("lease_until", MOMENT))
    op.add_column("agent_evaluations", sa.Column("attempts", sa.Integer, nullable=False, server_default="1"))
    op.add_column("agent_evaluations", sa.Column("owner_id", sa.BigInteger().with_variant(sa.Integer, "sqlite")))
    op.add_column("agent_evaluations", sa.Column("scopes", sa.JSON().with_variant(JSONB(), "postgresql")))
    op.add_column("tasks", sa.Column("turn_s", sa.Float(53), nullable=False, server_default="0"))
    is_postgres = op.get_bind().dialect.name == "postgresql"
    made = "EXTRACT(EPOCH FROM created_at)" if is_postgres else "(julianday(created_at) - 2440587.5) * 86400"
    op.execute(f"UPDATE tasks SET turn_s = {made} - urgency * 60")
    op.drop_index("idx_tasks_status", "tasks")
    op.create_index("idx_tasks_status", "tasks", ["status", "turn_s", "id"])


def downgrade() -> None:
    op.drop_index("idx_tasks_status", "tasks")
    op.create_index("idx_tasks_status", "tasks", ["status", "urgency", "id"])
    with op.batch_alter_table("tasks") as tasks:
        tasks.drop_column("turn_s")
    with op.batch_alter_table("agent_evaluations") as table:
        for name in ("scopes", "owner_id", "attempts", "lease_until", "worker"):
            table.drop_column(name)
    op.drop_table("stored_secrets")
