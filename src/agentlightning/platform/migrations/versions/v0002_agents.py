"""Agents, their versions and their evaluations."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
DOCUMENT = sa.JSON().with_variant(JSONB(), "postgresql")
MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "agents",
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("type", sa.String(100), nullable=False),
        sa.Column("description", sa.Text),
        sa.Column("config", DOCUMENT, nullable=False),
        sa.Column("status", sa.String(50), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("updated_at", MOMENT, nullable=False),
        sa.Column("performance_metrics", DOCUMENT, nullable=False),
        sa.Column("last_activity", MOMENT),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("builtin", sa.String(64)),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("restarted_at", MOMENT),
        sa.Column("created_by", sa.String(255), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_agents"),
        sa.UniqueConstraint("name", name="uq_agents_name"),
        sqlite_autoincrement=True,
    )
    op.create_index("idx_agents_type", "agents", ["type"])
    op.create_index("idx_agents_status", "agents", ["status"])
    op.create_index("idx_agents_last_activity", "agents", ["last_activity"])
    op.create_table(
        "agent_capabilities",
        sa.Column("agent_id", NUMBER, nullable=False),
        sa.Column("capability", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("agent_id", "capability", name="pk_agent_capabilities"),
        sa.ForeignKeyConstraint(["agent_id"], ["agents.id"], name="fk_agent_capabilities_agent_id", ondelete="CASCADE"),
    )
    op.create_index("ix_agent_capabilities_capability", "agent_capabilities", ["capability"])
    op.create_table(
        "agent_versions",
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("agent_id", NUMBER, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("config", DOCUMENT, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("created_by", sa.String(255), nullable=False),
        sa.Column("reason", sa.String(200), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_agent_versions"),
        sa.ForeignKeyConstraint(["agent_id"], ["agents.id"], name="fk_agent_versions_agent_id", ondelete="CASCADE"),
        sa.UniqueConstraint("agent_id", "version", name="uq_agent_versions_agent_id"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "agent_evaluations",
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("agent_id", NUMBER, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("split", sa.String(16), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("started_at", MOMENT, nullable=False),
        sa.Column("deadline_at", MOMENT, nullable=False),
        sa.Column("finished_at", MOMENT),
        sa.Column("cases", sa.Integer, nullable=False),
        sa.Column("passed", sa.Integer),
        sa.Column("score", sa.Float(53)),
        sa.Column("results", DOCUMENT, nullable=False),
        sa.Column("created_by", sa.String(255), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_agent_evaluations"),
        sa.ForeignKeyConstraint(["agent_id"], ["agents.id"], name="fk_agent_evaluations_agent_id", ondelete="CASCADE"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_agent_evaluations_agent_id", "agent_evaluations", ["agent_id", "id"])
