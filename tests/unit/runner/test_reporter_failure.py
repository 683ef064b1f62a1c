"""A store that breaks in an unforeseen way ends the runner with the cause instead of letting it wait."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.runner import LitAgentRunner
from agentlightning.store import InMemoryLightningStore


class BrokenStore(InMemoryLightningStore):
    """Fails where no failure is foreseen."""

    async def update_many_attempts(self, updates: Any) -> Any:
        raise RuntimeError("out of order")


async def test_an_unforeseen_failure_while_reporting_is_raised() -> None:
    store = BrokenStore()
    runner: LitAgentRunner[Any] = LitAgentRunner()
    runner.init(lambda task: 1.0)
    runner.init_worker(0, store)
    try:
        for _ in range(3):
            await store.enqueue_rollout({"n": 1})
        with pytest.raises(agl.AgentLightningError, match="out of order"):
            async with asyncio.timeout(100):
                await runner.iter()
    finally:
        runner.teardown_worker(0)
        runner.teardown()
        await store.close()
