import math
import statistics

import pytest

from agentlightning.algorithm.weights.advantage import group_advantages


def test_rewards_are_centred_and_scaled_by_the_sample_deviation():
    rewards = [0.0, 1.0, 1.0, 0.25]
    group = group_advantages(rewards)
    mean, std = statistics.mean(rewards), statistics.stdev(rewards)
    assert group.advantages == pytest.approx([(r - mean) / (std + 1e-4) for r in rewards])
    assert not group.flat


def test_without_scaling_only_the_mean_goes():
    assert group_advantages([0.0, 1.0], scale_by_std=False).advantages == [-0.5, 0.5]


def test_leave_one_out_compares_with_the_others():
    rewards = [0.0, 1.0, 4.0]
    group = group_advantages(rewards, scale_by_std=False, leave_one_out=True)
    assert group.advantages == pytest.approx([0.0 - 2.5, 1.0 - 2.0, 4.0 - 0.5])


def test_no_reward_is_not_zero():
    group = group_advantages([1.0, None, 0.0])
    assert group.advantages[1] is None
    assert group.advantages[::2] == group_advantages([1.0, 0.0]).advantages


@pytest.mark.parametrize("rewards", [[], [1.0], [None, 1.0], [0.5, 0.5], [0.1 + 0.2] * 3, [None, None]])
def test_a_group_without_differences_is_flat(rewards):
    group = group_advantages(rewards)
    assert group.flat
    assert group.advantages == [None if r is None else 0.0 for r in rewards]


@pytest.mark.parametrize("reward", [math.nan, math.inf])
def test_rewards_that_are_not_finite_are_refused(reward):
    with pytest.raises(ValueError, match="finite"):
        group_advantages([0.0, reward])
