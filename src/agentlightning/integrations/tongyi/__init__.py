"""The Tongyi research agent: plans, searches, reads, verifies, cites, and learns from what it was asked.

Names load on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentlightning.integrations.tongyi.agent import ResearchAgent
    from agentlightning.integrations.tongyi.config import TongyiConfig, load_config
    from agentlightning.integrations.tongyi.optimized_agent import OptimizedAgent, ResearchError
    from agentlightning.integrations.tongyi.optimized_claude_agent import OptimizedClaudeAgent
    from agentlightning.integrations.tongyi.optimized_tongyi_agent import OptimizedTongyiAgent
    from agentlightning.integrations.tongyi.records import Interaction, TrainingData
    from agentlightning.integrations.tongyi.research import Research
    from agentlightning.integrations.tongyi.tools import Toolset
    from agentlightning.integrations.tongyi.training_manager import TrainingManager, get_training_manager

_LAZY = {
    "ResearchAgent": "agent",
    "TongyiConfig": "config",
    "load_config": "config",
    "OptimizedAgent": "optimized_agent",
    "ResearchError": "optimized_agent",
    "OptimizedClaudeAgent": "optimized_claude_agent",
    "OptimizedTongyiAgent": "optimized_tongyi_agent",
    "Interaction": "records",
    "TrainingData": "records",
    "Research": "research",
    "Toolset": "tools",
    "TrainingManager": "training_manager",
    "get_training_manager": "training_manager",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"agentlightning.integrations.tongyi.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'agentlightning.integrations.tongyi' has no attribute {name!r}")


__all__ = [
    "Interaction",
    "OptimizedAgent",
    "OptimizedClaudeAgent",
    "OptimizedTongyiAgent",
    "Research",
    "ResearchAgent",
    "ResearchError",
    "TongyiConfig",
    "Toolset",
    "TrainingData",
    "TrainingManager",
    "get_training_manager",
    "load_config",
]
