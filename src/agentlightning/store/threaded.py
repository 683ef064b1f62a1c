"""0.3's wrapper for stores used from several threads. Knows one store."""

from __future__ import annotations

from typing import TypeVar

from agentlightning.store import verbs
from agentlightning.store.base import LightningStore, LightningStoreCapabilities, LightningStoreStatistics

R = TypeVar("R")


class LightningStoreThreaded(LightningStore):
    """The store itself, which every implementation here lets several threads use at once.

    Args:
        store: Any store.
    """

    def __init__(self, store: LightningStore) -> None:
        self.store = store

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        """What the store can do."""
        return {**self.store.capabilities, "thread_safe": True}

    def otlp_traces_endpoint(self) -> str:
        """URL to which OpenTelemetry exporters may send traces."""
        return self.store.otlp_traces_endpoint()

    async def statistics(self) -> LightningStoreStatistics:
        """Count what is stored."""
        return await self.store.statistics()

    async def close(self) -> None:
        """Close the store."""
        await self.store.close()

    async def execute(self, verb: verbs.Verb[R]) -> R:
        """Execute one verb on the store."""
        return await self.store.execute(verb)
