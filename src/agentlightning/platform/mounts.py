"""What stands behind the platform's door besides its own API: the store, the gateway and the model service.

Their routes are taken as they are and answer in their own shapes (OpenAI's, Anthropic's, the store's); who may call
them stands in `auth/permissions.MOUNTS`. Knows no users.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.routing import BaseRoute, Route

from agentlightning.config import ModelSpec
from agentlightning.gateway import KeyRing
from agentlightning.kit.asyncs import cancelled
from agentlightning.kit.errors import AgentLightningError
from agentlightning.modelservice.composition import Composition, composed
from agentlightning.modelservice.fronts import Fronts
from agentlightning.modelservice.routes import service_routes
from agentlightning.platform.context import current
from agentlightning.platform.masking import policy_of, without_logs
from agentlightning.platform.settings import PlatformSettings
from agentlightning.store.routes import store_routes

EMBEDDED = "nano"
"""The model that is there without anything configured."""

TRAINED = "agent-"
"""How the names of models begin that were trained for one agent; they are nobody else's default."""

_OWN = frozenset({"/health", "/metrics", "/openapi.json", "/docs"})
_WITHOUT_TOKEN = ""  # the door has asked already; `None` would take one from the environment


@dataclass(frozen=True, kw_only=True)
class ModelSetup:
    """The models of a platform: loaded here, or behind servers."""

    specs: tuple[ModelSpec, ...] = ()
    fronts: Fronts = field(default_factory=Fronts)
    serve_registered: bool = False
    gateway: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """More options of the gateway, e.g. `cache`."""

    @property
    def is_configured(self) -> bool:
        """Whether there is anything but the embedded model."""
        return bool(self.specs) or self.fronts.any or self.serve_registered


class CallerRing(KeyRing):
    """Says who calls, where the door has identified everybody: caps and records of the gateway go by user."""

    def copy(self) -> KeyRing:
        return CallerRing()

    def make(self, name: str = "") -> str:
        return "unused"

    def name_of(self, headers: Iterable[tuple[bytes, bytes]]) -> str:
        identity = current().identity
        return "system" if identity is None else identity.username


@contextlib.asynccontextmanager
async def mounted(settings: PlatformSettings, setup: ModelSetup) -> AsyncGenerator[Composition]:
    """Store, gateway and models, started; models that are not lazy load in the background.

    Raises:
        StorageError: The store cannot be opened.
        ConfigError: A model or a route is unusable.
    """
    gateway: dict[str, Any] = {"masking": without_logs(policy_of(settings)), **setup.gateway}
    _make_private(settings.store_location)
    async with contextlib.AsyncExitStack() as stack:
        parts = await stack.enter_async_context(
            composed(
                settings.store_location,
                [*setup.specs, *_embedded(setup)],
                setup.fronts,
                home=settings.home,
                models_path=settings.home / "models",
                serve_registered=setup.serve_registered,
                serve_promoted=TRAINED,
                keys=CallerRing(),
                max_body_bytes=settings.max_model_body_bytes,
                **gateway,
            )
        )
        parts.service.start()
        await parts.gateway.start(listen=False)
        stack.push_async_callback(parts.gateway.stop)
        loading = asyncio.create_task(_load(parts))
        stack.push_async_callback(_cancelled, loading)
        yield parts


def mounted_routes(parts: Composition) -> list[BaseRoute]:
    """All routes, the model service's before the gateway's: some paths are in both."""
    candidates = [
        *service_routes(parts.service, gateway=parts.facts),
        *parts.gateway.app.routes,
        *store_routes(parts.store, token=_WITHOUT_TOKEN),
    ]
    # Without methods: the gateway's answers for paths that do not exist, which are the router's business here.
    return [route for route in candidates if isinstance(route, Route) and route.methods and route.path not in _OWN]


def _make_private(store: str) -> None:
    """A new file of the store is its owner's alone, as the platform's is: what agents were told stands in it."""
    path = Path(store)
    if "://" not in store and not path.exists() and path.parent.is_dir():
        path.touch(mode=0o600)  # SQLite gives its side files the same mode


def _embedded(setup: ModelSetup) -> list[ModelSpec]:
    taken = {name for spec in setup.specs for name in (spec.name, *spec.aliases)}
    can_run = all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers"))
    return (
        [ModelSpec(name=EMBEDDED, lazy=True, idle_unload_s=900.0, device="cpu")]
        if can_run and EMBEDDED not in taken
        else []
    )


async def _load(parts: Composition) -> None:
    async def load(served: Any) -> None:
        with contextlib.suppress(AgentLightningError):  # it is in the model's state, which /models tells
            await served.load()

    await asyncio.gather(*(load(served) for served in parts.service.models if not served.spec.loads_by_itself))


async def _cancelled(task: asyncio.Task[None]) -> None:
    await cancelled(task)
