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


def paired_interval(pairs: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Return `(mean, low, high)` of `after - before` over pairs: the 95 % interval for measurements of the same things.

    For 0/1 values Newcombe's method 10 for paired proportions (1998, Statistics in Medicine 17: 2635-2650), which is
    honest where all pairs agree; else Student's t on the differences.

    Args:
        pairs: `(before, after)` of each thing.

    Raises:
        ValueError: `pairs` is empty.
    """
    n = len(pairs)
    if n == 0:
        raise ValueError("an interval needs at least one pair")
    differences = [after - before for before, after in pairs]
    mean = math.fsum(differences) / n
    if all(value in (0.0, 1.0) for pair in pairs for value in pair):
        return _newcombe_paired(pairs, mean)
    if n == 1:
        return mean, -math.inf, math.inf
    variance = math.fsum((d - mean) ** 2 for d in differences) / (n - 1)
    half = _t975(n - 1) * math.sqrt(variance / n)
    return mean, mean - half, mean + half


def _newcombe_paired(pairs: Sequence[tuple[float, float]], mean: float) -> tuple[float, float, float]:
    n = len(pairs)
    both = sum(b == a == 1 for b, a in pairs)
    only_after = sum(a > b for b, a in pairs)
    only_before = sum(b > a for b, a in pairs)
    neither = n - both - only_after - only_before
    after, before = (both + only_after) / n, (both + only_before) / n
    low_a, high_a = wilson_interval(both + only_after, n)
    low_b, high_b = wilson_interval(both + only_before, n)
    margins = (both + only_after) * (only_before + neither) * (both + only_before) * (only_after + neither)
    product = both * neither - only_after * only_before
    corrected = max(product - n / 2, 0.0) if product > 0 else float(product)
    phi = corrected / math.sqrt(margins) if margins else 0.0

    def half(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one * one - 2 * phi * one * other + other * other))

    return mean, mean - half(after - low_a, high_b - before), mean + half(high_a - after, before - low_b)


def _t975(degrees: int) -> float:
    """The 97.5 % quantile of Student's t (Abramowitz and Stegun 26.7.5; exact for 1 and 2 degrees of freedom)."""
    if degrees == 1:
        return 12.706204736432095
    if degrees == 2:
        return 4.302652729749464
    z, v = _Z95, float(degrees)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    fourth = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    return z + first / v + second / v**2 + third / v**3 + fourth / v**4
