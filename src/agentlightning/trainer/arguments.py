"""The trainer's arguments as people write them: names of algorithms and strategies, 0.3's old names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from agentlightning.algorithm.base import Algorithm
from agentlightning.algorithm.baseline import Baseline
from agentlightning.algorithm.prompt import make_optimizer
from agentlightning.algorithm.supervised import DPO, SFT
from agentlightning.algorithm.weights import GRPO
from agentlightning.kit.errors import ConfigError
from agentlightning.trainer.strategies import ExecutionStrategy


def as_algorithm(algorithm: Algorithm | Callable[..., Any] | str | None) -> Algorithm:
    """The algorithm meant.

    Raises:
        ConfigError: It is none, or its name is unknown.
    """
    if algorithm is None:
        return Baseline()
    if isinstance(algorithm, str):
        weights: dict[str, type[Algorithm]] = {"grpo": GRPO, "sft": SFT, "dpo": DPO}
        return weights[algorithm]() if algorithm in weights else make_optimizer(algorithm)
    if isinstance(algorithm, Algorithm):
        return algorithm
    if callable(algorithm):
        from agentlightning.algorithm.decorator import algo

        return algo(algorithm)
    raise ConfigError(
        f"{algorithm!r} is no algorithm.", hint="Use agl.GRPO(...), agl.Baseline() or an @agl.algo function."
    )


def under_old_names(given: dict[str, Any], *current: Any) -> list[Any]:
    """Arguments under names that were old in 0.3 already."""
    values = list(current)
    for index, old in enumerate(("n_workers", "max_tasks", "triplet_exporter")):
        if given.get(old) is not None and values[index] is None:
            values[index] = given[old]
    unknown = set(given) - {"n_workers", "max_tasks", "triplet_exporter", "daemon", "dev"}
    if unknown or given.get("dev"):
        hint = "For dev=True call trainer.dev(...)." if given.get("dev") else ""
        raise ConfigError(f"Trainer has no argument {', '.join(sorted(unknown)) or 'dev'}.", hint=hint)
    return values


def strategy_name(strategy: str | Mapping[str, Any] | ExecutionStrategy | None) -> str:
    """`cs` or `shm`.

    Raises:
        ConfigError: Something else, or with settings.
    """
    if isinstance(strategy, ExecutionStrategy):
        return strategy.alias
    name = strategy.get("type", "cs") if isinstance(strategy, Mapping) else strategy or "cs"
    if name not in ("cs", "shm"):
        raise ConfigError(f"Unknown strategy {name!r}.", hint="Use 'cs' (runner processes) or 'shm' (in this process).")
    if isinstance(strategy, Mapping) and set(strategy) - {"type"}:
        raise ConfigError(f"The strategy's settings {sorted(set(strategy) - {'type'})} are not honoured.")
    return name
