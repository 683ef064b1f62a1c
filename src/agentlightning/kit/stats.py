"""Small-sample statistics used to report results honestly."""

from __future__ import annotations

import math
from collections.abc import Sequence

_Z95 = 1.959963984540054


def wilson_interval(successes: float, n: int, z: float = _Z95) -> tuple[float, float]:
    """95 % score interval of a proportion (Wilson 1927); `(0.0, 1.0)` when `n == 0`.

    Args:
        successes: Number of successes; may be fractional when rewards lie in [0, 1].
        n: Number of trials.
        z: Normal quantile.
    """
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    denominator = 1 + z * z / n
    centre = (p + z * z / (2 * n)) / denominator
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / denominator
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(values: Sequence[float], z: float = _Z95) -> tuple[float, float, float]:
    """Return `(mean, low, high)`: a Wilson interval for 0/1 values, else a normal one for any real rewards.

    Raises:
        ValueError: `values` is empty.
    """
    n = len(values)
    if n == 0:
        raise ValueError("an interval needs at least one value")
    mean = math.fsum(values) / n
    if all(v in (0.0, 1.0) for v in values):
        low, high = wilson_interval(math.fsum(values), n, z)
        return mean, low, high
    if n == 1:
        return mean, -math.inf, math.inf
    variance = math.fsum((v - mean) ** 2 for v in values) / (n - 1)
    half = z * math.sqrt(variance / n)
    return mean, mean - half, mean + half


def difference_interval(before: Sequence[float], after: Sequence[float]) -> tuple[float, float, float]:
    """Interval of `mean(after) - mean(before)` for independent samples (Newcombe 1998, method 10: square-and-add)."""
    mean_b, low_b, high_b = mean_interval(before)
    mean_a, low_a, high_a = mean_interval(after)
    delta = mean_a - mean_b
    low = delta - math.hypot(mean_a - low_a, high_b - mean_b)
    high = delta + math.hypot(high_a - mean_a, mean_b - low_b)
    return delta, low, high
