"""A model service on a real port, with a registry on disk and official clients."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import openai

from agentlightning.config import ModelSpec
from agentlightning.gateway import Gateway, KeyRing, RoutingTable
from agentlightning.modelservice import ModelService, ServedModel
from agentlightning.modelservice.routes import service_routes
from agentlightning.registry import ModelRegistry
from agentlightning.store import InMemoryLightningStore

VLLM = [sys.executable, str(Path(__file__).with_name("scripted_vllm.py"))]
USER: Any = [{"role": "user", "content": "hello"}]


class Rig:
    """What a test needs at hand."""

    def __init__(self, service: ModelService, gateway: Gateway, store: InMemoryLightningStore) -> None:
        self.service, self.gateway, self.store = service, gateway, store
        self.registry = service.registry

    def client(self, prefix: str = "", **options: Any) -> Any:
        return openai.AsyncOpenAI(
            base_url=f"{self.gateway.url}{prefix}/v1", api_key="any", **{"max_retries": 0, **options}
        )

    def http(self, **options: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.gateway.url, timeout=60, **options)

    async def ask(self, model: str, text: str = "hello", **arguments: Any) -> str:
        async with self.client() as client:
            answer = await client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": text}], **arguments
            )
        return str(answer.choices[0].message.content)

    def spec(self, name: str, source: Path | str = "", **options: Any) -> ModelSpec:
        return ModelSpec(name=name, source=str(source), **{"engine": "vllm", **options})

    async def serve(self, name: str, source: Path | str = "", **options: Any) -> ServedModel:
        """Serve with the scripted vLLM and load."""
        served = self.service.add(self.spec(name, source, **options))
        await served.load()
        return served


@asynccontextmanager
async def running_service(
    folder: Path, *, token: str | None = None, keys: dict[str, str] | None = None, **options: Any
) -> AsyncGenerator[Rig]:
    store, routes = InMemoryLightningStore(), RoutingTable(may_be_empty=True)
    service = ModelService(
        ModelRegistry(folder / "models"), routes=routes, log_folder=folder / "logs", vllm_command=VLLM, **options
    )
    ring = KeyRing.of(keys)
    gateway = Gateway(store, upstreams=routes, shutdown_grace_s=1, keys=ring)

    def told() -> dict[str, Any]:
        return {"stats": gateway.stats(), "targets": [msgspec.structs.asdict(state) for state in routes.states()]}

    gateway.app.router.routes[:0] = service_routes(service, gateway=told, token=token, keys=ring)
    try:
        async with gateway, service:
            yield Rig(service, gateway, store)
    finally:
        await store.close()


def weights(folder: Path, text: str) -> Path:
    """A directory the scripted vLLM serves: it answers with `text`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "weights.txt").write_text(text)
    return folder


def register(registry: ModelRegistry, name: str, count: int) -> None:
    """Versions v1 … that answer with their own name."""
    first = len(registry.versions(name)) + 1
    for number in range(first, first + count):
        source = weights(registry.root.parent / "made" / name, f"{name}@v{number}")
        registry.register(name, source, base="nano", run_id=f"run-{number}", step=number, metrics={})


async def until(what: Callable[[], Any], timeout_s: float = 100.0) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(timeout_s):
        while not what():  # noqa: ASYNC110 - of foreign objects
            await asyncio.sleep(0.02)
