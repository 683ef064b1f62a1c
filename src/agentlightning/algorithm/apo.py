"""0.3's `agentlightning.algorithm.apo`."""

from agentlightning.algorithm.prompt.apo import APO

__all__ = ["APO"]
