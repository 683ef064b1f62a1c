"""Prompt optimizers by name."""

from __future__ import annotations

import importlib
from typing import Any, Literal, get_args

from agentlightning.algorithm.prompt.optimizer import PromptOptimizer
from agentlightning.kit.errors import ConfigError

Optimizer = Literal["apo", "gepa", "fewshot", "edit", "auto"]
_CLASSES: dict[str, tuple[str, str]] = {
    "apo": ("apo", "APO"),
    "gepa": ("gepa", "GEPA"),
    "fewshot": ("fewshot", "FewShot"),
    "edit": ("edit", "EditSearch"),
    "auto": ("auto", "Auto"),
}


def make_optimizer(name: str, **settings: Any) -> PromptOptimizer[Any]:
    """The optimizer of that name.

    Args:
        name: One of `Optimizer`.
        **settings: Its arguments.

    Raises:
        ConfigError: There is none, or it does not have such a setting.
    """
    if name not in _CLASSES:
        raise ConfigError(
            f"There is no algorithm {name!r}.",
            hint=f"Prompt optimizers: {', '.join(get_args(Optimizer))}. Weights: agl.GRPO(...).",
        )
    module, attribute = _CLASSES[name]
    kind = getattr(importlib.import_module(f"agentlightning.algorithm.prompt.{module}"), attribute)
    try:
        return kind(**settings)
    except TypeError as error:
        raise ConfigError(f"{name}: {error}.") from error
