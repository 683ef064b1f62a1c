"""One served model: its state, the engine that answers now, and the changes from one engine to the next.

Calls take a lease on the current engine. An engine that is replaced keeps those it has and is closed after the last; so
no call is dropped, and each is answered by one version from beginning to end. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

from agentlightning.config import ModelSpec
from agentlightning.gateway import CallError
from agentlightning.kit.asyncs import cancelled
from agentlightning.kit.errors import AgentLightningError, UpstreamError
from agentlightning.modelservice.engines import Progress, RunningEngine
from agentlightning.modelservice.source import Source, Sources

_log = logging.getLogger(__name__)

ModelState = Literal["unloaded", "loading", "ready", "failed", "unloading"]
Starter = Callable[[ModelSpec, Source, Path, Progress], Awaitable[RunningEngine]]

_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 0.5, 60.0
_STABLE_S = 60.0
"""After so long without a crash the next one counts as the first."""
_DEATH_NOTICE_S = 0.5
_POLL_S = 0.02


class Deployment:
    """An engine with the version it serves and the calls it has."""

    def __init__(self, engine: RunningEngine, source: Source) -> None:
        self.engine = engine
        self.source = source
        self.calls = 0
        self.started_at = time.time()
        self.is_closing = False
        self._idle = asyncio.Event()
        self._idle.set()

    def enter(self) -> None:
        """A call begins."""
        self.calls += 1
        self._idle.clear()

    def leave(self) -> None:
        """A call has ended."""
        self.calls -= 1
        if self.calls == 0:
            self._idle.set()

    async def wait_idle(self, timeout_s: float) -> None:
        """Return after the last call, at the latest after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            _log.warning("%s still had %d calls after %.0f s", self.source.version, self.calls, timeout_s)


