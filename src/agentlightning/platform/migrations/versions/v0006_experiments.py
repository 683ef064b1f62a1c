"""Experiments."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
DOCUMENT = sa.JSON().with_variant(JSONB(), "postgresql")
MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "rl_experiments",
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("algorithm", sa.String(50), nullable=False),
        sa.Column("config", DOCUMENT, nullable=False),
        sa.Column("status", sa.String(50), nullable=False),
        sa.Column("agent_id", NUMBER),
        sa.Column("start_time", MOMENT),
        sa.Column("end_time", MOMENT),
        sa.Column("metrics", DOCUMENT, nullable=False),
        sa.Column("checkpoints", DOCUMENT, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("agent_version", sa.Integer, nullable=False),
        sa.Column("reason", sa.String(500), nullable=False),
        sa.Column("created_by", NUMBER),
        sa.Column("error_message", sa.Text),
        sa.Column("stop_requested", sa.Boolean, nullable=False),
        sa.Column("worker", sa.String(64)),
        sa.Column("lease_until", MOMENT),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("applied_version", sa.Integer),
        sa.PrimaryKeyConstraint("id", name="pk_rl_experiments"),
        sa.UniqueConstraint("name", name="uq_rl_experiments_name"),
        sa.ForeignKeyConstraint(["agent_id"], ["agents.id"], name="fk_rl_experiments_agent_id", ondelete="SET NULL"),
        sa.ForeignKeyConstraint(["created_by"], ["users.id"], name="fk_rl_experiments_created_by", ondelete="SET NULL"),
        sqlite_autoincrement=True,
    )
    op.create_index("idx_rl_experiments_status", "rl_experiments", ["status"])
    op.create_index("idx_rl_experiments_agent_id", "rl_experiments", ["agent_id"])


def downgrade() -> None:
    op.drop_table("rl_experiments")
