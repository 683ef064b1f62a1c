"""The runner interface (names and signatures of the public 0.3 API)."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, Protocol, Self, TypeVar

from agentlightning.agent.hook import Hook
from agentlightning.schemas import NamedResources, Rollout, RolloutMode
from agentlightning.store.base import LightningStore

T = TypeVar("T")


class StopSignal(Protocol):
    """`asyncio.Event`, `threading.Event`, or anything alike."""

    def is_set(self) -> bool:
        """Whether to stop."""
        ...


class Runner(Generic[T]):
    """Claims rollouts, runs the agent on them, reports.

    As in 0.3 it is not abstract: what a subclass leaves out raises `NotImplementedError` when it is called.
    """

    def init(self, agent: Any, **kwargs: Any) -> None:
        """Take the agent; once per process."""
        raise NotImplementedError

    def init_worker(self, worker_id: int, store: LightningStore, **kwargs: Any) -> None:
        """Take a worker number and the store."""
        raise NotImplementedError

    def run(self, *args: Any, **kwargs: Any) -> None:
        """Not how a runner is used.

        Raises:
            RuntimeError: Always; await `iter()` or `step()`.
        """
        raise RuntimeError("a runner has no run(); await iter() or step()")

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        """Undo `init`."""
        raise NotImplementedError

    def teardown_worker(self, worker_id: int, *args: Any, **kwargs: Any) -> None:
        """Undo `init_worker`."""
        raise NotImplementedError

    @contextmanager
    def run_context(
        self, *, agent: Any, store: LightningStore, hooks: Sequence[Hook] | None = None, worker_id: int | None = None
    ) -> Generator[Self]:
        """Initialise and tear down around the block; for trying things out.

        Args:
            agent: What to run.
            store: Where rollouts come from and reports go.
            hooks: Callbacks around rollouts.
            worker_id: Worker number, 0 by default.
        """
        number = worker_id if worker_id is not None else 0
        self.init(agent=agent, hooks=hooks)
        try:
            self.init_worker(worker_id=number, store=store)
            try:
                yield self
            finally:
                self.teardown_worker(worker_id=number)
        finally:
            self.teardown()

    async def iter(self, *, event: StopSignal | None = None) -> None:
        """Work until `event` is set.

        Args:
            event: Stop signal; what is running is finished first.
        """
        raise NotImplementedError

    async def step(
        self,
        input: T,
        *,
        resources: NamedResources | None = None,
        mode: RolloutMode | None = None,
        event: StopSignal | None = None,
    ) -> Rollout:
        """Run one task past the queue and return the finished rollout; what the agent raises is raised here.

        Args:
            input: The task.
            resources: Resources for this task; the store's latest when not given.
            mode: Mode of the rollout.
            event: Not used.
        """
        raise NotImplementedError
