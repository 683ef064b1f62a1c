"""Typed settings and run configs; strict and torch-free."""

from agentlightning.config.grpo import GRPOConfig
from agentlightning.config.serving import ModelSpec
from agentlightning.config.settings import Settings
from agentlightning.config.strict import StrictModel
from agentlightning.config.supervised import DPOConfig, SFTConfig, SupervisedConfig

__all__ = ["DPOConfig", "GRPOConfig", "ModelSpec", "SFTConfig", "Settings", "StrictModel", "SupervisedConfig"]
