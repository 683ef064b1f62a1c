"""Intervals against published values."""

from __future__ import annotations

import math

import pytest

from agentlightning.kit.stats import paired_interval


def test_paired_intervals_of_proportions_follow_newcombe() -> None:
    # Newcombe 1998 (Statistics in Medicine 17: 2635), table III, method 10: 36 both, 12 and 2 discordant, 0 neither.
    pairs = [(1.0, 1.0)] * 36 + [(0.0, 1.0)] * 12 + [(1.0, 0.0)] * 2
    mean, low, high = paired_interval(pairs)
    assert mean == pytest.approx(0.2)
    assert (low, high) == (pytest.approx(0.0569, abs=1e-3), pytest.approx(0.3404, abs=1e-3))


def test_pairs_that_all_agree_still_have_a_width() -> None:
    mean, low, high = paired_interval([(1.0, 1.0)] * 20)
    assert mean == 0
    assert low < 0 < high


def test_paired_intervals_of_other_rewards_are_students() -> None:
    mean, low, high = paired_interval([(0.0, 0.5), (0.0, 1.5), (0.0, 1.0)])
    assert mean == pytest.approx(1.0)
    assert high - mean == pytest.approx(4.302653 * 0.5 / 3**0.5) == pytest.approx(mean - low)
    assert paired_interval([(0.0, 0.5)]) == (0.5, -math.inf, math.inf)
    assert paired_interval([(0.0, 0.5), (0.0, 1.5)])[2] == pytest.approx(1 + 12.706205 * 0.5)
    wide = paired_interval([(0.0, n / 10) for n in range(11)])  # 10 degrees of freedom: t = 2.228
    assert wide[2] - wide[0] == pytest.approx(2.228139 * 0.331662 / 11**0.5, rel=1e-3)
    with pytest.raises(ValueError, match="at least one"):
        paired_interval([])
