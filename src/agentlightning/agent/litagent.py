"""The agent base class (names and signatures of the public 0.3 API)."""

from __future__ import annotations

import warnings
import weakref
from typing import Any, Generic, TypeVar

from agentlightning.agent.tracer.base import Tracer
from agentlightning.schemas import NamedResources, Rollout

T = TypeVar("T")


class LitAgent(Generic[T]):
    """Override `rollout` or `rollout_async`, or the training and validation variants, and return the reward.

    What may be returned is listed in `agentlightning.agent.results`.
    """

    def __init__(self, *, trained_agents: str | None = None) -> None:
        if trained_agents is not None:
            warnings.warn(
                "trained_agents is deprecated; use agent_match of the adapter", DeprecationWarning, stacklevel=2
            )
        self.trained_agents = trained_agents

    def is_async(self) -> bool:
        """Whether an asynchronous method is overridden; then those are used."""
        own = type(self)
        return any(
            getattr(own, name) is not getattr(LitAgent, name)
            for name in ("rollout_async", "training_rollout_async", "validation_rollout_async")
        )

    # The references are weak, and absent from pickles: an agent is sent to other processes without its trainer.
    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_trainer_ref", "_runner_ref")}

    def set_trainer(self, trainer: Any) -> None:
        """Attach the trainer; only a weak reference is kept."""
        self._trainer_ref = weakref.ref(trainer)

    def get_trainer(self) -> Any:
        """The trainer.

        Raises:
            ValueError: None is attached, or it is gone.
        """
        return _target(self, "_trainer_ref", "trainer")

    def set_runner(self, runner: Any) -> None:
        """Attach the runner; only a weak reference is kept."""
        self._runner_ref = weakref.ref(runner)

    def get_runner(self) -> Any:
        """The runner.

        Raises:
            ValueError: None is attached, or it is gone.
        """
        return _target(self, "_runner_ref", "runner")

    def get_tracer(self) -> Tracer:
        """The runner's tracer, else the trainer's.

        Raises:
            ValueError: Neither runner nor trainer is attached.
        """
        runner = getattr(self, "_runner_ref", None)
        if runner is not None and runner() is not None and hasattr(runner(), "tracer"):
            return runner().tracer
        return self.get_trainer().tracer

    @property
    def trainer(self) -> Any:
        """As `get_trainer()`."""
        return self.get_trainer()

    @property
    def runner(self) -> Any:
        """As `get_runner()`."""
        return self.get_runner()

    @property
    def tracer(self) -> Tracer:
        """As `get_tracer()`."""
        return self.get_tracer()

    def rollout(self, task: T, resources: NamedResources, rollout: Rollout) -> Any:
        """Work on one task, in any mode.

        Args:
            task: What was enqueued.
            resources: Prompts, model endpoints, … by name.
            rollout: Ids, mode and configuration.

        Returns:
            The reward, `None`, or spans.
        """
        raise NotImplementedError(f"{type(self).__name__} overrides neither rollout nor rollout_async")

    async def rollout_async(self, task: T, resources: NamedResources, rollout: Rollout) -> Any:
        """As `rollout`."""
        raise NotImplementedError(f"{type(self).__name__} overrides neither rollout nor rollout_async")

    def training_rollout(self, task: T, resources: NamedResources, rollout: Rollout) -> Any:
        """Work on a task of mode `train`; `rollout` by default."""
        return self.rollout(task, resources, rollout)

    def validation_rollout(self, task: T, resources: NamedResources, rollout: Rollout) -> Any:
        """Work on a task of any other mode; `rollout` by default."""
        return self.rollout(task, resources, rollout)

    async def training_rollout_async(self, task: T, resources: NamedResources, rollout: Rollout) -> Any:
        """As `training_rollout`."""
        return await self.rollout_async(task, resources, rollout)

    async def validation_rollout_async(self, task: T, resources: NamedResources, rollout: Rollout) -> Any:
        """As `validation_rollout`."""
        return await self.rollout_async(task, resources, rollout)


def _target(agent: LitAgent[Any], attribute: str, what: str) -> Any:
    reference = getattr(agent, attribute, None)
    if reference is None:
        raise ValueError(f"no {what} is attached to this agent")
    target = reference()
    if target is None:
        raise ValueError(f"the {what} of this agent is gone")
    return target
