"""The models of one service: added, loaded, following the registry, unloaded when idle. Knows nothing of HTTP."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from agentlightning.config import ModelSpec
from agentlightning.gateway import BreakerPolicy, Route, RoutingTable, Target, TargetSettings
from agentlightning.kit.asyncs import cancelled
from agentlightning.kit.errors import AgentLightningError, ConflictError, NotFoundError
from agentlightning.modelservice.builtin import BuiltinEngine
from agentlightning.modelservice.engines import Progress, RunningEngine, choose_engine
from agentlightning.modelservice.served import ServedModel
from agentlightning.modelservice.source import Source, Sources
from agentlightning.modelservice.upstream import ServedUpstream
from agentlightning.modelservice.vllm import VllmEngine
from agentlightning.registry import ModelRegistry

_log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.5
_NEW_NAMES_EVERY = 10
_STATS_TIMEOUT_S = 2.0
_IDLE_S = 900.0
"""After so long without a call models that nobody has asked to be served are unloaded."""


class ModelService:
    """Serves models through a routing table. Use it from one event loop; `close` ends all engines.

    Args:
        registry: Registered versions; promotions there are followed.
        routes: Where the models are added, for the gateway.
        log_folder: Where engines log, a file for each model.
        known: Paths by name, e.g. `{"nano": …}`.
        serve_registered: Add every registered name and version, each loaded by its first call.
        serve_promoted: Add registered names that begin with this and have a version in production, in the same way.
        vllm_command: How vLLM is started, e.g. `["vllm"]`; by default it is looked for.
    """

    def __init__(
        self,
        registry: ModelRegistry,
        *,
        routes: RoutingTable,
        log_folder: Path,
        known: Mapping[str, str] | None = None,
        serve_registered: bool = False,
        serve_promoted: str | None = None,
        vllm_command: list[str] | None = None,
    ) -> None:
        self.registry = registry
        self.started_at = time.time()
        self._routes = routes
        self._sources = Sources(registry, known)
        self._log_folder = log_folder
        self._serve_registered = serve_registered
        self._serve_promoted = serve_promoted
        self._vllm_command = vllm_command
        self._models: dict[str, ServedModel] = {}
        self._marks: dict[str, Any] = {}
        self._looking: asyncio.Task[None] | None = None
        self._following: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> ModelService:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def start(self) -> None:
        """Begin to look after the models: promotions, idle ones."""
        if self._looking is None:
            self.add_registered()
            self._looking = asyncio.create_task(self._look_after())

    async def close(self) -> None:
        """End all engines; calls under way are cut."""
        tasks = [*self._following, *([self._looking] if self._looking else [])]
        self._looking = None
        await cancelled(*tasks)
        await asyncio.gather(*(model.close() for model in self._models.values()))

    # -- models ----------------------------------------

    @property
    def models(self) -> list[ServedModel]:
        """All models, in the order they were added."""
        return list(self._models.values())

    def get(self, name: str) -> ServedModel:
        """A model by its name or an alias.

        Raises:
            NotFoundError: There is none; the hint lists those there are.
        """
        found = self._models.get(name) or next((m for m in self.models if name in m.spec.aliases), None)
        if found is None:
            raise NotFoundError(f"No model {name!r} is served.", hint=f"Served: {', '.join(self._models) or 'none'}.")
        return found

    def add(self, spec: ModelSpec) -> ServedModel:
        """Serve a model; it is loaded by `load`, or by its first call if it is lazy.

        Raises:
            ConflictError: A model has that name or one of the aliases.
            ConfigError: The engine asked for cannot run here.
        """
        taken = {name for model in self.models for name in (model.spec.name, *model.spec.aliases)}
        clash = [name for name in (spec.name, *spec.aliases) if name in taken]
        if clash:
            raise ConflictError(
                f"{', '.join(clash)} is served already.", hint="Remove it first, or choose another name."
            )
        choose_engine(spec, self._vllm_command)
        log_path = self._log_folder / f"{spec.name.replace('/', '--')}.log"
        served = ServedModel(spec, sources=self._sources, start=self._start, log_path=log_path)
        self._models[spec.name] = served
        # Without a breaker: the model itself knows best whether it can answer, and says 503 when it cannot.
        settings = TargetSettings(breaker=BreakerPolicy(min_calls=0))
        route = Route(spec.name, [(Target(spec.name, ServedUpstream(served), settings), 1.0)])
        self._routes.add_route(route, aliases=spec.aliases)
        return served

    async def remove(self, name: str) -> None:
        """Serve a model no more; calls under way are finished.

        Raises:
            NotFoundError: There is none.
        """
        served = self.get(name)
        self._routes.remove(served.spec.name)
        await served.unload()
        self._models.pop(served.spec.name, None)
        await served.close()

    def source_of(self, name: str) -> Source:
        """What a model answers from; while it is not loaded, what it would be loaded from.

        Raises:
            NotFoundError: There is no such model, or not the version that it stands for.
            StorageError: The registry cannot be read.
        """
        served = self.get(name)
        return served.source or self._sources.find(served.spec.origin, served.spec.adapter)

    def find_source(self, origin: str) -> Source:
        """What a name, version or path stands for now.

        Raises:
            NotFoundError: The name is registered, but not the version.
            StorageError: The registry cannot be read.
        """
        return self._sources.find(origin)

    async def describe(self, served: ServedModel) -> dict[str, Any]:
        """All facts of a model, JSON-able."""
        facts = {"id": served.spec.name, **served.describe(), "memory_mb": _memory_mb(served.engine)}
        stats = await self._stats_of(served)
        return {**facts, "engine": stats and msgspec.structs.asdict(stats), "spec": served.spec.model_dump()}

    async def _stats_of(self, served: ServedModel) -> Any:
        if served.engine is None:
            return None
        try:
            async with asyncio.timeout(_STATS_TIMEOUT_S):
                return await served.engine.stats()
        except (TimeoutError, AgentLightningError):  # busy with something long, or just gone
            return None

    # -- looking after them ----------------------------------------

    async def look(self) -> None:
        """Look once: begin what promotions and idle times ask for."""
        for served in self.models:
            self._follow_if_changed(served)
            idle_s = served.spec.idle_unload_s
            is_quiet = served.state == "ready" and not served.in_flight
            if idle_s is not None and is_quiet and time.time() - served.quiet_since > idle_s:
                _log.info("%s has not been called for %.0f s: unloading it", served.spec.name, idle_s)
                self._spawn(served.unload())

    async def _look_after(self) -> None:
        for turn in itertools.count(1):
            await asyncio.sleep(_LOOK_EVERY_S)
            try:
                await self.look()
                if turn % _NEW_NAMES_EVERY == 0:
                    self.add_registered()
            except AgentLightningError as error:  # the registry cannot be read just now
                _log.warning("Looking after the models failed: %s", error)

    def _follow_if_changed(self, served: ServedModel) -> None:
        name = self._sources.followed(served.spec.origin)
        if name is None:
            return
        mark = self.registry.mark(name)
        if self._marks.get(served.spec.name) == mark:
            return
        self._marks[served.spec.name] = mark
        if not self._is_promoted(name):
            return
        if served.state == "failed":
            served.start_loading()
        else:
            self._spawn(self._follow(served))

    async def _follow(self, served: ServedModel) -> None:
        before = served.version
        try:
            if await served.follow():
                _log.info("%s: %s instead of %s", served.spec.name, served.version, before)
        except AgentLightningError as error:
            _log.error("%s stays at %s: %s", served.spec.name, before, error)

    def add_registered(self) -> None:
        """Add what the registry has by now and this service is to serve."""
        if self._serve_registered:
            for name in self.registry.names():
                for ref in (name, *(version.ref for version in self.registry.versions(name))):
                    self._add_lazily(ModelSpec(name=ref, lazy=True))
        if self._serve_promoted is not None:
            for name in self.registry.names():
                if name.startswith(self._serve_promoted) and self._is_promoted(name):
                    self._add_lazily(ModelSpec(name=name, lazy=True, idle_unload_s=_IDLE_S))

    def _add_lazily(self, spec: ModelSpec) -> None:
        if spec.name not in self._models and not any(spec.name in m.spec.aliases for m in self.models):
            self.add(spec)

    def _is_promoted(self, name: str) -> bool:
        return any(version.stage == "production" for version in self.registry.versions(name))

    async def _start(self, spec: ModelSpec, source: Source, log_path: Path, on_progress: Progress) -> RunningEngine:
        if choose_engine(spec, self._vllm_command) == "vllm":
            return await VllmEngine.start(spec, source, log_path, on_progress, command=self._vllm_command)
        return await BuiltinEngine.start(spec, source, log_path, on_progress)

    def _spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._following.add(task)
        task.add_done_callback(self._following.discard)


def _memory_mb(engine: RunningEngine | None) -> float | None:
    """Resident memory of an engine's process; `None` where the system does not tell."""
    if engine is None:
        return None
    try:
        lines = Path(f"/proc/{engine.pid}/status").read_text().splitlines()
    except OSError:
        return None
    resident = next((line.split()[1] for line in lines if line.startswith("VmRSS")), None)
    return None if resident is None else round(int(resident) / 1024, 1)
