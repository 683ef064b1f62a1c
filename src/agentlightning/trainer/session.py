"""A running loop: store, gateway, engine and runners, wired together and taken down again.

Knows nothing of what is learned; an algorithm gets the `RunContext` and does the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from agentlightning.algorithm.base import Dataset, Report, RunContext, no_report
from agentlightning.algorithm.prompt.journal import SNAPSHOTS, Journal
from agentlightning.gateway import Gateway, KeyRing, spool_folder
from agentlightning.gateway.upstream.engine import EngineUpstream
from agentlightning.gateway.upstream.openai import OpenAIUpstream
from agentlightning.kit.errors import AgentLightningError, ConfigError, StorageError
from agentlightning.kit.files import exclusive_lock
from agentlightning.learner.client import EngineClient
from agentlightning.runner import FailurePolicy, LitAgentRunner
from agentlightning.schemas import LLM, NamedResources, ProxyLLM
from agentlightning.store import LightningStore, LightningStoreServer, SqlLightningStore
from agentlightning.store.access import check_exposure, is_loopback, store_token
from agentlightning.store.routes import store_routes
from agentlightning.trainer.placement import Placement, Pool

logger = logging.getLogger(__name__)

# Name under which the embedded engine answers, and of the resource that points to it.
MODEL_NAME = "default"
LLM_RESOURCE = "llm"
_OPENAI = "https://api.openai.com/v1"


@dataclass
class SessionConfig:
    """How a loop is set up."""

    run_id: str
    directory: Path
    store_location: str
    model: str | None = None
    n_runners: int | None = None
    placement: Placement = field(default_factory=Placement)
    max_concurrency: int = 64
    strategy: Literal["cs", "shm"] = "cs"
    """`cs`: runners are processes of their own; `shm`: one runner inside this process."""
    host: str = "127.0.0.1"
    port: int = 0
    seed: int = 0
    evaluator: Callable[..., Any] | str | None = None
    policy: FailurePolicy | None = None
    initial_resources: NamedResources = field(default_factory=dict)  # pyright: ignore[reportUnknownVariableType]
    sampling_parameters: dict[str, Any] = field(default_factory=dict[str, Any])
    device: str = "auto"
    threads: int | None = None
    lora: dict[str, Any] | None = None
    hooks: Sequence[Any] = ()
    tracer: Any = None
    max_rollouts: int | None = None
    tests: Mapping[str, Dataset[Any]] = field(default_factory=dict[str, Dataset[Any]])
    fronts_environment: bool = False
    """Put a gateway before the model server that the agent finds in its environment, when there is no other."""
    report: Report = no_report


class Session:
    """Async context manager around one running loop; without an agent it has no runners.

    Raises:
        BusyError: Another process runs in the same directory.
        PortInUseError: The port asked for is taken.
        ModelError: The model cannot be loaded.
        AgentLightningError: The agent cannot be imported by the runners.
    """

    def __init__(self, agent: Any, config: SessionConfig, *, store: LightningStore | None = None) -> None:
        self.agent = agent
        self.config = config
        self._given_store = store
        self._stack = contextlib.AsyncExitStack()
        self._pool: Pool | None = None
        self._runner_task: asyncio.Task[None] | None = None
        self.stopping = asyncio.Event()
        self.engine: EngineClient | None = None
        self.gateway: Gateway | None = None
        self.url = ""
        self._fronts_environment = False
        self.context: RunContext

    async def __aenter__(self) -> Session:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def _start(self) -> None:
        config = self.config
        config.directory.mkdir(parents=True, exist_ok=True)
        self._stack.enter_context(exclusive_lock(config.directory / ".lock", purpose=f"Run {config.run_id}"))
        self.store = self._given_store or SqlLightningStore(config.store_location)
        if self._given_store is None:
            self._stack.push_async_callback(self.store.close)
        await self._start_engine()
        await self._start_server()
        resources_id = await self._publish_resources()
        await recover_rollouts(self.store, config.run_id)
        self.context = RunContext(
            run_id=config.run_id,
            directory=config.directory,
            store=self.store,
            resources_id=resources_id,
            engine=self.engine,
            sampling=self.gateway.sampling if self.gateway else None,
            report=config.report,
            seed=config.seed,
            tests=config.tests,
            stopping=self.stopping,
            failure=self._failure,
            traffic=self._traffic,
            calls_stored=self._calls_stored,
        )
        await self._start_runners()

    async def _start_engine(self) -> None:
        config = self.config
        if config.model is None:
            return
        self.engine = await EngineClient.start(
            config.model,
            seed=config.seed,
            device=config.device,
            threads=config.threads,
            lora=config.lora,
            log_path=config.directory / "engine.log",
        )
        self._stack.push_async_callback(self.engine.close)

    async def _start_server(self) -> None:
        """Gateway and store on one port; the store alone when there is no model to call."""
        config = self.config
        check_exposure(config.host, store_token())
        upstreams = self._upstreams()
        if not upstreams:
            server = LightningStoreServer(self.store, host=config.host, port=config.port)
            await server.start()
            self._stack.push_async_callback(server.stop)
            self.url = server.endpoint
            return
        self.gateway = Gateway(
            self.store,
            upstreams=upstreams,
            host=config.host,
            port=config.port,
            # The one model under training answers whatever name the agent asks for; a server of the environment
            # gets the name as it is.
            accept_any_model=self.engine is not None or self._fronts_environment,
            extra_routes=store_routes(self.store),
            spool=spool_folder(self.store, config.directory),
            # Where other machines reach it and nobody has set keys, the agents of this run alone have one.
            keys=KeyRing.of(None) or (None if is_loopback(config.host) else KeyRing()),
        )
        await self.gateway.start()
        self._stack.push_async_callback(self.gateway.stop)
        self.url = self.gateway.url

    def _upstreams(self) -> list[Any]:
        if self.engine is not None:
            return [EngineUpstream(self.engine, name=MODEL_NAME)]
        named = [
            OpenAIUpstream(llm.endpoint, api_key=llm.api_key, model=llm.model)
            for llm in self.config.initial_resources.values()
            if isinstance(llm, LLM)
        ]
        address = os.environ.get("OPENAI_BASE_URL")
        self._fronts_environment = not named and self.config.fronts_environment
        if self._fronts_environment and (address or os.environ.get("OPENAI_API_KEY")):
            return [OpenAIUpstream(address or _OPENAI)]
        self._fronts_environment = False
        return named

    async def _publish_resources(self) -> str | None:
        """Store the resources of this run; after a restart under the same id, with today's address."""
        config = self.config
        resources: NamedResources = dict(config.initial_resources)
        base_url = f"{self.url}/v1"
        key = self.gateway.api_key if self.gateway is not None else None
        for name, resource in list(resources.items()):
            if isinstance(resource, LLM):
                resources[name] = ProxyLLM(
                    endpoint=base_url,
                    model=resource.model,
                    api_key=key,
                    sampling_parameters=resource.sampling_parameters,
                )
        if self.engine is not None and not any(isinstance(r, LLM) for r in resources.values()):
            resources[LLM_RESOURCE] = ProxyLLM(
                endpoint=base_url, model=MODEL_NAME, api_key=key, sampling_parameters=config.sampling_parameters
            )
        if not resources:
            return None
        marker = config.directory / "resources_id"
        if marker.exists():
            known = marker.read_text().strip()
            if await self.store.get_resources_by_id(known) is not None:
                await self._refresh_snapshots(resources)
                await self.store.update_resources(known, resources)
                return known
        update = await self.store.add_resources(resources)
        marker.write_text(update.resources_id)
        return update.resources_id

    async def _refresh_snapshots(self, resources: NamedResources) -> None:
        """Point the candidates of an interrupted run to today's addresses, before their rollouts are claimed again."""
        for record in Journal(self.config.directory / SNAPSHOTS).records:
            stored = await self.store.get_resources_by_id(record["resources_id"])
            if stored is None:
                continue
            current = {
                name: resources.get(name, value) if isinstance(value, LLM) else value
                for name, value in stored.resources.items()
            }
            if current != stored.resources:
                await self.store.update_resources(stored.resources_id, current)

    async def _start_runners(self) -> None:
        if self.agent is None:
            return
        config = self.config
        n_runners = config.placement.default_runners if config.n_runners is None else config.n_runners
        if n_runners < 1:
            raise ConfigError("n_runners must be at least 1.")
        if config.strategy == "shm":
            self._start_runner_here()
            return
        self._pool = config.placement.open(
            self.agent,
            store_url=self.url,
            store=self.store,
            n_runners=n_runners,
            max_concurrency=config.max_concurrency,
            evaluator=config.evaluator,
            policy=config.policy,
            gateway_url=f"{self.url}/v1" if self.gateway else None,
            gateway_key=self.gateway.api_key if self.gateway else None,
            model=os.environ.get("OPENAI_MODEL") if self._fronts_environment else MODEL_NAME,
            log_path=config.directory / "runners.log",
            spool=config.directory / "runner-spool",
            max_rollouts=config.max_rollouts,
            hooks=config.hooks,
        )
        await self._pool.start()
        self._stack.push_async_callback(self._pool.stop)

    def _start_runner_here(self) -> None:
        config = self.config
        if self.gateway is not None:
            self._stack.enter_context(_environment(model_environment(self.gateway)))
        runner: LitAgentRunner[Any] = LitAgentRunner(
            tracer=config.tracer,
            max_rollouts=config.max_rollouts,
            max_concurrency=config.max_concurrency,
            evaluator=config.evaluator,
            policy=config.policy,
            gateway_url=f"{self.url}/v1" if self.gateway else None,
        )
        runner.init(self.agent, hooks=config.hooks)
        runner.init_worker(0, self.store)
        event = asyncio.Event()
        self._runner_task = asyncio.create_task(runner.iter(event=event))

        async def stop() -> None:
            event.set()
            with contextlib.suppress(asyncio.CancelledError):  # the run was cancelled, and its runner with it
                await self._runner_task  # pyright: ignore[reportGeneralTypeIssues]
            runner.teardown_worker(0)
            runner.teardown()

        self._stack.push_async_callback(stop)

    def _traffic(self) -> dict[str, Any]:
        return dict(self.gateway.stats()) if self.gateway else {}

    async def _calls_stored(self) -> None:
        if self.gateway is None:
            return
        try:
            await self.gateway.delivered()
        except TimeoutError as error:
            raise StorageError(
                "The records of some model calls are still in the spool: the store does not take them.",
                hint="See the log for why, then repeat the same command to continue.",
            ) from error

    def _failure(self) -> AgentLightningError | None:
        if self._pool is not None:
            return self._pool.failure
        task = self._runner_task
        if task is not None and task.done() and not task.cancelled() and task.exception() is not None:
            return AgentLightningError(f"The runner ended with an error: {task.exception()!r}.")
        return None


