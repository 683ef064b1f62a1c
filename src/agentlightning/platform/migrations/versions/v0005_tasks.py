"""Tasks, events and tickets for websockets."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
DOCUMENT = sa.JSON().with_variant(JSONB(), "postgresql")
MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "tasks",
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("task_description", sa.Text, nullable=False),
        sa.Column("agent_id", NUMBER, nullable=False),
        sa.Column("status", sa.String(50), nullable=False),
        sa.Column("priority", sa.String(20), nullable=False),
        sa.Column("result", DOCUMENT),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("started_at", MOMENT),
        sa.Column("completed_at", MOMENT),
        sa.Column("execution_time_ms", sa.Integer),
        sa.Column("error_message", sa.Text),
        sa.Column("owner_id", NUMBER, nullable=False),
        sa.Column("urgency", sa.Integer, nullable=False),
        sa.Column("context", DOCUMENT, nullable=False),
        sa.Column("session_id", sa.String(128)),
        sa.Column("idempotency_key", sa.String(128)),
        sa.Column("request_digest", sa.String(64), nullable=False),
        sa.Column("scopes", DOCUMENT),
        sa.Column("use_cache", sa.Boolean, nullable=False),
        sa.Column("timeout_s", sa.Float(53), nullable=False),
        sa.Column("deadline_at", MOMENT, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("max_attempts", sa.Integer, nullable=False),
        sa.Column("not_before", MOMENT, nullable=False),
        sa.Column("leased_by", sa.String(64)),
        sa.Column("lease_until", MOMENT),
        sa.Column("cancelled_at", MOMENT),
        sa.Column("error_code", sa.String(64)),
        sa.Column("error_hint", sa.Text),
        sa.Column("agent_generation", sa.Integer),
        sa.Column("agent_version", sa.Integer),
        sa.Column("rollout_id", sa.String(64)),
        sa.PrimaryKeyConstraint("id", name="pk_tasks"),
        sa.ForeignKeyConstraint(["agent_id"], ["agents.id"], name="fk_tasks_agent_id"),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name="fk_tasks_owner_id", ondelete="CASCADE"),
        sa.UniqueConstraint("owner_id", "idempotency_key", name="uq_tasks_owner_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("idx_tasks_status", "tasks", ["status", "urgency", "id"])
    op.create_index("idx_tasks_agent_id", "tasks", ["agent_id", "id"])
    op.create_index("idx_tasks_created_at", "tasks", ["created_at"])
    op.create_index("ix_tasks_owner_id", "tasks", ["owner_id", "id"])
    op.create_table(
        "events",
        sa.Column("seq", NUMBER, nullable=False),
        sa.Column("event", sa.String(64), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("owner_id", NUMBER),
        sa.Column("agent_id", NUMBER),
        sa.Column("agent", sa.String(255), nullable=False),
        sa.Column("task_id", NUMBER),
        sa.Column("data", DOCUMENT, nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_events"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_events_created_at", "events", ["created_at"])
    op.create_table(
        "websocket_tickets",
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("user_id", NUMBER, nullable=False),
        sa.Column("session_id", sa.String(64)),
        sa.Column("key_id", NUMBER),
        sa.Column("expires_at", sa.Float(53), nullable=False),
        sa.PrimaryKeyConstraint("hash", name="pk_websocket_tickets"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_websocket_tickets_user_id", ondelete="CASCADE"),
    )
    op.create_index("ix_websocket_tickets_expires_at", "websocket_tickets", ["expires_at"])
