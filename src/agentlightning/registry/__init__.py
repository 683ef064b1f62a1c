"""Versions of models on disk: where each comes from, what was measured, and which one is in production."""

from agentlightning.registry.registry import ModelRegistry
from agentlightning.registry.version import ModelVersion, Stage, StageChange

__all__ = ["ModelRegistry", "ModelVersion", "Stage", "StageChange"]
