"""GRPO's own arithmetic: task order, samples, settings. No model, no store."""

from __future__ import annotations

import pytest

from agentlightning.agent.adapter import Trajectory
from agentlightning.algorithm import GRPO
from agentlightning.algorithm.rollouts import Outcome
from agentlightning.algorithm.weights.grpo import make_samples, task_index
from agentlightning.config import GRPOConfig
from agentlightning.kit.errors import ConfigError
from agentlightning.schemas import ModelCall


def outcome(name: str, group: str, reward: float | None, *, status: str = "succeeded") -> Outcome:
    call = ModelCall(rollout_id=name, attempt_id="a", sequence_id=1, span_id="s")
    trajectory = Trajectory(token_ids=[1, 2, 3], loss_mask=[0, 1, 1], logprobs=[0.0, -0.5, -0.25], span_ids=["s"])
    return Outcome(name, group, status, reward, [call], [trajectory])


def test_task_index_covers_each_epoch_exactly_once() -> None:
    first = [task_index(i, 10, seed=1) for i in range(10)]
    second = [task_index(i, 10, seed=1) for i in range(10, 20)]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert first == [task_index(i, 10, seed=1) for i in range(10)]
    assert first != [task_index(i, 10, seed=2) for i in range(10)]


def test_make_samples_gives_each_rollout_its_group_relative_advantage() -> None:
    batch = [outcome("a", "g", 1.0), outcome("b", "g", 0.0), outcome("c", "g", 0.0), outcome("d", "g", 1.0)]
    samples = make_samples(batch, scale=False)
    assert [s.rollout_id for s in samples] == ["a", "b", "c", "d"]
    assert [s.advantage for s in samples] == pytest.approx([0.5, -0.5, -0.5, 0.5])
    assert samples[0].token_ids == [1, 2, 3]
    assert samples[0].loss_mask == [0, 1, 1]
    assert samples[0].logprobs == [0.0, -0.5, -0.25]


def test_make_samples_leaves_out_groups_without_variance_and_rollouts_without_reward() -> None:
    batch = [outcome("a", "same", 1.0), outcome("b", "same", 1.0)]
    assert make_samples(batch, scale=True) == []
    # A missing reward must not count as 0: the group {1, None} has no variance.
    batch = [outcome("a", "g", 1.0), outcome("b", "g", None)]
    assert make_samples(batch, scale=True) == []


def test_settings_of_grpo_come_from_config_mapping_and_keywords_in_that_order() -> None:
    algorithm = GRPO({"steps": 7, "group_size": 4}, steps=9)
    assert (algorithm.config.steps, algorithm.config.group_size) == (9, 4)
    assert GRPO(GRPOConfig(steps=3), seed=5).config.model_dump() == GRPOConfig(steps=3, seed=5).model_dump()


def test_an_unknown_setting_is_an_error_that_names_the_closest_key() -> None:
    with pytest.raises(ConfigError, match=r"'learning_rat' is not honoured .*'learning_rate'"):
        GRPO(learning_rat=0.1)


def test_learning_rate_warms_up_and_reaches_zero_after_the_last_step() -> None:
    config = GRPOConfig(steps=10, learning_rate=1.0, warmup_steps=3)
    rates = [config.learning_rate_at(step) for step in range(10)]
    assert rates[:3] == pytest.approx([0.25, 0.45, 0.6])
    assert rates[3:] == pytest.approx([1 - step / 10 for step in range(3, 10)])
    assert config.learning_rate_at(10) == 0
    cosine = GRPOConfig(steps=4, learning_rate=1.0, warmup_steps=0, lr_schedule="cosine")
    assert [cosine.learning_rate_at(s) for s in (0, 2, 4)] == pytest.approx([1.0, 0.5, 0.0])
