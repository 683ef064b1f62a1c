"""A process that only talks HTTP loads no database and no server; nothing here loads torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

import agentlightning.store as store_room


def _loaded(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_client_loads_neither_database_nor_server() -> None:
    loaded = _loaded("from agentlightning.store import LightningStoreClient")
    assert not loaded & {"sqlalchemy", "starlette", "fastapi", "uvicorn", "torch", "opentelemetry.proto"}


def test_sql_store_loads_no_server() -> None:
    loaded = _loaded("from agentlightning.store import SqlLightningStore")
    assert not loaded & {"starlette", "fastapi", "uvicorn", "aiohttp", "torch"}


def test_every_public_name_loads() -> None:
    for name in store_room.__all__:
        assert getattr(store_room, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = store_room.nothing
