"""The embedded engine as an engine of the service: a learner worker process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from agentlightning.config import ModelSpec
from agentlightning.gateway import EngineUpstream
from agentlightning.learner.client import EngineClient
from agentlightning.modelservice.engines import Progress
from agentlightning.modelservice.source import Source
from agentlightning.schemas.generation import EngineStats


class BuiltinEngine:
    """One `EngineClient`."""

    is_exact = True

    def __init__(self, client: EngineClient, name: str) -> None:
        self._client = client
        self.upstream = EngineUpstream(client, name=name)
        self.pid = client.pid

    @classmethod
    async def start(cls, spec: ModelSpec, source: Source, log_path: Path, on_progress: Progress) -> BuiltinEngine:
        """Start a worker and wait until it has loaded the model; raises what `EngineClient.start` raises."""
        client = await EngineClient.start(
            source.path,
            device=spec.device,
            dtype=spec.dtype,
            threads=spec.threads,
            max_batch=spec.max_rows,
            log_path=log_path,
            startup_timeout_s=spec.load_timeout_s,
            adapter=spec.adapter,
            name=spec.name,
            max_context=spec.max_context,
            memory_bytes=None if spec.max_memory_mb is None else spec.max_memory_mb << 20,
            on_progress=on_progress,
        )
        try:
            await client.set_version(source.version)
        except BaseException:
            await client.close()
            raise
        return cls(client, spec.name)

    @property
    def is_dead(self) -> bool:
        """Whether the process is gone."""
        return self._client.is_dead

    def facts(self) -> dict[str, Any]:
        """Parameters, vocabulary, context, device, number format."""
        facts = msgspec.structs.asdict(self._client.info)
        return {"engine": "builtin", **{k: v for k, v in facts.items() if k not in ("model", "model_version")}}

    async def stats(self) -> EngineStats | None:
        """What it has done."""
        return await self._client.stats()

    async def wait_dead(self) -> str:
        """Return when the process is gone, with the end of its log."""
        return (await self._client.wait_dead()).message

    async def swap(self, source: Source) -> None:
        """Take other weights in place; raises what `EngineClient.load_weights` raises."""
        await self._client.load_weights(source.path, version=source.version)

    async def close(self) -> None:
        """End the process."""
        await self._client.close()
