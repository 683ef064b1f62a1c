"""The versions of the platform's tables and the way from one to the next (Alembic), on both databases.

One process at a time migrates; the others wait for it. Each step and the note that it was done are one transaction, so
a process that is killed leaves a version behind, not a half of one, and running it again goes on from there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, text

from agentlightning.kit.errors import StorageError
from agentlightning.kit.files import exclusive_lock
from agentlightning.platform.agents import models as _agents
from agentlightning.platform.auth.models import User
from agentlightning.platform.database import (
    Database,
    outages_told,
    postgres_schema,
    sqlite_url,
    sync_engine,
)
from agentlightning.platform.jsonfiles import models as _jsonfiles
from agentlightning.platform.knowledge import models as _knowledge
from agentlightning.platform.learning import models as _learning
from agentlightning.platform.memory import models as _memory
from agentlightning.platform.system import models as _system
from agentlightning.platform.tasks import models as _tasks

del _agents, _jsonfiles, _knowledge, _learning, _memory, _system, _tasks  # their tables belong to the same metadata

FOLDER = Path(__file__).parent

_LOCK = 0x41474C32  # advisory, PostgreSQL
_WAIT_S = 120.0
_UNDESCRIBED = {"search", "idx_knowledge_content", "idx_knowledge_tags"}
_HINT = "Run: agl platform migrate"


class SchemaOutdatedError(StorageError):
    """The tables are not those of this version."""

    code = "SCHEMA_OUTDATED"


def migrate(url: str, to: str = "head") -> tuple[str | None, str | None]:
    """Bring the tables to a revision; answers which one was there and which one is there now.

    Raises:
        BusyError: Another process migrates for longer than two minutes.
        StorageError: The database holds a version that this program does not know.
        DatabaseError: It does not answer.
    """
    script = _script()
    with _connected(url) as connection:
        before = _revision(connection)
        known = {step.revision for step in script.walk_revisions()}
        if before is not None and before not in known:
            raise SchemaOutdatedError(
                f"The tables have version {before}, which is newer than this program.", hint="Upgrade agentlightning."
            )
        _upgrade(connection, script, to)
        after = _revision(connection)
    return before, after


def pending_changes(url: str) -> list[Any]:
    """What the models have and the tables do not, or the other way round; empty when they agree."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with _connected(url) as connection:
        options = {"compare_type": True, "compare_server_default": True, "include_name": _is_described}
        context = MigrationContext.configure(connection, opts=options)
        return list(compare_metadata(context, User.metadata))


def _is_described(name: str | None, kind: str, _: Any) -> bool:
    """Whether models can say it: text and vector indexes are each database's own."""
    if kind == "table":
        return not str(name).startswith(("knowledge_fts", "knowledge_embeddings"))
    return not (kind in ("column", "index") and name in _UNDESCRIBED)


def head() -> str:
    """The newest revision."""
    return str(_script().get_current_head())


async def check_revision(database: Database) -> None:
    """See that the tables are there and current.

    Raises:
        SchemaOutdatedError: They are not.
        DatabaseError: The database does not answer.
    """
    with outages_told():
        async with database.engine.connect() as connection:
            found = await connection.run_sync(_revision)
    if found != head():
        raise SchemaOutdatedError(f"The tables have version {found or 'none'}, not {head()}.", hint=_HINT)


@contextlib.contextmanager
def _connected(url: str) -> Generator[Connection]:
    engine = sync_engine(url)
    try:
        with outages_told(), contextlib.ExitStack() as stack:
            if engine.dialect.name == "sqlite":
                path = Path(str(sqlite_url(url).database))
                stack.enter_context(
                    exclusive_lock(path.with_name(f".{path.name}.migrating"), purpose="A migration", wait_s=_WAIT_S)
                )
            connection = stack.enter_context(engine.connect())
            if engine.dialect.name == "postgresql":
                _prepare_postgres(connection, postgres_schema(url))
            try:
                yield connection
            finally:
                connection.rollback()
    finally:
        engine.dispose()


def _prepare_postgres(connection: Connection, schema: str) -> None:
    # For the session, not for a transaction: the steps are transactions of their own. It ends with the connection.
    connection.execute(text(f"SET lock_timeout = '{_WAIT_S:.0f}s'; SET statement_timeout = 0"))
    connection.execute(text("SELECT pg_advisory_lock(:number, hashtext(:schema))"), {"number": _LOCK, "schema": schema})
    if connection.execute(text("SELECT to_regnamespace(:schema)"), {"schema": schema}).scalar() is None:
        connection.execute(text(f'CREATE SCHEMA "{schema}"'))
    connection.commit()


def _upgrade(connection: Connection, script: Any, to: str) -> None:
    from alembic.runtime.environment import EnvironmentContext

    def steps(found: Any, _: Any) -> Any:
        return script._upgrade_revs(to, found)  # pyright: ignore[reportPrivateUsage] - as Alembic's own commands

    with EnvironmentContext(_config(), script, fn=steps, as_sql=False) as environment:
        environment.configure(connection=connection, transaction_per_migration=True, transactional_ddl=True)
        environment.run_migrations()


def _revision(connection: Connection) -> str | None:
    from alembic.migration import MigrationContext

    found = MigrationContext.configure(connection).get_current_revision()
    connection.rollback()
    return found


def _config() -> Any:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    config.set_main_option("path_separator", "os")
    return config


def _script() -> Any:
    from alembic.script import ScriptDirectory

    return ScriptDirectory.from_config(_config())
