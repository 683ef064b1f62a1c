"""Old files and databases become current ones, and what is made anew is the same as what was migrated."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine, inspect

from agentlightning.kit.db import sqlite
from agentlightning.kit.errors import StorageError
from agentlightning.store import SqlLightningStore, maintenance, tables
from agentlightning.store.migrations import FOLDER, upgrade
from agentlightning.store.tables import APPLICATION_ID, REVISIONS, SCHEMA_VERSION, sqlite_schema


def layout(url: str, **options: object) -> dict[str, object]:
    """Tables as the database itself describes them."""
    engine = create_engine(url, **options)
    found = inspect(engine)
    described: dict[str, object] = {}
    for table in sorted(found.get_table_names()):
        described[table] = (
            [{k: str(v) for k, v in c.items()} for c in found.get_columns(table)],
            sorted(_index(dict(i)) for i in found.get_indexes(table)),
            sorted(str(u["column_names"]) for u in found.get_unique_constraints(table)),
            sorted(str(f["constrained_columns"]) for f in found.get_foreign_keys(table)),
        )
    engine.dispose()
    return described


def _index(found: dict[str, Any]) -> str:
    options = {key: str(value) for key, value in (found.get("dialect_options") or {}).items()}
    return str((found["name"], found["column_names"], bool(found["unique"]), options))


def write_version_1(path: Path) -> None:
    """As the first release wrote it: no table of Alembic's, no index by time."""
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as migrated:
        upgrade(migrated, current="base", to="0001")
        migrated.exec_driver_sql("DROP TABLE alembic_version")
    engine.dispose()
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute("PRAGMA user_version = 1")
    connection.execute(
        """INSERT INTO rollouts (rollout_id, packed_input, start_time, status, packed_config, attempt_count,
        queue_position) VALUES ('ro-old', x'a3616263', 1.0, 'queuing', x'80', 0, 1)"""
    )
    connection.close()


def test_every_revision_has_its_file() -> None:
    assert sorted(p.name[1:5] for p in (FOLDER / "versions").glob("v*.py")) == list(REVISIONS)


async def test_opening_an_old_file_migrates_it_and_keeps_its_content(tmp_path: Path) -> None:
    write_version_1(tmp_path / "old.db")
    store = SqlLightningStore(tmp_path / "old.db")
    assert [(r.rollout_id, r.input) for r in await store.query_rollouts()] == [("ro-old", "abc")]
    await store.enqueue_rollout("new")
    assert (await store.query_rollouts(limit=1)).total == 2  # the old one is counted
    assert await store.dequeue_rollout() is not None
    await store.close()
    await SqlLightningStore(tmp_path / "new.db").close()
    assert layout(f"sqlite:///{tmp_path}/old.db") == layout(f"sqlite:///{tmp_path}/new.db")
    connection = sqlite3.connect(tmp_path / "old.db")
    assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [(REVISIONS[-1],)]
    connection.close()


def test_a_migration_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    write_version_1(tmp_path / "old.db")
    connection = sqlite3.connect(tmp_path / "old.db")
    connection.execute("CREATE INDEX rollouts_start_time ON workers (status)")  # in the way
    connection.close()
    before = (tmp_path / "old.db").read_bytes()
    connection = sqlite.connect(tmp_path / "old.db")
    with pytest.raises(Exception, match="rollouts_start_time"):
        sqlite_schema().ensure(connection, "old.db")
    assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'alembic_version'").fetchone() == (0,)
    assert connection.execute("SELECT rollout_id FROM rollouts").fetchall() == [("ro-old",)]
    connection.close()
    assert len((tmp_path / "old.db").read_bytes()) == len(before)


def test_migrations_from_nothing_make_the_same_file(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/migrated.db")
    with engine.begin() as connection:
        upgrade(connection, current="base")
    engine.dispose()
    SqlLightningStore(tmp_path / "new.db")._database.close_now()
    assert layout(f"sqlite:///{tmp_path}/migrated.db") == layout(f"sqlite:///{tmp_path}/new.db")


def _postgres_layout(postgres_server: str, url: str) -> dict[str, object]:
    schema = url.rsplit("=", 1)[1]
    connect = lambda: psycopg.connect(postgres_server, options=f"-c search_path={schema}")  # noqa: E731
    described = layout("postgresql+psycopg://", creator=connect)
    return {name: str(value).replace(schema, "SCHEMA") for name, value in described.items()}


async def test_postgres_is_migrated_by_command(postgres_server: str, fresh_postgres_url: str) -> None:
    await SqlLightningStore(fresh_postgres_url).close()
    new = _postgres_layout(postgres_server, fresh_postgres_url)
    schema = fresh_postgres_url.rsplit("=", 1)[1]
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA {schema} CASCADE; CREATE SCHEMA {schema}")  # type: ignore[arg-type]
    connect = lambda: psycopg.connect(postgres_server, options=f"-c search_path={schema}")  # noqa: E731
    engine = create_engine("postgresql+psycopg://", creator=connect)
    with engine.begin() as wrapped:
        upgrade(wrapped, current="base", to="0001")
    engine.dispose()
    with pytest.raises(StorageError, match="0001") as caught:
        SqlLightningStore(fresh_postgres_url)
    assert "agl store migrate" in caught.value.hint
    assert maintenance.migrate(fresh_postgres_url) == ("0001", REVISIONS[-1])
    assert maintenance.migrate(fresh_postgres_url) == (REVISIONS[-1], REVISIONS[-1])
    assert _postgres_layout(postgres_server, fresh_postgres_url) == new
    store = SqlLightningStore(fresh_postgres_url)
    await store.enqueue_rollout("x")
    await store.close()


def test_metadata_lists_each_table_once() -> None:
    assert {t.name for t in tables.metadata.sorted_tables} == {
        "rollouts",
        "attempts",
        "spans",
        "resources",
        "events",
        "workers",
        "payloads",
        "payload_epochs",
        "feedback",
        "preferences",
        "lineage_sessions",
        "lineages",
        "lineage_steps",
    }