class ServedModel:
    """A model the service answers for. Use it from one event loop.

    Args:
        spec: What to serve, and how.
        sources: Finds the weights.
        start: Starts an engine.
        log_path: Where its engines log.
    """

    def __init__(self, spec: ModelSpec, *, sources: Sources, start: Starter, log_path: Path) -> None:
        self.spec = spec
        self.state: ModelState = "unloaded"
        self.error = ""
        """Why loading, or the last change of version, failed."""
        self.progress: tuple[str, float] | None = None
        """What a load is busy with, and the share that is done."""
        self.calls = self.failed_calls = self.restarts = self.swaps = 0
        self.last_used_at: float | None = None
        self._sources = sources
        self._start_engine = start
        self._log_path = log_path
        self._current: Deployment | None = None
        self._alive: set[Deployment] = set()
        """All whose engines are not closed yet: the current one, and those that are finishing their calls."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._loading: asyncio.Task[None] | None = None
        self._load_error: AgentLightningError | None = None
        self._restarting: asyncio.Task[None] | None = None
        self._retry_at = 0.0
        self._crashes = 0
        self._changing = asyncio.Lock()
        self._open = asyncio.Event()
        """Cleared while calls have to wait: no engine, or one that is changing its weights."""

    # -- what is told ----------------------------------------

    @property
    def version(self) -> str | None:
        """What new calls are answered by."""
        return None if self._current is None else self._current.source.version

    @property
    def source(self) -> Source | None:
        """Where the weights that answer new calls came from."""
        return None if self._current is None else self._current.source

    @property
    def engine(self) -> RunningEngine | None:
        """The engine of new calls."""
        return None if self._current is None else self._current.engine

    @property
    def in_flight(self) -> int:
        """Calls under way, at engines that are being replaced too."""
        return sum(deployment.calls for deployment in self._alive)

    @property
    def quiet_since(self) -> float:
        """When the last call ended, or the engine was loaded; Unix seconds."""
        loaded_at = 0.0 if self._current is None else self._current.started_at
        return max(self.last_used_at or 0.0, loaded_at)

    @property
    def retry_after_s(self) -> float:
        """When a failed model is started again; 0 when it is not."""
        return max(0.0, self._retry_at - time.monotonic()) if self._restarting is not None else 0.0

    def describe(self) -> dict[str, Any]:
        """JSON-able facts."""
        current = self._current
        return {
            "state": self.state,
            "version": self.version,
            "source": self.spec.origin,
            "aliases": self.spec.aliases,
            "error": self.error or None,
            "progress": None if self.progress is None else {"stage": self.progress[0], "fraction": self.progress[1]},
            "in_flight": self.in_flight,
            "calls": self.calls,
            "failed_calls": self.failed_calls,
            "restarts": self.restarts,
            "swaps": self.swaps,
            "retry_after_s": round(self.retry_after_s, 1) or None,
            "last_used_at": self.last_used_at,
            "loaded_at": None if current is None else current.started_at,
            "pid": None if current is None else current.engine.pid,
            "retiring": [{"version": d.source.version, "in_flight": d.calls} for d in self._alive if d is not current],
            "model": None if current is None else current.engine.facts(),
        }

    # -- calls ----------------------------------------

    @asynccontextmanager
    async def lease(self) -> AsyncGenerator[Deployment]:
        """The engine for one call; it stays until the block ends, whatever is loaded meanwhile.

        Raises:
            CallError: 503, with when to try again: the model is not loaded, failed, or was too slow to load.
        """
        deployment = await self._wait_open()
        deployment.enter()
        self.calls += 1
        try:
            yield deployment
        except (UpstreamError, CallError) as error:
            self.failed_calls += 1
            if not await self._is_gone(deployment, error):
                raise
            reason = "its time to finish was over" if deployment.is_closing else "it is being started again"
            raise CallError(
                f"The engine of {self.spec.name!r} ended while it was answering; {reason}.",
                status=503,
                reason="model_unloaded" if deployment.is_closing else "model_restarting",
                retry_after_s=max(1.0, self.retry_after_s),
            ) from error
        finally:
            deployment.leave()
            self.last_used_at = time.time()

    async def _is_gone(self, deployment: Deployment, error: AgentLightningError) -> bool:
        engine = deployment.engine
        if not engine.is_dead and not engine.is_exact and error.status in (502, 503):
            # A broken connection is seen before the end of the process behind it.
            with contextlib.suppress(TimeoutError):  # then it lives, and the call failed for another reason
                await asyncio.wait_for(engine.wait_dead(), _DEATH_NOTICE_S)
        return engine.is_dead or deployment.is_closing

    async def _wait_open(self) -> Deployment:
        deadline = time.monotonic() + self.spec.wait_timeout_s
        while self._current is None or self._current.engine.is_dead or not self._open.is_set():
            if self.state == "unloaded" and self.spec.loads_by_itself:
                self._begin_load()
            if self.state in ("failed", "unloaded") or (self.state == "unloading" and not self.spec.loads_by_itself):
                raise self._unavailable()
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise CallError(
                    f"The model {self.spec.name!r} is {self.state}; it was not ready within "
                    f"{self.spec.wait_timeout_s:g} s.",
                    status=503,
                    reason="model_loading",
                    retry_after_s=5.0,
                )
            if self._loading is not None:
                await asyncio.wait({self._loading}, timeout=left_s)
            else:  # a change of weights, an unload, or an engine whose death is about to be noticed
                await asyncio.sleep(min(left_s, _POLL_S))
        return self._current

    def _unavailable(self) -> CallError:
        name = self.spec.name
        if self.state == "failed":
            return CallError(
                f"The model {name!r} is not available: {self.error}",
                status=503,
                reason="model_failed",
                retry_after_s=max(1.0, self.retry_after_s) if self._restarting is not None else None,
                is_retryable=self._restarting is not None,
            )
        return CallError(
            f"The model {name!r} is not loaded. Load it: POST /models/{name}/load or agl models load {name}.",
            status=503,
            reason="model_not_loaded",
            is_retryable=False,
        )

    # -- changes ----------------------------------------

    def start_loading(self) -> None:
        """Load it in the background, unless it is loaded."""
        self._stop_restarting()
        if self._current is None:
            self._begin_load()

    async def load(self) -> None:
        """Load it, unless it is loaded; leaving early does not stop the load.

        Raises:
            AgentLightningError: It cannot be loaded; the state is `failed` then.
        """
        self.start_loading()
        if self._loading is not None:
            await asyncio.wait({self._loading})
            if self._current is None and self._load_error is not None:
                raise self._load_error

    async def unload(self) -> None:
        """Stop a load, or finish the calls under way and end the engine; harmless when it is not loaded."""
        self._stop_restarting()
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.wait({self._loading})
        async with self._changing:
            current, self._current = self._current, None
            self._open.clear()
            if current is not None:
                self.state = "unloading"
                await self._retire(current)
            self.state, self.error, self.progress = "unloaded", "", None

    async def follow(self) -> bool:
        """Serve what the source stands for now; calls go on meanwhile. `False` when that is what is served already.

        Raises:
            AgentLightningError: The new version cannot be loaded; the old one goes on, and `error` says why.
        """
        async with self._changing:
            current = self._current
            if current is None:
                return False
            try:
                source = self._sources.find(self.spec.origin, self.spec.adapter)
                if source == current.source:
                    return False
                if self.spec.swap == "in_place":
                    await self._swap_in_place(current, source)
                else:
                    await self._swap_beside(current, source)
            except AgentLightningError as error:
                self.error = f"The change to another version failed: {error.message}"
                raise
            finally:
                self.progress = None
            self.swaps += 1
            self.error = ""
            return True

    async def close(self) -> None:
        """End everything, calls included."""
        self._stop_restarting()
        tasks, self._tasks = self._tasks, set()
        await cancelled(*tasks)
        self._current = None
        for deployment in tuple(self._alive):
            await self._end(deployment)
        self.state = "unloaded"

    async def _swap_beside(self, current: Deployment, source: Source) -> None:
        fresh = Deployment(await self._engine_for(source), source)
        if self._current is not current:  # it died meanwhile
            _log.warning("%s: the engine died during a change of version", self.spec.name)
        self._serve(fresh)
        self._spawn(self._retire(current))

    async def _swap_in_place(self, current: Deployment, source: Source) -> None:
        if not current.engine.is_exact:
            # Its requests do not queue behind the change by themselves.
            self._open.clear()
        try:
            await self._drain(current)
            await current.engine.swap(source)
            current.source = source
        finally:
            if self._current is current:
                self._open.set()

    async def _drain(self, deployment: Deployment) -> None:
        deadline = time.monotonic() + self.spec.drain_timeout_s
        while deployment.calls and not deployment.engine.is_exact:
            if time.monotonic() > deadline:
                raise UpstreamError(f"Calls were still under way after {self.spec.drain_timeout_s:g} s.")
            await asyncio.sleep(_POLL_S)

    def _begin_load(self) -> None:
        if self._loading is None:
            self.state, self.error = "loading", ""
            self._loading = self._spawn(self._load())

    async def _load(self) -> None:
        self._load_error = None
        try:
            async with self._changing:
                if self._current is None:
                    self.state = "loading"
                    source = self._sources.find(self.spec.origin, self.spec.adapter)
                    self._serve(Deployment(await self._engine_for(source), source))
        except AgentLightningError as error:
            _log.warning("%s cannot be loaded: %s", self.spec.name, error)
            self.state, self.error, self._load_error = "failed", str(error), error
        except asyncio.CancelledError:
            self.state = "unloaded"
            raise
        finally:
            self.progress, self._loading = None, None

    async def _engine_for(self, source: Source) -> RunningEngine:
        def note(stage: str, fraction: float) -> None:
            self.progress = (stage, fraction)

        note("process", 0.0)
        return await self._start_engine(self.spec, source, self._log_path, note)

    def _serve(self, deployment: Deployment) -> None:
        self._current = deployment
        self._alive.add(deployment)
        self.state, self.error = "ready", ""
        self._open.set()
        self._spawn(self._watch(deployment))

    async def _retire(self, deployment: Deployment) -> None:
        await deployment.wait_idle(self.spec.drain_timeout_s)
        await self._end(deployment)

    async def _end(self, deployment: Deployment) -> None:
        deployment.is_closing = True
        await deployment.engine.close()
        self._alive.discard(deployment)

    # -- crashes ----------------------------------------

    async def _watch(self, deployment: Deployment) -> None:
        reason = await deployment.engine.wait_dead()
        if deployment.is_closing or deployment is not self._current:
            return
        _log.error("%s: %s", self.spec.name, reason)
        self._current = None
        self._open.clear()
        self.state, self.error = "failed", reason
        self._crashes = 1 if time.time() - deployment.started_at > _STABLE_S else self._crashes + 1
        self._restarting = self._spawn(self._restart())
        await deployment.engine.close()
        self._alive.discard(deployment)

    async def _restart(self) -> None:
        try:
            while self._current is None:
                delay_s = min(_LONGEST_BACKOFF_S, _FIRST_BACKOFF_S * 2 ** (self._crashes - 1))
                self._retry_at = time.monotonic() + delay_s
                await asyncio.sleep(delay_s)
                self._begin_load()
                assert self._loading is not None
                await asyncio.wait({self._loading})
                if self._load_error is None:
                    self.restarts += 1
                elif isinstance(self._load_error, UpstreamError):
                    self._crashes += 1
                else:
                    return  # trying again would fail in the same way
        finally:
            if self._restarting is asyncio.current_task():
                self._restarting = None

    def _stop_restarting(self) -> None:
        if self._restarting is not None:
            self._restarting.cancel()
            self._restarting = None

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
