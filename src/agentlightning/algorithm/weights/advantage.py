"""Rewards of a group of rollouts to advantages. Plain Python; knows nothing of tokens, models or the store."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

STD_EPSILON = 1e-4


@dataclass(frozen=True)
class GroupAdvantages:
    """Advantages of one group, in the order of its rewards; `None` where there was no reward.

    `flat` is true when the group carries no signal: fewer than two rewards, or all of them equal. All its advantages
    are then 0.0.
    """

    advantages: list[float | None]
    flat: bool


def group_advantages(
    rewards: Sequence[float | None],
    *,
    scale_by_std: bool = True,
    leave_one_out: bool = False,
    epsilon: float = STD_EPSILON,
) -> GroupAdvantages:
    """Compare each rollout with the others of its group.

    GRPO (Shao et al. 2024): `(reward - mean) / (std + epsilon)` with the sample standard deviation (n - 1), as TRL has
    it. Without scaling it is Dr. GRPO's (Liu et al. 2025). Leave-one-out takes the mean of the others as baseline
    (RLOO, Ahmadian et al. 2024).

    Args:
        rewards: One per rollout of the same task; `None` for no reward: excluded from mean and deviation.
        scale_by_std: Whether to divide by the group's standard deviation.
        leave_one_out: Whether the baseline leaves out the rollout itself.
        epsilon: Added to the standard deviation.

    Raises:
        ValueError: A reward is not finite.
    """
    known = [float(r) for r in rewards if r is not None]
    if not all(math.isfinite(r) for r in known):
        raise ValueError(f"rewards must be finite numbers or None, got {list(rewards)}")
    count = len(known)
    if count < 2 or all(r == known[0] for r in known):
        return GroupAdvantages([None if r is None else 0.0 for r in rewards], flat=True)
    mean = math.fsum(known) / count
    scale = count / (count - 1) if leave_one_out else 1.0
    if scale_by_std:
        std = math.sqrt(math.fsum((r - mean) ** 2 for r in known) / (count - 1))
        scale /= std + epsilon
    return GroupAdvantages([None if r is None else (float(r) - mean) * scale for r in rewards], flat=False)
