"""Fine-tuning on given texts: SFT on demonstrations and best traces, DPO on preference pairs."""

from agentlightning.algorithm.supervised.dpo import DPO
from agentlightning.algorithm.supervised.learning import LearningResult, Supervised
from agentlightning.algorithm.supervised.sft import SFT

__all__ = ["DPO", "SFT", "LearningResult", "Supervised"]
