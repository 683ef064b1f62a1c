"""The trainer: wires a run together, resumes it, evaluates it. Names load on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentlightning.algorithm.evaluation import Evaluation, evaluate
    from agentlightning.registry import ModelRegistry, ModelVersion
    from agentlightning.trainer.result import RunResult
    from agentlightning.trainer.strategies import (
        ClientServerExecutionStrategy,
        ExecutionStrategy,
        SharedMemoryExecutionStrategy,
    )
    from agentlightning.trainer.trainer import Trainer

_LAZY = {
    "Evaluation": "agentlightning.algorithm.evaluation",
    "evaluate": "agentlightning.algorithm.evaluation",
    "ModelRegistry": "agentlightning.registry",
    "ModelVersion": "agentlightning.registry",
    "ClientServerExecutionStrategy": "agentlightning.trainer.strategies",
    "ExecutionStrategy": "agentlightning.trainer.strategies",
    "SharedMemoryExecutionStrategy": "agentlightning.trainer.strategies",
    "RunResult": "agentlightning.trainer.result",
    "Trainer": "agentlightning.trainer.trainer",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'agentlightning.trainer' has no attribute {name!r}")


__all__ = [
    "ClientServerExecutionStrategy",
    "Evaluation",
    "ExecutionStrategy",
    "ModelRegistry",
    "ModelVersion",
    "RunResult",
    "SharedMemoryExecutionStrategy",
    "Trainer",
    "evaluate",
]
