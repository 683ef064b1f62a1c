"""A store, and a runner at work on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from agentlightning import InMemoryLightningStore, LitAgentRunner
from agentlightning.agent import instrument
from agentlightning.agent.scope import unattributed
from agentlightning.schemas import EnqueueRolloutRequest, Rollout, RolloutConfig
from agentlightning.store import LightningStore


@pytest.fixture
async def store() -> AsyncIterator[LightningStore]:
    unattributed.clear()
    store = InMemoryLightningStore()
    yield store
    await store.close()
    instrument.uninstall()


class Work:
    """Runs tasks through a runner and reads back what the store knows."""

    def __init__(self, store: LightningStore) -> None:
        self.store = store
        self.runner: LitAgentRunner[Any] | None = None

    async def __call__(
        self, agent: Any, tasks: list[Any], *, hooks: Any = None, config: RolloutConfig | None = None, **options: Any
    ) -> list[Rollout]:
        requests = [EnqueueRolloutRequest(input=task, mode="train", config=config) for task in tasks]
        ids = [r.rollout_id for r in await self.store.enqueue_many_rollouts(requests)]
        await self.until(ids, agent, hooks=hooks, **options)
        found = {r.rollout_id: r for r in await self.store.query_rollouts(rollout_id_in=ids)}
        return [found[i] for i in ids]

    async def until(self, ids: list[str], agent: Any, *, hooks: Any = None, **options: Any) -> None:
        options.setdefault("poll_interval", 0.05)
        self.runner = runner = LitAgentRunner(**options)
        with runner.run_context(agent=agent, store=self.store, hooks=hooks):
            running = asyncio.create_task(runner.iter())
            waiting = asyncio.create_task(self.store.wait_for_rollouts(rollout_ids=ids, timeout=30))
            await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
            runner.stop()
            await running
            await waiting

    async def spans(self, rollout: Rollout) -> list[Any]:
        return list(await self.store.query_spans(rollout.rollout_id))


@pytest.fixture
def work(store: LightningStore) -> Work:
    return Work(store)


Start = Callable[[Any], Any]
