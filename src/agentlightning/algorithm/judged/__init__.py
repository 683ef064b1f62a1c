"""What people and judges said of rollouts, as training data."""

from agentlightning.algorithm.judged.pairs import PreferencePair, preference_pairs
from agentlightning.algorithm.judged.samples import ScoredSample, scored_samples
from agentlightning.algorithm.judged.stream import Skips, Stream

__all__ = [
    "PreferencePair",
    "ScoredSample",
    "Skips",
    "Stream",
    "preference_pairs",
    "scored_samples",
]
