"""The purse counts, forecasts and stops."""

from __future__ import annotations

import math

import pytest

from agentlightning.algorithm.prompt.budget import Budget, BudgetSpent, Purse
from agentlightning.kit.errors import ConfigError


def test_without_limits_everything_is_affordable() -> None:
    purse = Purse(Budget())
    purse.require(rollouts=10**9)
    assert purse.affordable_rollouts() == math.inf
    assert purse.remaining_s() is None


def test_what_rollouts_cost_so_far_is_what_they_will_cost() -> None:
    purse = Purse(Budget(calls=20, tokens=1000))
    assert purse.affordable_rollouts() == 20  # a rollout has at least one call
    purse.spent.rollouts = 2
    purse.charge("m", calls=4, input_tokens=60, output_tokens=40)
    assert purse.affordable_rollouts() == 8
    purse.keep_back(3)
    assert purse.affordable_rollouts() == 5
    purse.require(rollouts=3, calls=2)
    with pytest.raises(BudgetSpent, match="4 of 20 calls, 100 of 1000 tokens"):
        purse.require(rollouts=6)


def test_a_question_makes_no_rollout_cost_more_calls() -> None:
    purse = Purse(Budget(calls=20))
    purse.spent.rollouts = 5
    purse.charge("m", calls=5)
    purse.charge("writer", calls=3, is_question=True)
    assert purse.affordable_rollouts() == 12
    purse.charge("m", calls=4)  # a judge's, say: rollouts cost (5 + 4) / 5 calls
    assert purse.affordable_rollouts() == 4


def test_what_a_question_costs_in_tokens_is_spread_over_the_rollouts() -> None:
    purse = Purse(Budget(tokens=1000))
    purse.spent.rollouts = 5
    purse.charge("m", calls=5, input_tokens=50)
    purse.charge("writer", input_tokens=200, is_question=True)
    assert purse.affordable_rollouts() == 15


def test_a_limit_that_is_reached_allows_nothing() -> None:
    purse = Purse(Budget(tokens=10))
    purse.charge("m", input_tokens=10)
    assert purse.affordable_rollouts() == 0


def test_time_before_an_interruption_counts() -> None:
    purse = Purse(Budget(wall_s=100), spent_s=101)
    assert purse.remaining_s() == 0
    assert purse.affordable_rollouts() == 0


def test_money_is_counted_by_price() -> None:
    purse = Purse(Budget(usd=1, prices={"m": (1.0, 2.0)}), price_of={"other": (10.0, 10.0)}.get)
    purse.charge("m", input_tokens=1000, output_tokens=1000)
    assert purse.spent.usd == pytest.approx(0.003)
    purse.charge("other", input_tokens=1000)
    assert purse.spent.usd == pytest.approx(0.013)
    assert "0.0130 of 1 USD" in purse.told()
    with pytest.raises(ConfigError, match="price of 'third' is not known"):
        purse.charge("third")
    free = Purse(Budget())
    free.charge("third")
    assert free.spent.unpriced_calls == 1
    assert free.as_dict()["calls"] == 1


@pytest.mark.parametrize("limit", [0, -1, math.nan, math.inf])
def test_a_budget_allows_something(limit: float) -> None:
    with pytest.raises(ConfigError, match="allows nothing"):
        Budget(usd=limit)


def test_what_is_set_aside_comes_back() -> None:
    purse = Purse(Budget(calls=10))
    purse.keep_back(2)
    with purse.setting_aside(5):
        assert purse.affordable_rollouts() == 3
        with pytest.raises(BudgetSpent):
            purse.require(rollouts=4)
    assert purse.affordable_rollouts() == 8
