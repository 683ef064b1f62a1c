"""The number of rollouts is kept (SQLite) or can be asked for in the same way (PostgreSQL).

Revision ID: 0005
"""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"

_SQLITE = (
    "CREATE TABLE row_counts (table_name TEXT NOT NULL PRIMARY KEY, row_count INTEGER NOT NULL)",
    "INSERT INTO row_counts SELECT 'rollouts', count(*) FROM rollouts",
    """CREATE TRIGGER rollouts_counted_in AFTER INSERT ON rollouts BEGIN
    UPDATE row_counts SET row_count = row_count + 1 WHERE table_name = 'rollouts'; END""",
    """CREATE TRIGGER rollouts_counted_out AFTER DELETE ON rollouts BEGIN
    UPDATE row_counts SET row_count = row_count - 1 WHERE table_name = 'rollouts'; END""",
)
_POSTGRES = ("CREATE VIEW row_counts AS SELECT 'rollouts' AS table_name, count(*) AS row_count FROM rollouts",)


def upgrade() -> None:
    for statement in _SQLITE if op.get_bind().dialect.name == "sqlite" else _POSTGRES:
        op.execute(statement)
