"""Upgrades of databases in use, killed before each of their statements: the next start goes on, and no row is lost."""

import itertools
import shutil
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import JSON, BigInteger, Boolean, DateTime, Float, Integer, LargeBinary, MetaData, inspect, text
from sqlalchemy.dialects.postgresql import ARRAY

from agentlightning.platform import migrations
from agentlightning.platform.database import postgres_schema, sync_engine
from agentlightning.platform.migrations import head, migrate, pending_changes

SCRIPT = Path(__file__).parent / "killed_migrations.py"
VERSIONS = sorted(step.revision for step in migrations._script().walk_revisions())
KILLED = -signal.SIGKILL
MOST = 200
"""Statements of an upgrade; more would mean that it never ends."""
OWN = ("knowledge_fts", "knowledge_embeddings", "alembic_version", "sqlite_sequence")
"""Tables of indexes and of the tools; their rows are not ours."""


class Killer:
    """The program that migrates and is killed."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def __call__(self, url: str, to: str, at: int = 0, times: int = 1) -> list[int]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{url} {to} {at} {times}\n")
        return [int(status) for status in self.process.stdout.readline().split()]


@pytest.fixture(scope="module")
def killer():
    made = Killer()
    yield made
    made.process.communicate(timeout=60)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'platform.db'}"
    return request.getfixturevalue("fresh_postgres_url")


def value_for(column, number):
    """Something that fits the column, other in each row."""
    moment = datetime(2026, 1, number, tzinfo=UTC)
    kinds = {
        Boolean: False,
        Integer: number,
        BigInteger: number,
        Float: number / 4,
        DateTime: moment,
        JSON: [{"n": number, "text": "ünï 'quoted'"}],
        ARRAY: ["a", str(number)],
        LargeBinary: bytes([0, number]),
    }
    return next((value for kind, value in kinds.items() if isinstance(column.type, kind)), f"{column.name}{number}")


def of_us(name):
    return not name.startswith(OWN)


def tables_of(connection, url):
    schema = None if url.startswith("sqlite") else postgres_schema(url)
    known = MetaData(schema=schema)
    known.reflect(connection, only=[name for name in inspect(connection).get_table_names(schema) if of_us(name)])
    return known.sorted_tables


def fill(url):
    """Two rows in each table that has none."""
    engine = sync_engine(url)
    with engine.begin() as connection:
        for table in tables_of(connection, url):
            if connection.execute(table.select().limit(1)).first() is None:
                for number in (1,) if table.name == "system_config" else (1, 2):
                    columns = [column for column in table.columns if column.computed is None]
                    connection.execute(table.insert().values({c.name: value_for(c, number) for c in columns}))
    engine.dispose()


def revision_of(url):
    engine = sync_engine(url)
    with engine.connect() as connection:
        found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    engine.dispose()
    return found


def content(url):
    """Revision, and all rows of all tables."""
    engine = sync_engine(url)
    with engine.connect() as connection:
        rows = {
            table.name: sorted((dict(row) for row in connection.execute(table.select()).mappings()), key=repr)
            for table in tables_of(connection, url)
        }
    engine.dispose()
    return revision_of(url), rows


def kept(rows, before):
    """Of the tables and columns that were there before."""
    return {
        name: sorted(({column: row[column] for column in old[0]} for row in rows[name]), key=repr)
        for name, old in before.items()
    }


@pytest.mark.parametrize(
    "versions", [VERSIONS[-2:], pytest.param(VERSIONS, marks=pytest.mark.campaign)], ids=["newest", "all"]
)
def test_each_step_is_killed_at_each_statement_and_loses_nothing(url, killer, versions):
    assert killer(url, versions[0], 3) == [KILLED]
    assert killer(url, versions[0]) == [0]
    for now, following in itertools.pairwise(versions):
        fill(url)
        before = content(url)
        assert before[0] == now
        assert all(before[1].values())
        for at in range(1, MOST):
            status = killer(url, following, at)
            if at % 4 == 1 and revision_of(url) == now:
                assert content(url) == before, at  # nothing of the step is there
            if status == [0]:
                break
            assert status == [KILLED]
        assert at > 5
        revision, rows = content(url)
        assert revision == following
        assert kept(rows, before[1]) == before[1]
    assert pending_changes(url) == []


@pytest.mark.parametrize("version", [pytest.param(VERSIONS[0], marks=pytest.mark.slow), VERSIONS[-2]])
def test_eight_processes_upgrade_a_database_in_use_once(url, killer, version):
    migrate(url, version)
    fill(url)
    _, before = content(url)
    assert killer(url, "head", times=8) == [0] * 8
    revision, rows = content(url)
    assert revision == head()
    assert kept(rows, before) == before
    assert pending_changes(url) == []


@pytest.mark.campaign
@pytest.mark.timeout(900)
@pytest.mark.parametrize("version", VERSIONS[:-1])
def test_an_upgrade_from_any_version_is_killed_anywhere_and_goes_on(tmp_path, killer, version):
    old = tmp_path / "old.db"
    migrate(f"sqlite:///{old}", version)
    fill(f"sqlite:///{old}")
    _, before = content(f"sqlite:///{old}")
    for at in range(1, MOST):
        path = tmp_path / f"{at}.db"
        shutil.copy(old, path)  # its connections are closed: nothing is left in a side file
        url = f"sqlite:///{path}"
        status = killer(url, "head", at)
        assert killer(url, "head") == [0]
        revision, rows = content(url)
        assert revision == head()
        assert kept(rows, before) == before
        assert pending_changes(url) == []
        for file in tmp_path.glob(f"*{at}.db*"):
            file.unlink()
        if status == [0]:
            return
    pytest.fail("the upgrade never ends")
