"""The store: rollouts, attempts, spans, resources and workers, embedded or over HTTP.

Names load on first use: a runner that talks HTTP imports no database.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentlightning.store.base import (
        UNSET,
        AttemptUpdate,
        LightningStore,
        LightningStoreCapabilities,
        LightningStoreStatistics,
        Unset,
        is_finished,
        is_queuing,
        is_running,
    )
    from agentlightning.store.client import LightningStoreClient
    from agentlightning.store.memory import InMemoryLightningStore
    from agentlightning.store.routes import create_store_app, store_routes
    from agentlightning.store.server import LightningStoreServer
    from agentlightning.store.sql import SqlLightningStore
    from agentlightning.store.threaded import LightningStoreThreaded

__all__ = [
    "UNSET",
    "AttemptUpdate",
    "InMemoryLightningStore",
    "LightningStore",
    "LightningStoreCapabilities",
    "LightningStoreClient",
    "LightningStoreServer",
    "LightningStoreStatistics",
    "LightningStoreThreaded",
    "SqlLightningStore",
    "Unset",
    "create_store_app",
    "is_finished",
    "is_queuing",
    "is_running",
    "store_routes",
]

_MODULES = {
    "InMemoryLightningStore": "memory",
    "SqlLightningStore": "sql",
    "LightningStoreClient": "client",
    "LightningStoreServer": "server",
    "LightningStoreThreaded": "threaded",
    "create_store_app": "routes",
    "store_routes": "routes",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_MODULES.get(name, 'base')}")
    value = getattr(module, name)
    globals()[name] = value
    return value
