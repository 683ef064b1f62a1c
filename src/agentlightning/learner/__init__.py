"""Sampling from and training of a causal language model. Importing this room does not import torch."""

from agentlightning.learner.client import EngineClient
from agentlightning.learner.protocol import FitConfig, LossType, StepConfig

__all__ = ["EngineClient", "FitConfig", "LossType", "StepConfig"]
