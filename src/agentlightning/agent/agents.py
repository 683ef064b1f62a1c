"""Anything that can be called, as the one thing a runner runs: `as_agent`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Protocol, cast, runtime_checkable

from agentlightning.agent.decorator import is_async_callable
from agentlightning.agent.errors import AgentLoadError
from agentlightning.agent.inject import Injector
from agentlightning.agent.litagent import LitAgent
from agentlightning.agent.loading import load_object
from agentlightning.agent.threads import AgentThreads, shared_threads
from agentlightning.schemas import NamedResources, Rollout


@runtime_checkable
class Agent(Protocol):
    """What a runner runs.

    With a method `run_raw` of the same arguments, that one is called when an evaluator will score what comes out.
    """

    async def run(self, task: Any, resources: NamedResources, rollout: Rollout) -> Any:
        """Work on one task; returns what `agentlightning.agent.results` lists."""
        ...


class LitAgentAdapter:
    """A `LitAgent` as an `Agent`: picks the method by mode; synchronous ones run on a thread."""

    def __init__(self, agent: LitAgent[Any], threads: AgentThreads) -> None:
        self.wrapped = agent
        self._threads = threads

    async def run(self, task: Any, resources: NamedResources, rollout: Rollout) -> Any:
        """Work on one task."""
        agent = self.wrapped
        training = rollout.mode == "train"
        if agent.is_async():
            method = agent.training_rollout_async if training else agent.validation_rollout_async
            return await method(task, resources, rollout)
        work = agent.training_rollout if training else agent.validation_rollout
        return await finish(await self._threads.run(functools.partial(work, task, resources, rollout)))


class CallableAgent:
    """A plain callable that knows nothing of us, as an `Agent`."""

    def __init__(self, function: Callable[..., Any], threads: AgentThreads) -> None:
        self.wrapped = function
        self._threads = threads
        self._injector = Injector(function)
        self._is_async = is_async_callable(function)

    async def run(self, task: Any, resources: NamedResources, rollout: Rollout) -> Any:
        """Work on one task."""
        args, kwargs = self._injector.bind(task, resources, rollout)
        if self._is_async:
            return await self.wrapped(*args, **kwargs)
        return await finish(await self._threads.run(functools.partial(self.wrapped, *args, **kwargs)))


async def finish(value: Any) -> Any:
    """Await what a synchronous function returned, if it is awaitable after all."""
    return await value if inspect.isawaitable(value) else value


def as_agent(obj: Any, *, threads: AgentThreads | None = None) -> Agent:
    """Turn a `LitAgent`, a decorated or plain callable, an `Agent`, or `"module:name"` into an `Agent`.

    Args:
        obj: What the user calls their agent.
        threads: Where synchronous functions run; by default a pool of the process.

    Raises:
        AgentLoadError: It cannot be imported, or it is nothing that can be run.
        AgentSignatureError: Its arguments cannot be read.
    """
    if isinstance(obj, str):
        obj = load_object(obj)
    threads = threads or shared_threads()
    if isinstance(obj, LitAgent):
        return LitAgentAdapter(cast("LitAgent[Any]", obj), threads)
    if isinstance(obj, type) and issubclass(obj, LitAgent):
        return LitAgentAdapter(cast("type[LitAgent[Any]]", obj)(), threads)
    if isinstance(obj, Agent) and not isinstance(obj, type):
        return obj
    if callable(obj):
        return CallableAgent(obj, threads)
    raise AgentLoadError(
        f"{type(obj).__name__} is no agent.",
        hint="An agent is a function, a LitAgent, or 'module:name' of one.",
    )
