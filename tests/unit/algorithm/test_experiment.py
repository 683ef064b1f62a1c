"""A/B tests that may be looked at after every result, and schedules."""

import json
import math
import random
import statistics
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlightning.algorithm.experiment import ABTest, Schedule
from agentlightning.algorithm.experiment.sequence import Moments, difference_sequence
from agentlightning.kit.errors import BadInputError, ConfigError

VALUES = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30)


@given(VALUES)
def test_moments_are_those_of_the_values(values: list[float]):
    found = Moments()
    for value in values:
        found = found.plus(value)
    assert found.n == len(values)
    assert found.mean == pytest.approx(statistics.fmean(values), abs=1e-9)
    if len(values) > 1:
        assert found.variance == pytest.approx(statistics.variance(values), abs=1e-6)
        less, expected = found.less(values[-1]), values[:-1]
        assert less.mean == pytest.approx(statistics.fmean(expected), abs=1e-9)
        assert less.squares == pytest.approx(
            Moments(1, 0, 0).variance + sum((v - less.mean) ** 2 for v in expected), abs=1e-5
        )


def _experiment(seed: int, rewards: tuple[float, float], ratio: float = 0.5, n: int = 300) -> tuple[str | None, int]:
    """Looks after each result; says who won, and after how many."""
    chance = random.Random(seed)
    test = ABTest(f"experiment {seed}", control_ratio=ratio, experiment_duration=n)
    for number in range(n):
        arm = test.assign(str(number))
        test.record(arm, float(chance.random() < rewards[arm == "treatment"]))
        verdict = test.verdict()
        if verdict.is_over:
            return verdict.winner, number + 1
    raise AssertionError("it ends with the planned number of results")


@pytest.mark.parametrize(("reward", "ratio"), [(0.5, 0.5), (0.9, 0.1)])
def test_equal_arms_are_hardly_ever_told_apart_however_often_one_looks(reward: float, ratio: float):
    won = sum(_experiment(seed, (reward, reward), ratio)[0] is not None for seed in range(150))
    assert won <= 12, "alpha is 5 %: of 150, 7.5 are expected at most, and 13 or more have a chance of 4 %"


def test_a_real_difference_is_found_early():
    found = [_experiment(seed, (0.3, 0.8)) for seed in range(40)]
    assert sum(winner == "treatment" for winner, _ in found) == 40
    assert statistics.median(n for _, n in found) < 100
    assert {_experiment(seed, (0.8, 0.3))[0] for seed in range(10)} == {"control"}


def test_the_interval_is_wider_than_one_that_is_looked_at_once():
    arm = Moments(50, 0.5, 50 * 0.25)
    _, low, high = difference_sequence(arm, arm, planned=100)
    once = 1.96 * math.sqrt(2 * 0.25 / 50)
    assert once < high == -low < 2.2 * once
    assert difference_sequence(arm, Moments(1, 1.0, 0.0))[1:] == (-math.inf, math.inf)


def test_a_key_always_meets_the_same_arm_and_shares_are_kept():
    test, same, other = ABTest("a", control_ratio=0.2), ABTest("a", control_ratio=0.2), ABTest("b", control_ratio=0.2)
    keys = [f"user {number}" for number in range(5000)]
    arms = [test.assign(key) for key in keys]
    assert arms == [same.assign(key) for key in keys]
    assert arms != [other.assign(key) for key in keys]
    assert 0.18 < arms.count("control") / len(arms) < 0.22


def test_results_of_one_key_are_one_result():
    test = ABTest()
    for reward in (1.0, 0.0, 0.5):
        test.record("control", reward, key="ada")
    test.record("control", 1.0)
    verdict = test.verdict()
    assert verdict.n == {"control": 2, "treatment": 0}
    assert verdict.mean == {"control": 0.75, "treatment": None}
    assert verdict.difference is None
    with pytest.raises(BadInputError, match="other arm"):
        test.record("treatment", 1.0, key="ada")


def test_no_reward_is_not_zero_and_is_told():
    test = ABTest(experiment_duration=30)
    for _ in range(15):
        test.record("control", 1.0)
        test.record("treatment", None)
    verdict = test.verdict()
    assert (verdict.winner, verdict.is_over) == (None, True)
    assert verdict.missing == {"control": 0, "treatment": 15}
    assert "treatment has 0 rewards" in verdict.reason
    assert "15 results have no reward" in verdict.reason


def test_equal_rewards_tell_nothing_and_an_experiment_ends():
    test = ABTest(experiment_duration=40)
    for _ in range(20):
        test.record("control", 1.0)
        test.record("treatment", 1.0)
    assert test.verdict().reason == "all rewards are the same: they tell nothing"
    assert test.verdict().is_over


