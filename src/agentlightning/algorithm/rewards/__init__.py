"""Rewards: how good an output is, as a number, or `None` where nobody can tell. Names load on first use.

A reward is a callable of task and output; whatever scores an agent takes one (`Trainer(evaluator=...)`, `--reward`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentlightning.algorithm.rewards.base import Reward, Weighted, output_text, reference_of
    from agentlightning.algorithm.rewards.execution import PythonExecution, SqlExecution
    from agentlightning.algorithm.rewards.find import find_reward, register_reward
    from agentlightning.algorithm.rewards.judge import Agreement, Judge, Pairwise, agreement
    from agentlightning.algorithm.rewards.text import F1, ExactMatch, JsonSchema, Regex

_LAZY = {
    "Reward": "base",
    "output_text": "base",
    "reference_of": "base",
    "Weighted": "base",
    "PythonExecution": "execution",
    "SqlExecution": "execution",
    "find_reward": "find",
    "register_reward": "find",
    "Agreement": "judge",
    "Judge": "judge",
    "Pairwise": "judge",
    "agreement": "judge",
    "ExactMatch": "text",
    "F1": "text",
    "JsonSchema": "text",
    "Regex": "text",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"agentlightning.algorithm.rewards.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'agentlightning.algorithm.rewards' has no attribute {name!r}")


__all__ = [
    "F1",
    "Agreement",
    "ExactMatch",
    "JsonSchema",
    "Judge",
    "Pairwise",
    "PythonExecution",
    "Regex",
    "Reward",
    "SqlExecution",
    "Weighted",
    "agreement",
    "find_reward",
    "output_text",
    "reference_of",
    "register_reward",
]
