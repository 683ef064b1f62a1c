"""The ledger of records from JSON files."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
DOCUMENT = sa.JSON().with_variant(JSONB(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "json_records",
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("old_id", sa.String(255), nullable=False),
        sa.Column("row_id", NUMBER, nullable=False),
        sa.Column("record", DOCUMENT, nullable=False),
        sa.Column("left_out", DOCUMENT, nullable=False),
        sa.Column("file", sa.Text, nullable=False),
        sa.Column("place", sa.Integer, nullable=False),
        sa.Column("migrated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_json_records"),
    )
    op.create_index("ix_json_records_old_id", "json_records", ["kind", "old_id"])


def downgrade() -> None:
    op.drop_table("json_records")
