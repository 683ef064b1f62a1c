"""What a run achieved, and the sums behind it. Knows nothing of how it was run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentlightning.algorithm.prompt import OptimizationResult
from agentlightning.algorithm.supervised import LearningResult
from agentlightning.kit.stats import difference_interval
from agentlightning.registry import ModelVersion


@dataclass
class RunResult:
    """What a run achieved. `before` and `after` map `"<data set>/<sampled|greedy>"` to evaluations."""

    run_id: str
    directory: Path
    before: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    after: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    gain: tuple[float, float, float] | None = None
    """Change of the first sampled evaluation: (mean, low, high) of its 95 % interval."""
    model: ModelVersion | None = None
    """The registered version, when the gain's interval excludes zero."""
    optimization: OptimizationResult | None = None
    """The best prompts, when a prompt optimizer ran."""
    learning: LearningResult | None = None
    """What was learned from, and how held-out examples changed, when `SFT` or `DPO` ran."""
    seconds: float = 0.0


def without_rewards(evaluations: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Evaluations without the reward of each rollout."""
    return {name: {k: v for k, v in e.items() if k != "rewards"} for name, e in evaluations.items()}


def as_evaluations(found: OptimizationResult) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """What a prompt optimizer compared, as evaluations before and after."""
    before = {c.data: {"accuracy": c.before, "n": c.n, "held_out": c.held_out} for c in found.comparisons}
    after = {c.data: {"accuracy": c.after, "n": c.n, "held_out": c.held_out} for c in found.comparisons}
    return before, after


def reward_gain(before: dict[str, Any], after: dict[str, Any]) -> tuple[float, float, float] | None:
    """Change of the first sampled evaluation: mean and 95 % interval; `None` where there is none."""
    key = next((name for name in before if name.endswith("/sampled") and name in after), None)
    if key is None:
        return None
    return difference_interval(
        [r for r in before[key]["rewards"] if r is not None],
        [r for r in after[key]["rewards"] if r is not None],
    )
