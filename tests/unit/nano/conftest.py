"""Shared by the tests of the embedded model."""

from __future__ import annotations

import importlib.util
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[3]

Fetch = Callable[[str | Path, str], list[Any]]


@pytest.fixture(scope="session")
def database_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("databases")


@pytest.fixture(scope="session")
def sql_agent() -> ModuleType:
    """The example agent, loaded from its file as a user's own program would be."""
    path = REPOSITORY / "examples" / "sql_agent" / "agent.py"
    spec = importlib.util.spec_from_file_location("sql_agent_example", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def fetch() -> Fetch:
    """All rows of one query of one database."""

    def run(database: str | Path, query: str) -> list[Any]:
        with closing(sqlite3.connect(database)) as connection:
            return connection.execute(query).fetchall()

    return run


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Closes at the end of the test what is put on it."""
    with ExitStack() as opened:
        yield opened
