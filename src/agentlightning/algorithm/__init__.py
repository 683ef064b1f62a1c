"""Algorithms: scores in, better resources out. Weight training loads lazily."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from agentlightning.algorithm.base import Algorithm, Dataset, RunContext, RunStopped
from agentlightning.algorithm.decorator import FunctionalAlgorithm, algo

if TYPE_CHECKING:
    from agentlightning.algorithm.baseline import Baseline
    from agentlightning.algorithm.judged import PreferencePair, ScoredSample, preference_pairs, scored_samples
    from agentlightning.algorithm.prompt import (
        APO,
        GEPA,
        Auto,
        Budget,
        EditSearch,
        FewShot,
        HttpProposer,
        OptimizationResult,
        PromptOptimizer,
    )
    from agentlightning.algorithm.supervised import DPO, SFT, LearningResult
    from agentlightning.algorithm.weights.grpo import GRPO

_LAZY = {
    "Baseline": "agentlightning.algorithm.baseline",
    "PreferencePair": "agentlightning.algorithm.judged",
    "ScoredSample": "agentlightning.algorithm.judged",
    "preference_pairs": "agentlightning.algorithm.judged",
    "scored_samples": "agentlightning.algorithm.judged",
    "GRPO": "agentlightning.algorithm.weights.grpo",
    "DPO": "agentlightning.algorithm.supervised",
    "SFT": "agentlightning.algorithm.supervised",
    "LearningResult": "agentlightning.algorithm.supervised",
    "APO": "agentlightning.algorithm.prompt",
    "Auto": "agentlightning.algorithm.prompt",
    "EditSearch": "agentlightning.algorithm.prompt",
    "FewShot": "agentlightning.algorithm.prompt",
    "GEPA": "agentlightning.algorithm.prompt",
    "Budget": "agentlightning.algorithm.prompt",
    "HttpProposer": "agentlightning.algorithm.prompt",
    "OptimizationResult": "agentlightning.algorithm.prompt",
    "PromptOptimizer": "agentlightning.algorithm.prompt",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'agentlightning.algorithm' has no attribute {name!r}")


__all__ = [
    "APO",
    "DPO",
    "GEPA",
    "GRPO",
    "SFT",
    "Algorithm",
    "Auto",
    "Baseline",
    "Budget",
    "Dataset",
    "EditSearch",
    "FewShot",
    "FunctionalAlgorithm",
    "HttpProposer",
    "LearningResult",
    "OptimizationResult",
    "PreferencePair",
    "PromptOptimizer",
    "RunContext",
    "RunStopped",
    "ScoredSample",
    "algo",
    "preference_pairs",
    "scored_samples",
]