def test_a_difference_not_worth_having_ends_it():
    test = ABTest(experiment_duration=10_000, minimal_effect=0.3)
    for number in range(400):
        test.record("control", float(number % 2))
        test.record("treatment", float(number % 2))
    verdict = test.verdict()
    assert (verdict.winner, verdict.is_over, verdict.reason) == (None, True, "no difference beyond 0.3")


def test_an_experiment_goes_on_from_what_was_kept():
    test = ABTest("kept", control_ratio=0.3, experiment_duration=60, minimal_effect=0.1)
    for number in range(40):
        key = str(number)
        test.record(test.assign(key), number / 40, key=key)
    test.record("control", None)
    kept = json.loads(json.dumps(test.as_dict()))
    again = ABTest.from_dict(kept)
    assert again.as_dict() == test.as_dict()
    for each in (test, again):
        each.record("control", 1.0, key="new")
    assert again.verdict() == test.verdict()
    assert json.loads(json.dumps(ABTest().verdict().as_dict()))["ci_low"] is None
    for broken in ({}, {**kept, "moments": 3}, {**kept, "keys": [1]}, {**kept, "control_ratio": None}):
        with pytest.raises(BadInputError):
            ABTest.from_dict(broken)


@pytest.mark.parametrize(
    "given",
    [{"control_ratio": 0}, {"control_ratio": 1.5}, {"experiment_duration": 10}, {"alpha": 0}, {"minimal_effect": -1}],
)
def test_values_that_cannot_be_are_refused(given: dict[str, Any]):
    with pytest.raises(ConfigError):
        ABTest(**given)


@pytest.mark.parametrize(("arm", "reward"), [("middle", 1.0), ("control", math.nan), ("control", math.inf)])
def test_results_that_cannot_be_are_refused(arm: Any, reward: float):
    with pytest.raises(BadInputError):
        ABTest().record(arm, reward)


def test_periodic_counts_interactions_since_the_last_run():
    schedule = Schedule("periodic", periodic_interval=3)
    for _ in range(2):
        schedule.record(1.0)
        assert schedule.due() is None
    schedule.record(None)
    found = schedule.due()
    assert found is not None
    assert (found.kind, found.reason) == ("periodic", "3 interactions since the last run")
    assert schedule.due() is not None, "until it ran"
    schedule.ran()
    assert schedule.due() is None


def test_a_drop_triggers_whatever_the_schedule_and_awaits_new_results_after_a_run():
    schedule = Schedule("manual", trigger_on_performance_drop=True, performance_threshold=0.7, window=4)
    for reward in (1.0, 1.0, None, 1.0):
        schedule.record(reward)
    assert schedule.due() is None, "a reward nobody gave is not a bad one"
    for _ in range(2):
        schedule.record(0.0)
    found = schedule.due()
    assert found is not None
    assert found.kind == "drop"
    assert "0.5, below 0.7" in found.reason
    schedule.ran()
    for _ in range(3):
        schedule.record(0.0)
        assert schedule.due() is None
    schedule.record(0.0)
    assert schedule.due() is not None


def test_cron_is_due_at_its_time_and_once_for_all_that_was_missed():
    start = datetime(2026, 3, 1, 12, tzinfo=UTC)
    schedule = Schedule("cron", cron="0 3 * * *", started=start)
    assert schedule.next_time() == datetime(2026, 3, 2, 3, tzinfo=UTC)
    assert schedule.due(start + timedelta(hours=14)) is None
    late = start + timedelta(days=3)
    found = schedule.due(late)
    assert found is not None
    assert found.kind == "cron"
    schedule.ran(late)
    assert schedule.due(late) is None
    assert schedule.next_time() == datetime(2026, 3, 5, 3, tzinfo=UTC)


def test_manual_never_triggers_by_itself():
    schedule = Schedule()
    for _ in range(500):
        schedule.record(0.0)
    assert schedule.due() is None


def test_a_schedule_goes_on_from_what_was_kept():
    schedule = Schedule("periodic", periodic_interval=3, window=2)
    schedule.record(0.5)
    again = Schedule("periodic", periodic_interval=3, window=2)
    again.restore(json.loads(json.dumps(schedule.as_dict())))
    assert again.as_dict() == schedule.as_dict()
    with pytest.raises(BadInputError):
        again.restore({"interactions": "many"})


@pytest.mark.parametrize(
    "given",
    [
        {"schedule": "daily"},
        {"schedule": "cron"},
        {"schedule": "periodic", "cron": "* * * * *"},
        {"schedule": "cron", "cron": "every day"},
        {"schedule": "cron", "cron": "61 * * * *"},
        {"schedule": "periodic", "periodic_interval": 0},
        {"window": 0},
    ],
)
def test_schedules_that_cannot_be_are_refused(given: dict[str, Any]):
    with pytest.raises(ConfigError):
        Schedule(**given)
