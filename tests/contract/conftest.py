"""Every implementation of the store, each behind the same interface."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agentlightning.schemas import Span
from agentlightning.store import (
    InMemoryLightningStore,
    LightningStore,
    LightningStoreClient,
    LightningStoreServer,
    SqlLightningStore,
)

WATCHDOG_S = 0.05


@pytest.fixture(params=["memory", "sqlite", "postgres", "http"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LightningStore]:
    if request.param == "memory":
        memory = InMemoryLightningStore(watchdog_interval_s=WATCHDOG_S)
        yield memory
        await memory.close()
        return
    where = request.getfixturevalue("postgres_url") if request.param == "postgres" else tmp_path / "store.db"
    local = SqlLightningStore(where, watchdog_interval_s=WATCHDOG_S)
    if request.param != "http":
        yield local
        await local.close()
        return
    server = LightningStoreServer(local, port=0, launch_mode="asyncio")
    await server.start()
    client = LightningStoreClient(server.endpoint, retry_delays=())
    yield client
    await client.close()
    await server.stop()
    await local.close()


@pytest.fixture
async def sql_store(location: str) -> AsyncIterator[SqlLightningStore]:
    local = SqlLightningStore(location, watchdog_interval_s=WATCHDOG_S)
    yield local
    await local.close()


def make_span(rollout_id: str, attempt_id: str, sequence_id: int = 0, **fields: Any) -> Span:
    fields.setdefault("attributes", {"a": 1})
    fields.setdefault("name", "step")
    return Span.from_attributes(rollout_id=rollout_id, attempt_id=attempt_id, sequence_id=sequence_id, **fields)
