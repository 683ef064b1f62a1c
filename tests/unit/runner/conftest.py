"""A store, and a runner at work on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agentlightning import InMemoryLightningStore, LitAgentRunner
from agentlightning.agent import instrument
from agentlightning.agent.scope import RolloutScope, unattributed
from agentlightning.kit.errors import StorageError
from agentlightning.schemas import EnqueueRolloutRequest, Rollout, RolloutConfig
from agentlightning.store import LightningStore
from agentlightning.store.base import AttemptUpdate


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


class Flaky(InMemoryLightningStore):
    """A real store that can be made unreachable."""

    away = 0

    async def execute(self, verb):
        if self.away:
            self.away -= 1
            raise StorageError("nobody answers")
        return await super().execute(verb)


@pytest.fixture
async def flaky():
    store = Flaky()
    yield store
    store.away = 0
    await store.close()


async def begun(store) -> tuple[Rollout, RolloutScope, AttemptUpdate]:
    rollout = await store.start_rollout("x")
    attempt_id = rollout.attempt.attempt_id
    update = AttemptUpdate(rollout_id=rollout.rollout_id, attempt_id=attempt_id, status="succeeded")
    return rollout, RolloutScope(rollout.rollout_id, attempt_id), update