def model_environment(gateway: Gateway) -> dict[str, str]:
    """Variables that point ordinary model clients to the gateway."""
    return {
        "OPENAI_BASE_URL": f"{gateway.url}/v1",
        "OPENAI_API_KEY": gateway.api_key or os.environ.get("OPENAI_API_KEY", "unused"),
        "ANTHROPIC_BASE_URL": gateway.url,
        "OPENAI_MODEL": MODEL_NAME,
        **({"ANTHROPIC_API_KEY": gateway.api_key} if gateway.api_key else {}),
        **({"AGL_GATEWAY_URL": f"{gateway.url}/v1", "AGL_GATEWAY_KEY": gateway.api_key} if gateway.api_key else {}),
    }


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Generator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


async def recover_rollouts(store: LightningStore, run_id: str) -> int:
    """Queue again what a killed run left claimed; returns how many.

    The caller holds the run's lock, so no runner of this run can be alive.
    """
    claimed = await store.query_rollouts(status_in=["preparing", "running"], rollout_id_contains=f"{run_id}.")
    for rollout in claimed:
        await store.update_attempt(rollout.rollout_id, "latest", status="unresponsive")
        current = await store.get_rollout_by_id(rollout.rollout_id)
        if current is not None and current.status in ("preparing", "running", "failed"):
            await store.update_rollout(rollout.rollout_id, status="requeuing")
    if claimed:
        logger.info("queued %d rollouts again that an interrupted run had claimed", len(claimed))
    return len(claimed)
