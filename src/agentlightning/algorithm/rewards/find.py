"""Rewards by name, by `module:function`, or as they are."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from agentlightning.agent.loading import load_object
from agentlightning.algorithm.rewards.base import FunctionReward, Reward
from agentlightning.kit.errors import ConfigError

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

_OWN = {
    "exact": ("text", "ExactMatch"),
    "f1": ("text", "F1"),
    "json": ("text", "JsonSchema"),
    "sql": ("execution", "SqlExecution"),
    "python": ("execution", "PythonExecution"),
}
_REGISTERED: dict[str, Reward] = {}


def register_reward(name: str) -> Callable[[FunctionT], FunctionT]:
    """Make a function of task and output known under a name, e.g. for `--reward NAME`.

    Example:
        ```python
        @register_reward("short")
        def short(task, output):
            return float(len(output) < 100)
        ```

    Raises:
        ConfigError: The name is taken.
    """

    def register(function: FunctionT) -> FunctionT:
        if name in _OWN or name in _REGISTERED:
            raise ConfigError(f"There is a reward {name!r} already.")
        _REGISTERED[name] = FunctionReward(function, name)
        return function

    return register


def find_reward(reference: Any) -> Reward:
    """A reward from its name, `module:function`, `file.py:function`, a function, a class or an instance of `Reward`.

    Raises:
        ConfigError: There is none of that name, or it is nothing that can score.
        AgentLoadError: The module cannot be imported.
    """
    found = _by_name(reference) if isinstance(reference, str) else reference
    if inspect.isclass(found) and issubclass(found, Reward):
        found = found()
    if isinstance(found, Reward):
        return found
    if callable(found):
        return FunctionReward(found)
    raise ConfigError(f"{reference!r} is no reward.", hint="Give a function of task and output.")


def _by_name(name: str) -> Any:
    if name in _REGISTERED:
        return _REGISTERED[name]
    if name in _OWN:
        module, attribute = _OWN[name]
        return getattr(importlib.import_module(f"agentlightning.algorithm.rewards.{module}"), attribute)
    if ":" in name:
        return load_object(name)
    known = ", ".join([*_OWN, *_REGISTERED])
    raise ConfigError(f"There is no reward {name!r}.", hint=f"There are {known}; or write module:function.")
