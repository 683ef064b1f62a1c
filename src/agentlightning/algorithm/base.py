"""What an algorithm is, and what a run hands to it. Knows nothing of runners, gateways or command lines."""

from __future__ import annotations

import asyncio
import inspect
import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, SupportsIndex, TypeVar

from agentlightning.kit.errors import AgentLightningError, ConfigError

if TYPE_CHECKING:
    from agentlightning.agent import TraceAdapter
    from agentlightning.learner.client import EngineClient
    from agentlightning.schemas import NamedResources
    from agentlightning.store import LightningStore

T_co = TypeVar("T_co", covariant=True)


class Dataset(Protocol[T_co]):
    """Anything with a length and integer access; a list of dicts is the usual case."""

    def __getitem__(self, index: SupportsIndex, /) -> T_co: ...

    def __len__(self) -> int: ...


class SamplingRegistry(Protocol):
    """Tells whoever serves the model how the calls of given rollouts are sampled."""

    def register(
        self,
        rollout_ids: Iterable[str],
        *,
        overrides: dict[str, Any] | None = None,
        defaults: dict[str, Any] | None = None,
        seed_base: int | None = None,
        unseeded_prefix: str = "",
        samples_freely: bool = False,
    ) -> None:
        """`overrides` beat what the agent asks for, `defaults` fill what it leaves open.

        With `samples_freely` the model is not held to strict tools, so that its answers can be trained on.
        """
        ...

    def forget(self, rollout_ids: Iterable[str]) -> None:
        """Drop the entries of finished rollouts."""
        ...


class RunStopped(AgentLightningError):  # noqa: N818 - not a failure: somebody asked for it
    """The run was asked to stop; what is checkpointed stays, the same command continues it."""

    code = "RUN_STOPPED"
    status = 409


Report = Callable[[dict[str, Any]], None]
"""Receives progress events: `{"type": "step" | "eval" | "rollouts" | ..., ...}`; must return quickly."""


def no_report(event: dict[str, Any]) -> None:
    """A `Report` that nobody reads."""
    del event


async def _nothing_waits() -> None:
    pass


@dataclass
class RunContext:
    """Everything a run lends to its algorithm."""

    run_id: str
    directory: Path
    store: LightningStore
    resources_id: str | None = None
    engine: EngineClient | None = None
    sampling: SamplingRegistry | None = None
    report: Report = no_report
    seed: int = 0
    tests: Mapping[str, Dataset[Any]] = field(default_factory=dict[str, Dataset[Any]])
    """Named data sets that an algorithm may only measure its result on."""
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    failure: Callable[[], AgentLightningError | None] = field(default=lambda: None)
    """Returns why the run cannot go on (its runners are gone), if so."""
    traffic: Callable[[], dict[str, Any]] = field(default=lambda: {})
    """Live counters of the gateway, for progress reports."""
    calls_stored: Callable[[], Awaitable[None]] = field(default=_nothing_waits)
    """Returns when the store has the record of every model call that was answered; after an outage some are late."""

    def check(self) -> None:
        """Call often.

        Raises:
            RunStopped: Somebody asked the run to stop.
            AgentLightningError: The runners are gone.
        """
        if self.stopping.is_set():
            raise RunStopped(
                "The run was stopped.", hint="Repeat the same command to continue from the last checkpoint."
            )
        failure = self.failure()
        if failure is not None:
            raise failure

    def require_engine(self) -> EngineClient:
        """The local engine.

        Raises:
            ConfigError: The run has none.
        """
        if self.engine is None:
            raise ConfigError(
                "This algorithm trains weights, and the run has no model to train.",
                hint="Give Trainer(model=PATH_OR_HUB_ID), or `--model` on the command line.",
            )
        return self.engine


class Algorithm:
    """Base of all algorithms: reads attempts, writes better resources. Subclasses implement `run`."""

    trains_weights = False
    """Whether a run of it needs the local engine."""
    needs_agent = True
    """Whether a run of it needs an agent."""
    reads_model_calls = False
    """Whether it learns from the agent's model calls; then they go through a gateway even where the agent names its
    model server itself."""
    phase = "training"
    """What a run says it is doing while the algorithm runs."""

    _trainer_ref: weakref.ReferenceType[Any] | None = None
    _llm_proxy: Any = None
    _store: LightningStore | None = None
    _adapter: TraceAdapter[Any] | None = None
    _initial_resources: NamedResources | None = None
    _context: RunContext | None = None

    def is_async(self) -> bool:
        """Whether `run` is a coroutine function."""
        return inspect.iscoroutinefunction(self.run)

    def set_context(self, context: RunContext) -> None:
        """Called by the trainer before `run`."""
        self._context = context
        self.set_store(context.store)

    def get_context(self) -> RunContext:
        """The current run.

        Raises:
            ValueError: The algorithm is not running.
        """
        if self._context is None:
            raise ValueError("The algorithm is not part of a run; start it with Trainer.fit().")
        return self._context

    def set_trainer(self, trainer: Any) -> None:
        """Remember the trainer (weakly)."""
        self._trainer_ref = weakref.ref(trainer)

    def get_trainer(self) -> Any:
        """The trainer that runs this algorithm.

        Raises:
            ValueError: None is set, or it is gone.
        """
        trainer = self._trainer_ref() if self._trainer_ref else None
        if trainer is None:
            raise ValueError("No trainer is set for this algorithm.")
        return trainer

    def set_llm_proxy(self, llm_proxy: Any) -> None:
        """Remember the gateway."""
        self._llm_proxy = llm_proxy

    def get_llm_proxy(self) -> Any:
        """The gateway, or None."""
        return self._llm_proxy

    def set_adapter(self, adapter: TraceAdapter[Any]) -> None:
        """Remember how traces become training data."""
        self._adapter = adapter

    def get_adapter(self) -> TraceAdapter[Any]:
        """The trace adapter.

        Raises:
            ValueError: None is set.
        """
        if self._adapter is None:
            raise ValueError("No adapter is set for this algorithm.")
        return self._adapter

    def set_store(self, store: LightningStore) -> None:
        """Remember the store."""
        self._store = store

    def get_store(self) -> LightningStore:
        """The store of the run.

        Raises:
            ValueError: None is set.
        """
        if self._store is None:
            raise ValueError("No store is set for this algorithm.")
        return self._store

    def set_initial_resources(self, resources: NamedResources) -> None:
        """Remember where to start from."""
        self._initial_resources = resources

    def get_initial_resources(self) -> NamedResources | None:
        """The resources given to the trainer."""
        return self._initial_resources

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)

    def run(
        self, train_dataset: Dataset[Any] | None = None, val_dataset: Dataset[Any] | None = None
    ) -> Awaitable[None] | None:
        """Do the work; may be a coroutine function."""
        raise NotImplementedError(f"{type(self).__name__} does not implement run()")
