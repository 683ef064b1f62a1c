"""Runners as actors of an existing Ray cluster: placed, watched, replaced when they or their node die, taken down.

Knows nothing of the algorithm. The agent travels by value with the modules beside it, so nodes need the package
but not the agent's files. Actors belong to this driver: when it dies, Ray ends them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from agentlightning import __version__
from agentlightning.agent.hook import Hook
from agentlightning.kit.errors import AgentLightningError, ConfigError
from agentlightning.kit.ids import new_id
from agentlightning.runner.failure import RunnerCrashedError
from agentlightning.runner.place import STOP_MARGIN_S, KilledAtStartError, Place, RunnerStartError, Terms
from agentlightning.runner.policy import FailurePolicy
from agentlightning.runner.process import model_variables
from agentlightning.runner.ray_actor import RunnerActor
from agentlightning.runner.ray_cluster import first_line, import_ray, join_cluster
from agentlightning.runner.transport import Parcel, pack_by_value
from agentlightning.runner.worker import WorkerSpec
from agentlightning.store import access
from agentlightning.store.base import LightningStore

logger = logging.getLogger(__name__)


class RayPool:
    """Runs an agent in actors.

    Args:
        agent: Anything `as_agent` understands.
        store_url: Address of the store, as the nodes reach it.
        n_runners: Actors, spread over the nodes.
        max_concurrency: Rollouts at once in each.
        address: Of the cluster, `host:port`; by default `RAY_ADDRESS`, else the one of this machine.
        num_cpus: Processors set aside for each actor.
        working_dir: Folder that Ray copies to the nodes.
        namespace: Of the actors.
        evaluator: See `LitAgentRunner`.
        policy: See `FailurePolicy`.
        gateway_url: Base URL of the gateway; agents get it as `OPENAI_BASE_URL` and the like.
        gateway_key: API key for it, if it asks for one; agents get it as `OPENAI_API_KEY` and the like.
        model: Name of the model; agents get it as `OPENAI_MODEL`.
        env: More environment variables; they have the last word.
        max_rollouts: End after so many, each.
        hooks: Callbacks around rollouts.
        store: The store itself where it is at hand, to settle what a dead actor leaves; else reached by its address.
        max_restarts: How often one actor may die within five minutes before it is given up.
        start_timeout_s: How long placing the actors and importing the agent may take.
        drain_timeout_s: How long running rollouts may finish when the pool is stopped.
        heartbeat_interval: Seconds between signs of life.
        store_token: The store's token; by default `AGL_STORE_TOKEN`.
        store_patience_s: How long an unreachable store is waited for.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: A number that makes no sense.
    """

    def __init__(
        self,
        agent: Any,
        *,
        store_url: str,
        n_runners: int = 1,
        max_concurrency: int = 64,
        address: str | None = None,
        num_cpus: float = 1.0,
        working_dir: Path | None = None,
        namespace: str = "agentlightning",
        evaluator: Callable[..., Any] | str | None = None,
        policy: FailurePolicy | None = None,
        gateway_url: str | None = None,
        gateway_key: str | None = None,
        model: str | None = None,
        env: Mapping[str, str] | None = None,
        max_rollouts: int | None = None,
        hooks: Sequence[Hook] = (),
        store: LightningStore | None = None,
        max_restarts: int = 5,
        start_timeout_s: float = 120.0,
        drain_timeout_s: float = 5.0,
        heartbeat_interval: float = 10.0,
        store_token: str | None = None,
        store_patience_s: float | None = None,
    ) -> None:
        self.ray = import_ray()
        if n_runners < 1:
            raise ConfigError(f"n_runners must be at least 1, it is {n_runners}.")
        if num_cpus < 0:
            raise ConfigError(f"num_cpus must not be negative, it is {num_cpus}.")
        self.store_url = store_url
        self.policy = policy or FailurePolicy()
        self.max_restarts = max_restarts
        self.start_timeout_s = start_timeout_s
        self.drain_timeout_s = drain_timeout_s
        self.num_cpus = num_cpus
        self._address = address or os.environ.get("RAY_ADDRESS") or "auto"
        self._working_dir = working_dir
        self._namespace = namespace
        self._n_runners = n_runners
        self._parcels = (agent, evaluator, list(hooks))
        self.options: dict[str, Any] = {
            "max_concurrency": max_concurrency,
            "policy": self.policy,
            "gateway_url": gateway_url,
            "max_rollouts": max_rollouts,
            "store_patience_s": store_patience_s,
            "drain_timeout_s": drain_timeout_s,
            "heartbeat_interval": heartbeat_interval,
        }
        self._token = access.store_token(store_token)
        token = {access.TOKEN_VARIABLE: self._token} if self._token is not None else {}
        self.env = {**model_variables(store_url, gateway_url, gateway_key, model), **token, **(env or {})}
        self._given_store = store
        self._store: LightningStore | None = store
        self._places: list[_ActorPlace] = []
        self._has_joined = False
        self.failure: AgentLightningError | None = None
        """Set when no runner is left to do the work."""

    @property
    def restarts(self) -> int:
        """Actors that died and were replaced."""
        return sum(place.restarts for place in self._places)

    def hosts(self) -> list[tuple[str, int]]:
        """Host and process id of each actor."""
        return [place.where for place in self._places if place.where is not None]

    async def start(self) -> None:
        """Join the cluster and place the actors; returns when all are ready.

        Raises:
            ConfigError: No cluster answers at the address.
            RunnerStartError: One could not begin; the message has the cause.
            AgentLoadError: The agent cannot be sent.
        """
        agent, evaluator, hooks = self._parcels
        packed = [pack_by_value(part) if part else None for part in (agent, evaluator, hooks)]
        if not self.ray.is_initialized():  # else the program has joined a cluster itself
            await join_cluster(self.ray, self._address, self._namespace, self._working_dir)
            self._has_joined = True
        terms = Terms(
            policy=self.policy,
            store=self._settling_store,
            gave_up=self._gave_up,
            max_restarts=self.max_restarts,
            start_timeout_s=self.start_timeout_s,
            drain_timeout_s=self.drain_timeout_s,
        )
        self._places = [_ActorPlace(index, terms, self, packed) for index in range(self._n_runners)]
        try:
            async with asyncio.timeout(self.start_timeout_s):
                await asyncio.gather(*(place.start() for place in self._places))
        except TimeoutError:
            room = self.ray.available_resources().get("CPU", 0.0)
            await self.stop()
            raise RunnerStartError(
                f"The Ray runners were not ready after {self.start_timeout_s:.0f} s: {self._n_runners} with "
                f"{self.num_cpus:g} processors each were asked for, {room:g} are free.",
                hint="Ask for fewer runners or processors, or add nodes to the cluster.",
            ) from None
        except BaseException:
            await self.stop()
            raise
        for place in self._places:
            place.watch()

    async def stop(self) -> None:
        """Let running rollouts finish for `drain_timeout_s`, then end the actors and leave the cluster."""
        await asyncio.gather(*(place.stop() for place in self._places))
        if self._store is not None and self._given_store is None:
            await self._store.close()
            self._store = None
        if self._has_joined:
            self._has_joined = False
            await asyncio.to_thread(self.ray.shutdown)

    async def wait(self) -> None:
        """Wait until all actors have ended by themselves, as they do after `max_rollouts`.

        Raises:
            AgentLightningError: They were given up.
        """
        await asyncio.gather(*(place.ended() for place in self._places))
        if self.failure is not None:
            raise self.failure

    def spec(self, index: int, name: str, packed: Sequence[Parcel | None], options: dict[str, Any]) -> WorkerSpec:
        """What an actor is told."""
        agent, evaluator, hooks = packed
        assert agent is not None
        return WorkerSpec(
            index=index,
            name=name,
            store_url=self.store_url,
            sys_path=[str(Path.cwd()) if entry == "" else entry for entry in sys.path],
            agent=agent,
            evaluator=evaluator,
            hooks=hooks,
            options=options,
        )

    def _settling_store(self) -> LightningStore:
        if self._store is None:
            from agentlightning.store import LightningStoreClient

            self._store = LightningStoreClient(self.store_url, token=self._token)
        return self._store

    def _gave_up(self, error: AgentLightningError) -> None:
        logger.error("%s", error)
        if all(place.is_over for place in self._places):
            self.failure = error


class _ActorPlace(Place):
    """A place for an actor."""

    def __init__(self, index: int, terms: Terms, pool: RayPool, packed: Sequence[Parcel | None]) -> None:
        super().__init__(index, terms)
        self._pool = pool
        self._packed = packed
        self._actor: Any = None
        self._work: asyncio.Future[Any] | None = None
        self.where: tuple[str, int] | None = None

    async def start(self) -> None:
        try:
            await super().start()
        except KilledAtStartError as killed:  # on a node, say, that is gone, which the cluster had not noticed yet
            logger.warning("%s It is started again.", killed)
            await super().start()

    async def _launch(self) -> None:
        pool = self._pool
        self.name = new_id(f"ray-runner-{self.index}")
        make = pool.ray.remote(RunnerActor).options(
            num_cpus=pool.num_cpus, scheduling_strategy="SPREAD", name=self.name, max_restarts=0, max_concurrency=16
        )
        spec = pickle.dumps(pool.spec(self.index, self.name, self._packed, self._carefully(pool.options)))
        self._actor = make.remote(spec, pool.env, __version__)
        try:
            ready = await self._actor.prepare.remote()
        except pool.ray.exceptions.RayError as error:
            was_killed = isinstance(error, pool.ray.exceptions.RayActorError) and not error.actor_init_failed
            raise (KilledAtStartError if was_killed else RunnerStartError)(
                f"A Ray runner could not start: {first_line(error)}",
                hint="The package, in the same version, and what the agent needs have to be installed on every node.",
            ) from error
        if "error" in ready:
            raise self._start_error(ready["error"])
        self.where = (ready["host"], ready["pid"])
        self._work = asyncio.ensure_future(_result(self._actor.run.remote()))

    def _start_error(self, error: dict[str, Any]) -> RunnerStartError:
        hint = error["hint"]
        if error["code"] == "STORAGE_FAILED" and access.is_loopback(_host_of(self._pool.store_url)):
            hint = (
                "The store listens on this machine only. Let the nodes reach it: set AGL_HOST to this machine's "
                "address and AGL_STORE_TOKEN to a secret."
            )
        return RunnerStartError(
            f"A Ray runner could not start: {error['message']}",
            hint=hint,
            details={"type": error["type"], "traceback": error["traceback"]},
        )

    async def _end(self) -> RunnerCrashedError | Literal["finished", "next"]:
        assert self._work is not None
        try:
            result = await asyncio.shield(self._work)
        except self._pool.ray.exceptions.RayError as error:
            self._kill()  # it may be out of reach only, and must not go on beside its successor
            return RunnerCrashedError(f"A Ray runner on {self.where} died: {first_line(error)}")
        if "error" in result:
            return RunnerCrashedError(f"A runner gave up: {result['error']['message']}", hint=result["error"]["hint"])
        return "next" if self._cleared() else "finished"

    async def _rescue(self, store: LightningStore) -> None:
        """Its spool is on its node: the next runner there delivers it."""

    async def _end_runner(self) -> None:
        if self._actor is not None and self._work is not None and not self._work.done():
            self._actor.stop.remote()
            await asyncio.wait({self._work}, timeout=self._pool.drain_timeout_s + STOP_MARGIN_S)
        self._kill()
        if self._work is not None:
            await asyncio.gather(self._work, return_exceptions=True)

    def _kill(self) -> None:
        if self._actor is not None:
            self._pool.ray.kill(self._actor)
            self._actor = None


async def _result(reference: Any) -> Any:
    return await reference


def _host_of(url: str) -> str:
    return urlsplit(url).hostname or ""
