"""The signal check names what is missing."""

from __future__ import annotations

import pytest

from agentlightning.agent.adapter import Trajectory
from agentlightning.algorithm.evaluation import summarize
from agentlightning.algorithm.rollouts import Outcome
from agentlightning.algorithm.signal import check_signal, signal_report
from agentlightning.kit.errors import SignalError
from agentlightning.schemas import ModelCall


def rollout(
    group: str, reward: float | None, *, calls: bool = True, trainable: bool = True, error: str = ""
) -> Outcome:
    call = ModelCall(
        rollout_id="r",
        attempt_id="a",
        sequence_id=1,
        span_id="s",
        not_trainable_because=None if trainable else "the upstream does not report token ids",
    )
    trajectory = Trajectory(token_ids=[1, 2], loss_mask=[0, 1], logprobs=[0.0, -1.0], span_ids=["s"])
    return Outcome(
        rollout_id="r",
        group_id=group,
        status="failed" if error else "succeeded",
        reward=reward,
        calls=[call] if calls else [],
        trajectories=[trajectory] if calls and trainable else [],
        error={"class": error, "message": "boom"} if error else None,
    )


def test_a_good_batch_passes_and_is_counted() -> None:
    report = check_signal([rollout("g", 1.0), rollout("g", 0.0), rollout("h", 1.0), rollout("h", 1.0)])
    assert (report.rollouts, report.trainable, report.groups, report.groups_with_variance) == (4, 4, 2, 1)


@pytest.mark.parametrize(
    ("batch", "message", "hint"),
    [
        ([rollout("g", None), rollout("g", None)], "none of 2 rollouts has a reward", "emit_reward"),
        ([rollout("g", 1.0, calls=False), rollout("g", 0.0, calls=False)], "no model call was captured", "base URL"),
        (
            [rollout("g", 1.0, trainable=False), rollout("g", 0.0, trainable=False)],
            "does not report token ids",
            "embedded engine",
        ),
        ([rollout("g", 0.0), rollout("g", 0.0)], "every advantage is zero", "group_size"),
        ([rollout("g", None, error="timeout")] * 2, "2 x error: timeout", "emit_reward"),
    ],
)
def test_what_is_missing_is_named_with_the_next_step(batch: list[Outcome], message: str, hint: str) -> None:
    with pytest.raises(SignalError, match=message) as caught:
        check_signal(batch)
    assert hint in caught.value.hint


def test_too_many_unusable_rollouts_end_the_run_with_the_causes() -> None:
    batch = [rollout("g", 1.0), rollout("g", 0.0), *[rollout("g", None, error="agent_error")] * 3]
    with pytest.raises(SignalError, match=r"3 of 5 .* 3 x error: agent_error"):
        check_signal(batch)
    assert check_signal(batch, max_missing_fraction=0.7).trainable == 2


def test_a_missing_reward_is_no_zero_in_variance() -> None:
    assert signal_report([rollout("g", 1.0), rollout("g", None)]).groups_with_variance == 0


def test_summary_counts_missing_rewards_apart() -> None:
    result = summarize([rollout("g", 1.0), rollout("g", 0.0), rollout("g", None, error="timeout")], label="x")
    assert (result.accuracy, result.n, result.missing) == (0.5, 2, 1)
    assert result.missing_reasons == {"error: timeout": 1}
    assert result.ci_low < 0.5 < result.ci_high
    assert "rewards" not in result.as_dict()


def test_an_evaluation_without_any_reward_is_an_error_with_the_first_cause() -> None:
    with pytest.raises(SignalError, match=r"none of 2 .* First error: boom"):
        summarize([rollout("g", None, error="agent_error")] * 2, label="x")
