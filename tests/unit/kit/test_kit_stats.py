"""Intervals against published values; no reference implementation is called."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlightning.kit.stats import difference_interval, mean_interval, wilson_interval

# Newcombe (1998), "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17:857-872,
# table I, method 3 (score without continuity correction): r, n, lower, upper.
NEWCOMBE_SINGLE = [
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0000, 0.1611),
    (1, 29, 0.0061, 0.1718),
]

# Rows are a of m against b of n, then the bounds of the difference a/m - b/n. Source: Newcombe (1998), "Interval
# estimation for the difference between independent proportions", Statistics in Medicine 17:873-890, table II (10).
NEWCOMBE_DIFFERENCE = [
    (56, 70, 48, 80, 0.0524, 0.3339),
    (9, 10, 3, 10, 0.1705, 0.8090),
    (6, 7, 2, 7, 0.0582, 0.8062),
    (5, 56, 0, 29, -0.0381, 0.1926),
    (0, 10, 0, 20, -0.1611, 0.2775),
    (0, 10, 0, 10, -0.2775, 0.2775),
    (10, 10, 0, 20, 0.6791, 1.0000),
    (10, 10, 0, 10, 0.6075, 1.0000),
]


def bits(ones: int, n: int) -> list[float]:
    return [1.0] * ones + [0.0] * (n - ones)


@pytest.mark.parametrize(("r", "n", "low", "high"), NEWCOMBE_SINGLE)
def test_wilson_interval_equals_the_published_values(r, n, low, high):
    assert wilson_interval(r, n) == pytest.approx((low, high), abs=5.1e-5)


@pytest.mark.parametrize(("a", "m", "b", "n", "low", "high"), NEWCOMBE_DIFFERENCE)
def test_difference_interval_equals_the_published_values(a, m, b, n, low, high):
    delta, found_low, found_high = difference_interval(bits(b, n), bits(a, m))
    assert delta == pytest.approx(a / m - b / n)
    assert (found_low, found_high) == pytest.approx((low, high), abs=5.1e-5)


def test_wilson_of_no_trial_is_total_ignorance():
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_a_wider_quantile_gives_a_wider_interval():
    narrow, wide = wilson_interval(5, 20, z=1.0), wilson_interval(5, 20, z=3.0)
    assert wide[0] < narrow[0] < 0.25 < narrow[1] < wide[1]


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_contains_the_proportion_stays_in_0_1_and_mirrors(case):
    successes, n = case
    low, high = wilson_interval(successes, n)
    assert 0.0 <= low <= successes / n + 1e-12
    assert successes / n - 1e-12 <= high <= 1.0
    assert wilson_interval(n - successes, n) == pytest.approx((1 - high, 1 - low))


@given(st.integers(1, 100))
def test_more_data_at_the_same_rate_narrows_the_interval(successes):
    small = wilson_interval(successes, 2 * successes)
    large = wilson_interval(4 * successes, 8 * successes)
    assert large[1] - large[0] < small[1] - small[0]


def test_mean_interval_of_zeros_and_ones_is_wilson():
    assert mean_interval(bits(81, 263)) == pytest.approx((81 / 263, 0.2553, 0.3662), abs=5.1e-5)


def test_mean_interval_of_real_values_is_the_normal_one():
    # 1..10: mean 5.5, sample variance 55/6 (sum of squares 82.5 over 9), standard error sqrt(55/60) = 0.957427.
    mean, low, high = mean_interval([float(v) for v in range(1, 11)])
    assert mean == 5.5
    assert (low, high) == pytest.approx((5.5 - 1.959964 * 0.957427, 5.5 + 1.959964 * 0.957427), abs=1e-5)


def test_mean_interval_of_one_real_value_says_nothing():
    assert mean_interval([0.3]) == (0.3, -math.inf, math.inf)


def test_mean_interval_of_one_success_is_wilson():
    mean, low, high = mean_interval([1.0])
    assert (mean, high) == (1.0, 1.0)
    assert 0.2 < low < 0.21


def test_mean_interval_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="at least one value"):
        mean_interval([])


def test_equal_real_values_have_an_interval_of_no_width():
    assert mean_interval([0.5] * 4) == (0.5, 0.5, 0.5)


@given(
    st.lists(st.floats(-5, 5), min_size=2, max_size=30),
    st.lists(st.floats(-5, 5), min_size=2, max_size=30),
)
def test_difference_contains_its_mean_and_turns_its_sign(before, after):
    delta, low, high = difference_interval(before, after)
    assert low <= delta + 1e-9
    assert delta <= high + 1e-9
    assert difference_interval(after, before) == pytest.approx((-delta, -high, -low), abs=1e-9)


def test_an_obvious_gain_excludes_zero_and_no_gain_includes_it():
    assert difference_interval(bits(90, 256), bits(225, 256))[1] > 0
    _, low, high = difference_interval(bits(90, 256), bits(91, 256))
    assert low < 0 < high
