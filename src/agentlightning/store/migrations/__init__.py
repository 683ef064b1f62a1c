"""Versions of the tables and how to get from one to the next (Alembic), on both databases.

A new database is made from `tables.py` at once; `versions/` brings older ones there, and a test compares the two.
Knows no operations.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Connection

FOLDER = Path(__file__).parent


def upgrade(connection: Connection, *, current: str, to: str = "head") -> None:
    """Run the migrations after `current`, in the transaction that is open, or that `connection` begins.

    Args:
        connection: To the database.
        current: Revision of its tables.
        to: Revision to stop at.
    """
    # Some hundred milliseconds that only an old database costs.
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    config.set_main_option("path_separator", "os")
    script = ScriptDirectory.from_config(config)

    def steps_after(found: Any, _: Any) -> Any:
        return script._upgrade_revs(to, found)  # pyright: ignore[reportPrivateUsage] - as Alembic's own commands

    with EnvironmentContext(config, script, fn=steps_after, as_sql=False) as environment:
        environment.configure(connection=connection, transaction_per_migration=False)
        environment.get_context().stamp(script, current)  # databases made before there were migrations do not say it
        environment.run_migrations()
