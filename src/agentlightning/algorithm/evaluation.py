"""Evaluation: the mean reward of a policy on a data set, with its interval."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from agentlightning.algorithm.base import Dataset, RunContext
from agentlightning.algorithm.rollouts import Outcome, Plan, run_batch
from agentlightning.kit.errors import SignalError
from agentlightning.kit.stats import mean_interval


@dataclass(slots=True)
class Evaluation:
    """Mean reward with its 95 % interval; `n` counts the rollouts that got a reward, `missing` those that did not."""

    label: str
    accuracy: float
    ci_low: float
    ci_high: float
    n: int
    missing: int = 0
    missing_reasons: dict[str, int] = field(default_factory=dict[str, int])
    rewards: list[float | None] = field(default_factory=list["float | None"])
    rollout_ids: list[str] = field(default_factory=list[str])

    def as_dict(self) -> dict[str, Any]:
        """JSON-able summary without the per-rollout lists."""
        return {key: value for key, value in asdict(self).items() if key not in ("rewards", "rollout_ids")}


async def evaluate(
    context: RunContext,
    dataset: Dataset[Any],
    *,
    label: str,
    overrides: dict[str, Any] | None = None,
    limit: int | None = None,
    mode: str = "val",
    timeout_s: float = 120.0,
) -> Evaluation:
    """Run the agent once on each task of `dataset` (its first `limit`) and average the rewards.

    Rollout ids derive from the run and `label`, so that a repeated call after a restart reuses finished rollouts.

    Raises:
        SignalError: Not a single rollout got a reward.
    """
    n = min(len(dataset), limit or len(dataset))
    plans = [Plan(f"{context.run_id}.{label}.{index:04d}", dataset[index]) for index in range(n)]
    outcomes = await run_batch(
        context,
        plans,
        mode="test" if mode == "test" else "val",
        overrides=overrides,
        timeout_s=timeout_s,
        label=label,
        with_calls=False,
    )
    return summarize(outcomes, label=label)


def summarize(outcomes: Sequence[Outcome], *, label: str) -> Evaluation:
    """Average the rewards of outcomes; a missing reward is counted as missing, never as 0."""
    rewards = [outcome.reward for outcome in outcomes]
    present = [reward for reward in rewards if reward is not None]
    reasons: dict[str, int] = defaultdict(int)
    for outcome in outcomes:
        if outcome.reward is None:
            reasons[f"error: {outcome.error.get('class', 'unknown')}" if outcome.error else "no reward"] += 1
    if not present:
        causes = "; ".join(f"{count} x {reason}" for reason, count in reasons.items())
        first = next((o.error for o in outcomes if o.error), None)
        detail = f" First error: {first.get('message', first)}" if first else ""
        raise SignalError(
            f"Evaluation {label!r}: none of {len(outcomes)} rollouts has a reward ({causes}).{detail}",
            hint="Return a number from the agent, call agl.emit_reward(), or give an evaluator that scores its output.",
        )
    mean, low, high = mean_interval(present)
    return Evaluation(
        label=label,
        accuracy=mean,
        ci_low=low,
        ci_high=high,
        n=len(present),
        missing=len(rewards) - len(present),
        missing_reasons=dict(reasons),
        rewards=rewards,
        rollout_ids=[outcome.rollout_id for outcome in outcomes],
    )
