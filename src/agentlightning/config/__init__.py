"""Typed settings and run configs; strict and torch-free."""

from agentlightning.config.grpo import GRPOConfig
from agentlightning.config.serving import ModelSpec
from agentlightning.config.settings import Settings
from agentlightning.config.strict import StrictModel

__all__ = ["GRPOConfig", "ModelSpec", "Settings", "StrictModel"]
