"""Decorators that make a function an agent: `@rollout`, `@llm_rollout`, `@prompt_rollout`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, overload

from agentlightning.agent.errors import AgentSignatureError
from agentlightning.agent.inject import Injector
from agentlightning.agent.litagent import LitAgent
from agentlightning.schemas import NamedResources, Rollout

T = TypeVar("T")


class FunctionalLitAgent(LitAgent[T]):
    """A function as an agent. Calling it calls the function as if it were not decorated.

    Args:
        rollout_func: The function; its argument names say what it gets.
        strip_proxy: Hand it a `ProxyLLM` as a plain `LLM` that is bound to the rollout.
    """

    def __init__(self, rollout_func: Callable[..., Any], *, strip_proxy: bool = True) -> None:
        super().__init__()
        self._function = rollout_func
        self._injector = Injector(rollout_func, strip_proxy=strip_proxy)
        self._is_async = is_async_callable(rollout_func)
        functools.update_wrapper(self, rollout_func)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    def is_async(self) -> bool:
        """Whether the function is asynchronous."""
        return self._is_async

    def rollout(self, task: T, resources: NamedResources, rollout: Rollout) -> Any:
        """Call the function.

        Raises:
            RuntimeError: The function is asynchronous.
            MissingResourceError: It asks for a resource that is not there.
            AgentSignatureError: It asks for something else that is not there.
        """
        if self._is_async:
            raise RuntimeError(f"{self._injector.name} is asynchronous; use rollout_async")
        args, kwargs = self._injector.bind(task, resources, rollout)
        return self._function(*args, **kwargs)

    async def rollout_async(self, task: T, resources: NamedResources, rollout: Rollout) -> Any:
        """Await the function; raises as `rollout`, and `RuntimeError` when it is not asynchronous."""
        if not self._is_async:
            raise RuntimeError(f"{self._injector.name} is synchronous; use rollout")
        args, kwargs = self._injector.bind(task, resources, rollout)
        return await self._function(*args, **kwargs)


def is_async_callable(function: Any) -> bool:
    """Whether calling it gives a coroutine, as far as can be seen without calling it."""
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.iscoroutinefunction(function):
        return True
    return not inspect.isroutine(function) and inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def rollout(func: Callable[..., Any]) -> FunctionalLitAgent[Any]:
    """Make a function, synchronous or not, an agent.

    What it gets is chosen by its argument names: `task` (or the first one), `llm`, `prompt_template`, `resources`,
    `rollout`, or the key of any resource.

    Raises:
        AgentSignatureError: It takes no arguments.
    """
    if not inspect.signature(func).parameters:
        raise AgentSignatureError(
            f"{getattr(func, '__name__', func)} takes no arguments.",
            hint="Give it a first argument for the task, e.g. `def agent(task, llm):`.",
        )
    return FunctionalLitAgent(func)


@overload
def llm_rollout(func: Callable[..., Any]) -> FunctionalLitAgent[Any]: ...


@overload
def llm_rollout(*, strip_proxy: bool = True) -> Callable[[Callable[..., Any]], FunctionalLitAgent[Any]]: ...


def llm_rollout(
    func: Callable[..., Any] | None = None, *, strip_proxy: bool = True
) -> FunctionalLitAgent[Any] | Callable[[Callable[..., Any]], FunctionalLitAgent[Any]]:
    """As `rollout`, for functions that take an `llm`.

    Args:
        func: The function.
        strip_proxy: `False` hands over the `ProxyLLM` as it is.

    Raises:
        AgentSignatureError: A `ValueError`: there is no argument `llm`.
    """

    def decorate(function: Callable[..., Any]) -> FunctionalLitAgent[Any]:
        _require(function, "llm")
        return FunctionalLitAgent(function, strip_proxy=strip_proxy)

    return decorate if func is None else decorate(func)


@overload
def prompt_rollout(func: Callable[..., Any]) -> FunctionalLitAgent[Any]: ...


@overload
def prompt_rollout() -> Callable[[Callable[..., Any]], FunctionalLitAgent[Any]]: ...


def prompt_rollout(
    func: Callable[..., Any] | None = None,
) -> FunctionalLitAgent[Any] | Callable[[Callable[..., Any]], FunctionalLitAgent[Any]]:
    """As `rollout`, for functions that take a `prompt_template`.

    Raises:
        AgentSignatureError: A `ValueError`: there is no argument `prompt_template`.
    """

    def decorate(function: Callable[..., Any]) -> FunctionalLitAgent[Any]:
        _require(function, "prompt_template")
        return FunctionalLitAgent(function)

    return decorate if func is None else decorate(func)


def _require(function: Callable[..., Any], name: str) -> None:
    parameters = list(inspect.signature(function).parameters)
    if name not in parameters or len(parameters) < 2:
        raise AgentSignatureError(
            f"{getattr(function, '__name__', function)} needs the arguments (task, {name}); "
            f"it has ({', '.join(parameters)})."
        )
