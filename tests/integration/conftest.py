"""Fixtures of the tests with runner processes: a store with its server, and pools that do not outlive their test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.runner import RunnerPool
from agentlightning.store import LightningStoreServer
from tests.integration.runner_pools import descendants


@pytest.fixture
async def server() -> AsyncIterator[LightningStoreServer]:
    store = agl.InMemoryLightningStore()
    server = LightningStoreServer(store, port=0, launch_mode="asyncio")
    await server.start()
    yield server
    await server.stop()
    await store.close()


@pytest.fixture
async def start(server: LightningStoreServer) -> AsyncIterator[Callable[..., Awaitable[RunnerPool]]]:
    """Starts pools; what a test leaves running is stopped."""
    pools: list[RunnerPool] = []

    async def start(agent: Any, **options: Any) -> RunnerPool:
        pool = RunnerPool(agent, store_url=server.endpoint, **options)
        pools.append(pool)
        await pool.start()
        return pool

    yield start
    for pool in pools:
        pool.drain_timeout_s = 0.1
        await pool.stop()
    assert descendants() == []
