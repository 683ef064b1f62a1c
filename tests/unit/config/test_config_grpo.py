import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlightning.config import GRPOConfig
from agentlightning.kit.errors import ConfigError


def rates(**values) -> list[float]:
    config = GRPOConfig(learning_rate=1.0, **values)
    return [config.learning_rate_at(step) for step in range(config.steps)]


def test_constant_without_warm_up_is_constant():
    assert rates(steps=4, lr_schedule="constant", warmup_steps=0) == [1.0] * 4


def test_warm_up_climbs_linearly_and_reaches_the_peak_after_its_steps():
    assert rates(steps=5, lr_schedule="constant", warmup_steps=3) == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def test_linear_falls_evenly_towards_zero():
    assert rates(steps=4, lr_schedule="linear", warmup_steps=0) == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_cosine_is_half_way_in_the_middle():
    found = rates(steps=4, lr_schedule="cosine", warmup_steps=0)
    assert found[0] == 1.0
    assert found[2] == pytest.approx(0.5)
    assert found == sorted(found, reverse=True)


@given(
    st.integers(1, 200),
    st.integers(0, 50),
    st.sampled_from(["linear", "cosine", "constant"]),
)
def test_every_step_learns_and_none_exceeds_the_peak(steps, warmup, schedule):
    found = rates(steps=steps, warmup_steps=warmup, lr_schedule=schedule)
    assert all(0.0 < rate <= 1.0 for rate in found)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"group_size": 1}, "group_size"),
        ({"steps": 0}, "steps"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"temperature": 0}, "temperature"),
        ({"lr_schedule": "exponential"}, "lr_schedule"),
        ({"loss_type": "ppo"}, "loss_type"),
        ({"max_missing_fraction": 1.5}, "max_missing_fraction"),
        ({"group_sise": 4}, "did you mean 'group_size'"),
        ({"prompts_per_step": 1, "group_size": 2, "minibatches": 3}, "minibatches cannot exceed"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_key(values, message):
    with pytest.raises(ConfigError, match=message):
        GRPOConfig(**values)


def test_as_many_minibatches_as_samples_are_allowed():
    assert GRPOConfig(prompts_per_step=1, group_size=2, minibatches=2).minibatches == 2
