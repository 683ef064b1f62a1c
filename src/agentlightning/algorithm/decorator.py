"""`@algo`: a function as an algorithm, with its arguments injected by name."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from agentlightning.algorithm.base import Algorithm, Dataset
from agentlightning.kit.errors import ConfigError

_INJECTABLE = (
    "store",
    "train_dataset",
    "val_dataset",
    "llm_proxy",
    "adapter",
    "initial_resources",
    "context",
    "engine",
)


class FunctionalAlgorithm(Algorithm):
    """Wraps a sync or async function; it stays callable as it was."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._parameters = inspect.signature(function).parameters
        unknown = [
            name
            for name, parameter in self._parameters.items()
            if name not in _INJECTABLE
            and parameter.default is inspect.Parameter.empty
            and parameter.kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        ]
        if unknown:
            raise ConfigError(
                f"@algo cannot fill the parameter(s) {', '.join(unknown)} of {function.__name__}().",
                hint=f"It injects by name: {', '.join(_INJECTABLE)}.",
            )
        self.__name__ = function.__name__
        self.__doc__ = function.__doc__
        self.trains_weights = "engine" in self._parameters

    def is_async(self) -> bool:
        return inspect.iscoroutinefunction(self._function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    def run(
        self, train_dataset: Dataset[Any] | None = None, val_dataset: Dataset[Any] | None = None
    ) -> Awaitable[None] | None:
        """Call the function with what it asks for."""
        return self._function(**self._arguments(train_dataset, val_dataset))

    def _arguments(self, train_dataset: Any, val_dataset: Any) -> dict[str, Any]:
        providers: dict[str, Callable[[], Any]] = {
            "store": self.get_store,
            "train_dataset": lambda: train_dataset,
            "val_dataset": lambda: val_dataset,
            "llm_proxy": self.get_llm_proxy,
            "adapter": self.get_adapter,
            "initial_resources": self.get_initial_resources,
            "context": self.get_context,
            "engine": lambda: self.get_context().require_engine(),
        }
        takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in self._parameters.values())
        names = ("store", "train_dataset", "val_dataset") if takes_all else ()
        wanted = {*names, *(name for name in self._parameters if name in providers)}
        return {name: providers[name]() for name in wanted}


def algo(function: Callable[..., Any]) -> FunctionalAlgorithm:
    """Turn a function into an algorithm.

    Example:
        ```python
        @agl.algo
        async def best_of(*, store, train_dataset): ...
        ```

    Raises:
        ConfigError: The function has a required parameter that cannot be injected.
    """
    return FunctionalAlgorithm(function)
