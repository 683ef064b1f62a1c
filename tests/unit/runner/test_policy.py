"""What failures mean, and which class they are."""

from __future__ import annotations

import pickle

import httpx
import openai
import pytest

from agentlightning import FailurePolicy
from agentlightning.agent import BadResultError
from agentlightning.kit.errors import ConfigError, StorageError, UpstreamError
from agentlightning.runner.failure import (
    AgentExitError,
    AttemptTimeoutError,
    Failure,
    NoRewardError,
    RolloutCancelledError,
    RunnerCrashedError,
    classify,
)
from agentlightning.schemas import Rollout, RolloutConfig

REQUEST = httpx.Request("POST", "http://x")


def status_error(status: int) -> openai.APIStatusError:
    kind = openai.InternalServerError if status >= 500 else openai.BadRequestError
    return kind("no", response=httpx.Response(status, request=REQUEST), body=None)


class MyConnectionError(Exception):
    """Of no client library, so nothing is known of it."""


def wrapped(inner: Exception) -> Exception:
    try:
        try:
            raise inner
        except Exception as error:
            raise RuntimeError("tool failed") from error
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("x"), "agent_error"),
        (TimeoutError("the agent's own"), "agent_error"),
        (AgentExitError("x"), "agent_error"),
        (BadResultError("x"), "bad_result"),
        (AttemptTimeoutError("x"), "timeout"),
        (NoRewardError("x"), "no_reward"),
        (RolloutCancelledError("x"), "cancelled"),
        (RunnerCrashedError("x"), "crashed"),
        (UpstreamError("x"), "upstream"),
        (StorageError("x"), "upstream"),
        (ConnectionRefusedError(), "upstream"),
        (httpx.ConnectError("x"), "upstream"),
        (httpx.ReadTimeout("x"), "upstream"),
        (openai.APIConnectionError(request=REQUEST), "upstream"),
        (openai.APITimeoutError(request=REQUEST), "upstream"),
        (status_error(503), "upstream"),
        (status_error(429), "upstream"),
        (status_error(400), "agent_error"),
        (wrapped(status_error(500)), "upstream"),
        (wrapped(KeyError()), "agent_error"),
        (ExceptionGroup("tasks", [KeyError(), status_error(502)]), "upstream"),
        (ExceptionGroup("tasks", [KeyError()]), "agent_error"),
        (MyConnectionError(), "agent_error"),
    ],
)
def test_errors_have_their_class(error, expected):
    assert classify(error) == expected


def test_causes_in_a_circle_do_no_harm():
    one, two = ValueError(), KeyError()
    one.__cause__, two.__cause__ = two, one
    assert classify(one) == "agent_error"


def test_failures_are_data_of_bounded_size():
    try:
        raise ValueError("x" * 10_000)
    except ValueError as error:
        data = Failure.of(error).as_metadata()
    assert data["class"] == "agent_error"
    assert data["type"] == "ValueError"
    assert len(data["message"]) == 4_000
    assert data["traceback"].rstrip().endswith("x")


def rollout(**config) -> Rollout:
    return Rollout(rollout_id="r", input=1, start_time=0.0, config=RolloutConfig(**config))


def decide(error, policy=None, attempt=1, **config):
    return (policy or FailurePolicy()).decide(Failure.of(error), rollout(**config), attempt)


@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [
        (ValueError(), "drop", "failed"),
        (BadResultError("x"), "drop", "failed"),
        (AttemptTimeoutError("x"), "drop", "timeout"),
        (UpstreamError("x"), "retry", "failed"),
        (RunnerCrashedError("x"), "retry", "failed"),
        (RolloutCancelledError("x"), "retry", "failed"),
        (NoRewardError("x"), "keep", "succeeded"),
    ],
)
def test_defaults(error, kind, status):
    decision = decide(error)
    assert (decision.kind, decision.status) == (kind, status)


def test_retry_makes_the_store_grant_it_until_attempts_run_out():
    decision = decide(UpstreamError("x"))
    assert decision.config == RolloutConfig(max_attempts=3, retry_condition=["failed"])
    assert decide(UpstreamError("x"), attempt=2).kind == "retry"
    assert decide(UpstreamError("x"), attempt=3).kind == "drop"
    assert decide(UpstreamError("x"), FailurePolicy(retries=0)).kind == "drop"
    own = decide(UpstreamError("x"), max_attempts=2, retry_condition=["unresponsive"])
    assert own.config == RolloutConfig(max_attempts=2, retry_condition=["unresponsive", "failed"])
    assert decide(UpstreamError("x"), attempt=2, max_attempts=2).kind == "drop"


def test_being_stopped_costs_no_attempt():
    decision = decide(RolloutCancelledError("x"), attempt=3, max_attempts=3)
    assert decision.kind == "retry"
    assert decision.config.max_attempts == 4


def test_retry_condition_of_the_rollout_comes_first():
    own = {"max_attempts": 2, "retry_condition": ["failed"]}
    assert decide(ValueError(), **own).kind == "retry"
    assert decide(ValueError(), **own).config is None
    assert decide(ValueError(), attempt=2, **own).kind == "drop"
    scored = FailurePolicy(agent_error="score:-1")
    assert decide(ValueError(), scored, attempt=2, **own).reward == -1.0


def test_score_is_a_success_with_that_reward():
    decision = decide(AttemptTimeoutError("x"), FailurePolicy(timeout="score:0"))
    assert (decision.kind, decision.status, decision.reward) == ("score", "succeeded", 0.0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"timeouts": "drop"}, "Unknown error class timeouts. There are agent_error"),
        ({"timeout": "ignore"}, "Unknown action 'ignore' for timeout. Choose one of retry, drop, score"),
        ({"timeout": "score:high"}, "'score:high'"),
        ({"timeout": "score:nan"}, "'score:nan'"),
        ({"timeout": "score"}, "'score'"),
        ({"timeout": "keep"}, "'keep' for timeout"),
        ({"no_reward": "save"}, "keep"),
        ({"retries": -1}, "negative"),
    ],
)
def test_unknown_classes_and_actions_are_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        FailurePolicy(**options)


def test_policy_travels_and_shows_itself():
    policy = pickle.loads(pickle.dumps(FailurePolicy(timeout="score:0.5", retries=4)))
    assert "timeout='score:0.5'" in repr(policy)
    assert "retries=4" in repr(policy)
