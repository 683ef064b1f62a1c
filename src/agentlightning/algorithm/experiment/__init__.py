"""Comparing two versions while they work, and deciding when it is time to improve again."""

from agentlightning.algorithm.experiment.abtest import ABTest, Arm, Verdict
from agentlightning.algorithm.experiment.comparison import Comparison
from agentlightning.algorithm.experiment.schedule import Schedule, Trigger

__all__ = ["ABTest", "Arm", "Comparison", "Schedule", "Trigger", "Verdict"]
