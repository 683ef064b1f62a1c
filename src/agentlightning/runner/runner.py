"""The runner: claims rollouts in batches and runs many at once in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from agentlightning.agent import instrument
from agentlightning.agent.agents import as_agent
from agentlightning.agent.hook import Hook
from agentlightning.agent.litagent import LitAgent
from agentlightning.agent.loading import load_object
from agentlightning.agent.results import Evaluator
from agentlightning.agent.scope import GatewayAddress, unattributed
from agentlightning.agent.threads import AgentThreads
from agentlightning.agent.tracer import OtelTracer, Tracer
from agentlightning.kit.errors import ConfigError, StorageError
from agentlightning.runner.base import Runner, StopSignal
from agentlightning.runner.claims import Claims
from agentlightning.runner.execution import AttemptExecution, Workbench
from agentlightning.runner.policy import FailurePolicy
from agentlightning.runner.pulse import Pulse
from agentlightning.runner.reporter import Reporter
from agentlightning.runner.resources import ResourceCache
from agentlightning.runner.spool import Spool
from agentlightning.schemas import AttemptedRollout, NamedResources, Rollout, RolloutMode
from agentlightning.store.base import LightningStore

logger = logging.getLogger(__name__)

T = TypeVar("T")

DEFAULT_TIMEOUT_S = 1800.0
"""Time limit of an attempt whose rollout sets none."""
_GATHER_S = 0.02
"""How long freed slots gather before new work is claimed."""
_UNREACHABLE_S = 60.0
STOPPED = "the runner was stopped"
Observer = Callable[[AttemptedRollout, float | None], None]
"""Gets an attempt and its time limit in seconds (infinite for none); `None` when it has ended."""


class LitAgentRunner(Runner[T]):
    """Runs an agent on the store's rollouts.

    Args:
        tracer: Collects spans; an `OtelTracer` by default.
        max_rollouts: End after so many.
        poll_interval: Longest wait for work, seconds.
        heartbeat_interval: Seconds between signs of life; 0 sends none.
        max_concurrency: Rollouts at once.
        evaluator: `(task, output) -> reward`, for agents that do not score themselves; a function or `"module:name"`.
        policy: What failures mean; see `FailurePolicy`.
        default_timeout_s: Time limit of attempts whose rollout sets none; `None` for no limit.
        drain_timeout_s: How long running rollouts may finish when the runner is stopped.
        grace_s: How long a cancelled agent may clean up.
        gateway_url: Base URL of a gateway, beside those that `ProxyLLM` resources point to.
        store_patience_s: How long an unreachable store is waited for, a minute by default.
        spool: Folder that keeps reports while the store is away, so that they outlive this process, too; see
            `agentlightning.runner.spool`. Without one they are kept in memory.
    """

    def __init__(
        self,
        tracer: Tracer | None = None,
        max_rollouts: int | None = None,
        poll_interval: float = 5.0,
        heartbeat_interval: float = 10.0,
        *,
        max_concurrency: int = 64,
        evaluator: Callable[..., Any] | str | None = None,
        policy: FailurePolicy | None = None,
        default_timeout_s: float | None = DEFAULT_TIMEOUT_S,
        drain_timeout_s: float = 5.0,
        grace_s: float = 1.0,
        gateway_url: str | None = None,
        store_patience_s: float | None = None,
        spool: Path | None = None,
        **compatibility: Any,
    ) -> None:
        if max_concurrency < 1:
            raise ConfigError(f"max_concurrency must be at least 1, it is {max_concurrency}.")
        unknown = set(compatibility) - {"interval_jitter", "heartbeat_launch_mode", "heartbeat_include_gpu"}
        if unknown:
            raise ConfigError(f"LitAgentRunner has no option {', '.join(sorted(unknown))}.")
        self._tracer = tracer or OtelTracer()
        self._max_rollouts = max_rollouts
        self._poll_interval = poll_interval
        self._heartbeat_interval = heartbeat_interval
        self._max_concurrency = max_concurrency
        self._evaluator = evaluator
        self._policy = policy or FailurePolicy()
        self._default_timeout_s = default_timeout_s
        self._drain_timeout_s = drain_timeout_s
        self._grace_s = grace_s
        self._gateways = frozenset({GatewayAddress.parse(gateway_url)}) if gateway_url else frozenset[GatewayAddress]()
        self._store_patience_s = store_patience_s
        self._spool_folder = spool
        self._agent: Any = None
        self._hooks: Sequence[Hook] = ()
        self._store: LightningStore | None = None
        self._bench: Workbench | None = None
        self._threads: AgentThreads | None = None
        self._worker_name: str | None = None
        self.worker_id: int | None = None
        self._resources = ResourceCache()
        self._running: dict[str, AttemptExecution] = {}
        self._stopping: asyncio.Event | None = None
        self._unattributed_before: dict[str, int] = {}
        self.finished = 0
        """Attempts ended so far."""
        self.observer: Observer | None = None
        """Told of each attempt before it begins and after it has ended."""

    # --- life cycle (0.3) ----------------------------------------------------------------------------------------

    def init(self, agent: Any, *, hooks: Sequence[Hook] | None = None, **kwargs: Any) -> None:
        """Take the agent: anything `as_agent` understands.

        Raises:
            AgentLoadError: It cannot be imported or run.
        """
        source = load_object(agent) if isinstance(agent, str) else agent
        self._threads = AgentThreads(self._max_concurrency)
        self._runnable = as_agent(source, threads=self._threads)
        if isinstance(source, LitAgent):
            source.set_runner(self)
        evaluator = load_object(self._evaluator) if isinstance(self._evaluator, str) else self._evaluator
        self._reward_function = Evaluator(evaluator) if evaluator is not None else None
        self._agent = source
        self._hooks = list(hooks or ())
        self._tracer.init()

    def init_worker(self, worker_id: int, store: LightningStore, **kwargs: Any) -> None:
        """Take a worker number and the store; `worker_name` replaces the name `Worker-<number>`."""
        self.worker_id = worker_id
        self._worker_name = kwargs.get("worker_name")
        self._store = store
        self._resources.use(store, patience_s=self._patience())
        self._tracer.init_worker(worker_id, store)
        instrument.install()
        self._unattributed_before = unattributed.snapshot()  # the count is the whole process's

    def teardown_worker(self, worker_id: int, *args: Any, **kwargs: Any) -> None:
        """Undo `init_worker`."""
        self.worker_id = None
        self._store = None
        self._bench = None
        self._resources.use(None)
        self._tracer.teardown_worker(worker_id)

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        """Undo `init`."""
        self._agent = None
        self._hooks = ()
        if self._threads is not None:
            self._threads.close()
            self._threads = None
        self._tracer.teardown()

    @property
    def tracer(self) -> Tracer:
        """The tracer."""
        return self._tracer

    def get_agent(self) -> Any:
        """The agent as it was given.

        Raises:
            ValueError: `init` was not called.
        """
        if self._agent is None:
            raise ValueError("the runner has no agent; call init() first")
        return self._agent

    def get_store(self) -> LightningStore:
        """The store.

        Raises:
            ValueError: `init_worker` was not called.
        """
        if self._store is None:
            raise ValueError("the runner has no store; call init_worker() first")
        return self._store

    def get_worker_id(self) -> str:
        """Name under which the store knows this worker."""
        if self._worker_name is not None:
            return self._worker_name
        return f"Worker-{self.worker_id if self.worker_id is not None else 'Unknown'}"

    def stats(self) -> dict[str, Any]:
        """How it goes: attempts running and finished, threads and tasks given up, and spans and calls
        that came without a rollout since `init_worker`.
        """
        return {
            "running": len(self._running),
            "finished": self.finished,
            "abandoned": (self._threads.abandoned if self._threads else 0)
            + (self._bench.abandoned if self._bench else 0),
            "unattributed": unattributed.since(self._unattributed_before),
        }

    def running(self) -> list[AttemptedRollout]:
        """What is being worked on."""
        return [execution.rollout for execution in self._running.values()]

    def next_deadline(self) -> float | None:
        """When the first of the time limits of what runs passes, on `time.monotonic`'s clock."""
        deadlines = [e.deadline for e in tuple(self._running.values()) if e.deadline is not None]
        return min(deadlines, default=None)

    def attempt_of(self, task: asyncio.Task[Any] | None) -> str | None:
        """The attempt whose agent runs as this task."""
        return next(
            (key for key, execution in self._running.items() if task is not None and execution.task is task), None
        )

    def stop(self) -> None:
        """Claim nothing more, let what runs finish for `drain_timeout_s`, hand back the rest, and end `iter`."""
        if self._stopping is not None:
            self._stopping.set()

    # --- many ----------------------------------------------------------------------------------------------------

    async def iter(self, *, event: StopSignal | None = None) -> None:
        """Claim and run rollouts until `event` is set, `stop` is called or `max_rollouts` have run.

        Raises:
            StorageError: The store stayed unreachable for a minute.
        """
        store = self.get_store()
        self._stopping = asyncio.Event()
        name = self.get_worker_id()
        spool = Spool(self._spool_folder, name) if self._spool_folder is not None else None
        reporter = Reporter(store, patience_s=self._patience(), spool=spool)
        pulse = Pulse(store, name, self._running, self._heartbeat_interval, self.stats, reporter.held)
        watcher = asyncio.create_task(self._watch(event)) if event is not None else None
        reporter.start()
        pulse.start()
        tasks: set[asyncio.Task[None]] = set()
        try:
            await self._claim_until_stopped(store, reporter, tasks)
            await self._drain(reporter, tasks)
        finally:
            if watcher is not None:
                watcher.cancel()
            await reporter.close(within_s=self._drain_timeout_s if self._stopping.is_set() else None)
            await pulse.stop()
            await instrument.close_connections()
        if reporter.failed is not None:
            raise reporter.failed

    def _patience(self) -> float:
        return _UNREACHABLE_S if self._store_patience_s is None else self._store_patience_s

    async def _watch(self, event: StopSignal) -> None:
        while not event.is_set():  # noqa: ASYNC110 - it may be an event of threads, which cannot be awaited
            await asyncio.sleep(0.05)
        self.stop()

    async def _claim_until_stopped(
        self, store: LightningStore, reporter: Reporter, tasks: set[asyncio.Task[None]]
    ) -> None:
        assert self._stopping is not None
        claims = Claims(
            store,
            self.get_worker_id(),
            self._poll_interval,
            self._heartbeat_interval,
            self._patience(),
            self._stopping,
        )
        claimed_so_far = 0
        freed = asyncio.Event()
        while not self._stopping.is_set() and reporter.failed is None:
            wanted = self._max_concurrency - len(self._running)
            if self._max_rollouts is not None:
                wanted = min(wanted, self._max_rollouts - claimed_so_far)
                if claimed_so_far >= self._max_rollouts:
                    return
            if wanted <= 0 or len(tasks) > 4 * self._max_concurrency:  # the latter: the store cannot keep up
                freed.clear()
                await _first_of(freed, self._stopping)
                await asyncio.sleep(_GATHER_S)
                continue
            claimed = await claims.next(wanted)
            if self._stopping.is_set():
                await self._hand_back(claimed, reporter)
                return
            claimed_so_far += len(claimed)
            for rollout in claimed:
                execution = AttemptExecution(rollout, self._workbench())
                self._running[rollout.attempt.attempt_id] = execution  # now, so that its place counts as taken
                if self.observer is not None:
                    self.observer(rollout, execution.time_left())
                task = asyncio.create_task(self._run_one(execution, reporter, freed))
                tasks.add(task)
                task.add_done_callback(tasks.discard)

    async def _hand_back(self, claimed: Sequence[AttemptedRollout], reporter: Reporter) -> None:
        """Queue again what was claimed too late to start."""
        for rollout in claimed:
            await reporter.finish(AttemptExecution(rollout, self._workbench()).hand_back(STOPPED))

    async def _run_one(self, execution: AttemptExecution, reporter: Reporter, freed: asyncio.Event) -> None:
        rollout = execution.rollout
        reporter.track(execution.scope)
        try:
            outcome = await execution.run(lambda: self._resources.of(rollout))
        finally:
            del self._running[rollout.attempt.attempt_id]
            self.finished += 1
            freed.set()
            if self.observer is not None:
                self.observer(rollout, None)
        with contextlib.suppress(StorageError):  # iter() raises it, once
            await reporter.finish(outcome)

    async def _drain(self, reporter: Reporter, tasks: set[asyncio.Task[None]]) -> None:
        """Let everything finish; once stopped, only for so long."""
        assert self._stopping is not None
        if reporter.failed is not None:
            self._stopping.set()
        finished = asyncio.ensure_future(asyncio.gather(*tasks, return_exceptions=True))
        stopping = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait({finished, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        await asyncio.wait({finished}, timeout=self._drain_timeout_s)
        if not finished.done():
            for execution in list(self._running.values()):
                execution.cancel(STOPPED, may_run_again=True)
            await asyncio.wait({finished}, timeout=self._grace_s + _UNREACHABLE_S)
        for result in await finished if finished.done() else ():
            if isinstance(result, BaseException):
                raise result

    # --- one -----------------------------------------------------------------------------------------------------

    async def step(
        self,
        input: T,
        *,
        resources: NamedResources | None = None,
        mode: RolloutMode | None = None,
        event: StopSignal | None = None,
    ) -> Rollout:
        """Run one task past the queue and return the finished rollout; what the agent raises is raised here.

        Raises:
            AttemptTimeoutError: The time limit passed.
            BadResultError: The agent returned something that is no reward.
        """
        store = self.get_store()
        resources_id = (await store.add_resources(resources)).resources_id if resources is not None else None
        rollout = await store.start_rollout(
            input=input, mode=mode, resources_id=resources_id, worker_id=self.get_worker_id()
        )
        execution = AttemptExecution(rollout, self._workbench())
        reporter = Reporter(store)
        reporter.start()
        try:
            await reporter.finish(await execution.run(lambda: self._resources.of(rollout)))
        finally:
            await reporter.close()
            await instrument.close_connections()
        self.finished += 1
        if execution.failure is not None and execution.failure.error is not None:
            raise execution.failure.error
        finished = await store.get_rollout_by_id(rollout.rollout_id)
        return finished if finished is not None else rollout

    # --- shared --------------------------------------------------------------------------------------------------

    def _workbench(self) -> Workbench:
        if self._bench is None:
            self.get_agent()
            assert self._threads is not None
            self._bench = Workbench(
                agent=self._runnable,
                source=self._agent,
                runner=self,
                tracer=self._tracer,
                store=self.get_store(),
                threads=self._threads,
                policy=self._policy,
                evaluator=self._reward_function,
                hooks=self._hooks,
                gateways=self._gateways,
                default_timeout_s=self._default_timeout_s,
                grace_s=self._grace_s,
            )
        return self._bench


async def _first_of(*events: asyncio.Event) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
