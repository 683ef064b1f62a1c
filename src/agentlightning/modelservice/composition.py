"""Store, models and gateway of one process, wired together: what `agl serve` serves and the platform mounts.

Knows neither command lines nor who may call.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from starlette.routing import BaseRoute

from agentlightning.config import ModelSpec, Settings
from agentlightning.gateway import Gateway, RoutingTable, spool_folder
from agentlightning.gateway.budgets import Budgets
from agentlightning.modelservice.fronts import Fronts
from agentlightning.modelservice.service import ModelService
from agentlightning.nano.weights import model_path
from agentlightning.registry import ModelRegistry
from agentlightning.store.sql import SqlLightningStore


class Composition:
    """The parts; `composed` makes them and lets go of them.

    Attributes:
        store: The record and the queue.
        routes: Which upstream answers for which model.
        service: The models that are loaded here.
        gateway: Routes calls and records them; not started.
        fronted: A line for each server behind the gateway.
        budgets: Caps of the routes' file, if it has some.
    """

    def __init__(self, store: SqlLightningStore, service: ModelService, routes: RoutingTable, fronts: Fronts) -> None:
        self.store = store
        self.service = service
        self.routes = routes
        self.fronts = fronts
        self.fronted: list[str] = []
        self.budgets: Budgets | None = None
        self.gateway: Gateway

    def facts(self) -> dict[str, Any]:
        """What the gateway tells of itself."""
        targets = [msgspec.structs.asdict(state) for state in self.routes.states()]
        facts = {"stats": self.gateway.stats(), "targets": targets}
        return facts if self.budgets is None else {**facts, "spending": self.budgets.states()}


@contextlib.asynccontextmanager
async def composed(
    location: str,
    specs: Sequence[ModelSpec],
    fronts: Fronts,
    *,
    home: Path,
    models_path: Path | None = None,
    serve_registered: bool = False,
    serve_promoted: str | None = None,
    extra_routes: Callable[[SqlLightningStore], Sequence[BaseRoute]] | None = None,
    **gateway_options: Any,
) -> AsyncGenerator[Composition]:
    """Open the store and put models and gateway over it; none of them is loaded or started.

    Args:
        location: Of the store.
        specs: The models to serve.
        fronts: The servers behind the gateway.
        home: Folder of logs, ledger and spool.
        models_path: Folder of registered models; by default that of the settings.
        serve_registered: Serve every registered model, loaded by its first call.
        serve_promoted: Serve registered models whose names begin with this and that have a version in production.
        extra_routes: Makes routes over the store, served beside the gateway's.
        gateway_options: For `Gateway`.

    Raises:
        StorageError: The store cannot be opened.
        ConfigError: A model, route or option is unusable.
    """
    async with contextlib.AsyncExitStack() as stack:
        store = SqlLightningStore(location)
        stack.push_async_callback(store.close)
        routes = RoutingTable(may_be_empty=True)
        service = ModelService(
            ModelRegistry(models_path or Settings().models_path),
            routes=routes,
            log_folder=home / "logs",
            known={"nano": str(model_path())},
            serve_registered=serve_registered,
            serve_promoted=serve_promoted,
        )
        stack.push_async_callback(service.close)
        parts = Composition(store, service, routes, fronts)
        for spec in specs:
            service.add(spec)
        parts.fronted = fronts.add_to(routes)
        parts.budgets = fronts.add_routes(routes, ledger=home / "gateway-ledger.db")
        if parts.budgets is not None:
            stack.push_async_callback(parts.budgets.aclose)
        parts.gateway = Gateway(
            store,
            upstreams=routes,
            spool=spool_folder(store, home),
            budgets=parts.budgets,
            extra_routes=() if extra_routes is None else extra_routes(store),
            **gateway_options,
        )
        yield parts
