"""The tables: the same on both databases, made once by eight processes, and never half when one is killed."""

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time

import psycopg
import pytest
from sqlalchemy import bindparam, func, select, text
from sqlalchemy.exc import DatabaseError as DriverError

from agentlightning.kit.errors import ConfigError, StorageError
from agentlightning.platform.auth.models import User
from agentlightning.platform.database import Database, DatabaseError, sync_engine
from agentlightning.platform.lookups import Lookup, Lookups
from agentlightning.platform.migrations import (
    SchemaOutdatedError,
    check_revision,
    head,
    migrate,
    pending_changes,
)

MIGRATE = "import sys; from agentlightning.platform.migrations import migrate; print(migrate(sys.argv[1])[1])"


@pytest.fixture(params=["sqlite", "postgres"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'platform.db'}"
    return request.getfixturevalue("fresh_postgres_url")


def test_the_tables_are_what_the_models_say(url):
    assert migrate(url) == (None, head())
    assert migrate(url) == (head(), head())
    assert pending_changes(url) == []


@pytest.mark.slow
def test_eight_processes_at_once_make_them_once(url):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", MIGRATE, url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(8)
    ]
    for process in processes:
        said, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors
        assert said.strip() == head()
    assert pending_changes(url) == []


@pytest.mark.parametrize("delay_s", [0.0, 0.02, 0.05, 0.1, 0.2])
@pytest.mark.slow
def test_a_killed_migration_is_run_again(url, delay_s):
    code = "import sys; from agentlightning.platform import migrations as m; m._script(); print('ready', flush=True); "
    code += "m.migrate(sys.argv[1])"
    process = subprocess.Popen([sys.executable, "-c", code, url], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(delay_s)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(20)
    process.stdout.close()
    assert migrate(url)[1] == head()
    assert pending_changes(url) == []


async def test_a_database_without_tables_does_not_start(url):
    database = Database(url)
    try:
        with pytest.raises(SchemaOutdatedError, match="version none"):
            await check_revision(database)
        migrate(url)
        await check_revision(database)
    finally:
        await database.close()


async def test_a_newer_database_is_left_alone(url):
    migrate(url)
    engine = sync_engine(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(SchemaOutdatedError, match="newer"):
        migrate(url)


def test_the_audit_log_cannot_be_changed(url):
    migrate(url)
    engine = sync_engine(url)
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO audit_log (at, actor, action, target, request_id, address, details)"
                " VALUES (1, 'me', 'did', 'it', 'r', 'a', '{}')"
            )
        )
    for statement in ("UPDATE audit_log SET actor = 'you'", "DELETE FROM audit_log"):
        with (
            pytest.raises((DriverError, sqlite3.Error, psycopg.Error), match="only added to"),
            engine.begin() as connection,
        ):
            connection.execute(text(statement))
    engine.dispose()


async def test_a_write_that_fails_is_undone_and_writers_wait_for_each_other(url):
    import asyncio

    migrate(url)
    database = Database(url)

    async def add(name: str) -> None:
        async with database.write() as session:
            count = (await session.execute(text("SELECT count(*) FROM users"))).scalar_one()
            await asyncio.sleep(0.01)
            await session.execute(
                text(
                    "INSERT INTO users (username, password_hash, role, created_at, updated_at)"
                    " VALUES (:name, 'x', 'user', :count, 0)"
                ),
                {"name": name, "count": count},
            )
            if name == "bad":
                raise RuntimeError("undo this")

    with pytest.raises(RuntimeError):
        await add("bad")
    await asyncio.gather(*(add(f"user{number}") for number in range(20)))
    async with database.read() as session:
        assert (await session.execute(text("SELECT count(*) FROM users"))).scalar_one() == 20
    assert await database.ping() < 10
    await database.close()


@pytest.mark.parametrize("url", ["mysql://x", "sqlite://", "sqlite:///:memory:", "nonsense", ""])
def test_other_databases_are_refused(url):
    with pytest.raises(ConfigError):
        Database(url)


async def test_a_server_that_is_not_there_is_said():
    url = "postgresql://nobody:canary@127.0.0.1:1/none"
    with pytest.raises(DatabaseError) as caught:
        migrate(url)
    assert "canary" not in str(caught.value)
    database = Database(url)
    with pytest.raises(DatabaseError):
        await check_revision(database)
    await database.close()


def test_the_file_is_its_owners_alone(tmp_path):
    path = tmp_path / "new" / "platform.db"
    migrate(f"sqlite:///{path}")
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.glob("platform.db*")} == {0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        Database(f"sqlite:///{tmp_path / 'file' / 'platform.db'}")


async def test_a_lookup_sees_the_last_commit_and_survives_a_missing_table(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'with space & %41.db'}")
    lookups = Lookups(database)
    count = Lookup(select(func.count()).select_from(User).where(User.id > bindparam("least")))
    with pytest.raises(DatabaseError):
        await lookups.first(count, {"least": 0})
    migrate(f"sqlite:///{tmp_path / 'with space & %41.db'}")
    assert await lookups.first(count, {"least": 0}) == (0,)
    for number in (1, 2):
        async with database.write() as session:
            session.add(User(username=f"u{number}", password_hash="", role="user", created_at=0, updated_at=0))
        assert await lookups.first(count, {"least": 0}) == (number,)
    assert await lookups.first(Lookup(select(User.id).where(User.id == bindparam("id"))), {"id": 99}) is None
    await database.close()


async def test_lost_connections_are_replaced(fresh_postgres_url, postgres_server):
    migrate(fresh_postgres_url)
    database = Database(fresh_postgres_url)

    async def server_process() -> int:
        async with database.read() as session:
            return (await session.execute(text("SELECT pg_backend_pid()"))).scalar_one()

    lost = await server_process()
    with psycopg.connect(postgres_server, autocommit=True) as connection:  # other tests use the server, too
        assert connection.execute("SELECT pg_terminate_backend(%s)", (lost,)).fetchone() == (True,)
    assert await server_process() != lost
    await database.close()
