"""A gateway on a real socket with a real store in memory, and official clients bound to a rollout."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import openai

from agentlightning.agent.adapter import calls_from_spans
from agentlightning.gateway import EngineUpstream, Gateway, RoutingTable, Upstream
from agentlightning.schemas import AttemptedRollout, ModelCall, Span
from agentlightning.store import InMemoryLightningStore
from tests.unit.gateway.scripted import ScriptedEngine

USER = [{"role": "user", "content": "hi you"}]


class Rig:
    """What a test needs at hand."""

    def __init__(self, gateway: Gateway, store: InMemoryLightningStore, engine: ScriptedEngine) -> None:
        self.gateway = gateway
        self.store = store
        self.engine = engine

    async def rollout(self, **arguments: Any) -> AttemptedRollout:
        return await self.store.start_rollout(input={"task": 1}, **arguments)

    def base_url(self, rollout: AttemptedRollout | None) -> str:
        if rollout is None:
            return f"{self.gateway.url}/v1"
        return f"{self.gateway.url}/rollout/{rollout.rollout_id}/attempt/{rollout.attempt.attempt_id}/v1"

    def client(self, rollout: AttemptedRollout | None = None, max_retries: int = 0) -> Any:
        """The official asynchronous client; `Any`, so that tests may pass plain dicts."""
        return openai.AsyncOpenAI(base_url=self.base_url(rollout), api_key="any", max_retries=max_retries)

    async def spans(self, rollout: AttemptedRollout) -> Sequence[Span]:
        return await self.store.query_spans(rollout.rollout_id)

    async def calls(self, rollout: AttemptedRollout) -> list[ModelCall]:
        return calls_from_spans(await self.spans(rollout))


async def until(condition: Callable[[], bool], timeout_s: float = 100.0) -> None:
    """Wait for something that has no event of its own."""
    for _ in range(round(timeout_s / 0.01)):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise TimeoutError("it did not come true")


@asynccontextmanager
async def running_rig(
    upstreams: RoutingTable | Mapping[str, Upstream] | Sequence[Upstream] | None = None,
    store: Any = None,
    **options: Any,
) -> AsyncGenerator[Rig]:
    """Start everything; by default in front of a scripted engine."""
    engine = ScriptedEngine()
    kept = store or InMemoryLightningStore()
    settings: dict[str, Any] = {"shutdown_grace_s": 1, **options}
    gateway = Gateway(kept, upstreams or [EngineUpstream(engine)], **settings)
    try:
        async with gateway:
            yield Rig(gateway, kept, engine)
    finally:
        await kept.close()
