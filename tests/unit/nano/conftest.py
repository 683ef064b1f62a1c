"""Shared by the tests of the embedded model."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).parents[3]


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
