"""Runners: claim rollouts, run the agent on them, report."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentlightning.runner.base import Runner
    from agentlightning.runner.command import CommandAgent
    from agentlightning.runner.failure import Failure
    from agentlightning.runner.policy import FailurePolicy
    from agentlightning.runner.process import RunnerPool
    from agentlightning.runner.ray_pool import RayPool
    from agentlightning.runner.runner import LitAgentRunner

__all__ = ["CommandAgent", "Failure", "FailurePolicy", "LitAgentRunner", "RayPool", "Runner", "RunnerPool"]

_MODULES = {
    "CommandAgent": "command",
    "Failure": "failure",
    "FailurePolicy": "policy",
    "LitAgentRunner": "runner",
    "RayPool": "ray_pool",
    "Runner": "base",
    "RunnerPool": "process",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
