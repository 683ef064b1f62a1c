"""Prompt optimizers: an agent's prompts in, better ones out, with the scores that show it. Names load on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentlightning.algorithm.asking import HttpProposer
    from agentlightning.algorithm.prompt.apo import APO
    from agentlightning.algorithm.prompt.auto import Auto
    from agentlightning.algorithm.prompt.budget import Budget
    from agentlightning.algorithm.prompt.candidate import Candidate
    from agentlightning.algorithm.prompt.choice import Optimizer, make_optimizer
    from agentlightning.algorithm.prompt.edit import EditSearch
    from agentlightning.algorithm.prompt.fewshot import FewShot
    from agentlightning.algorithm.prompt.gepa import GEPA
    from agentlightning.algorithm.prompt.lineage import Tree, read_tree
    from agentlightning.algorithm.prompt.optimizer import PromptOptimizer
    from agentlightning.algorithm.prompt.result import Comparison, OptimizationResult, read_prompts

_LAZY = {
    "APO": "apo",
    "Auto": "auto",
    "EditSearch": "edit",
    "FewShot": "fewshot",
    "GEPA": "gepa",
    "Budget": "budget",
    "Candidate": "candidate",
    "Optimizer": "choice",
    "make_optimizer": "choice",
    "Tree": "lineage",
    "read_tree": "lineage",
    "PromptOptimizer": "optimizer",
    "Comparison": "result",
    "OptimizationResult": "result",
    "read_prompts": "result",
}


def __getattr__(name: str) -> Any:
    if name == "HttpProposer":
        return importlib.import_module("agentlightning.algorithm.asking").HttpProposer
    if name in _LAZY:
        return getattr(importlib.import_module(f"agentlightning.algorithm.prompt.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'agentlightning.algorithm.prompt' has no attribute {name!r}")


__all__ = [
    "APO",
    "GEPA",
    "Auto",
    "Budget",
    "Candidate",
    "Comparison",
    "EditSearch",
    "FewShot",
    "HttpProposer",
    "OptimizationResult",
    "Optimizer",
    "PromptOptimizer",
    "Tree",
    "make_optimizer",
    "read_prompts",
    "read_tree",
]
