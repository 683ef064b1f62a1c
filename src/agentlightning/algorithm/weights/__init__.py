"""Algorithms that train weights; torch stays in the learner's process."""

from agentlightning.algorithm.weights.grpo import GRPO

__all__ = ["GRPO"]
