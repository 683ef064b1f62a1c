"""What a failure means: retry it, drop it, or score it. One explicit action for each class of error."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast

from agentlightning.kit.errors import ConfigError
from agentlightning.runner.failure import ERROR_CLASSES, ErrorClass, Failure
from agentlightning.schemas import AttemptStatus, Rollout, RolloutConfig

ActionKind = Literal["retry", "drop", "score", "keep"]

DEFAULT_ACTIONS: dict[ErrorClass, str] = {
    "upstream": "retry",
    "crashed": "retry",
    "cancelled": "retry",
    "agent_error": "drop",
    "bad_result": "drop",
    "timeout": "drop",
    "no_reward": "keep",
}


@dataclass(frozen=True)
class Action:
    """A parsed action; `reward` belongs to `score`."""

    kind: ActionKind
    reward: float | None = None


@dataclass(frozen=True)
class Decision:
    """What happens to an attempt that failed."""

    kind: ActionKind
    status: AttemptStatus
    reward: float | None = None
    config: RolloutConfig | None = None
    """The rollout's new configuration, when the store must change it to grant the retry."""


class FailurePolicy:
    """One action per class of error.

    | class | when | default |
    |---|---|---|
    | `upstream` | a model server did not answer, or answered 5xx, 429 or 408 | `retry` |
    | `crashed` | the runner's process died; costs no attempt where others ran beside it | `retry` |
    | `cancelled` | the runner was stopped meanwhile | `retry`, at no cost of an attempt |
    | `agent_error` | the agent or evaluator raised | `drop` |
    | `bad_result` | what was returned is no reward | `drop` |
    | `timeout` | the time limit passed | `drop` |
    | `no_reward` | all went well, but nobody gave a reward | `keep` |

    `retry` queues the rollout again while attempts remain, then drops it. `drop` fails the rollout, so nothing learns
    from it. `score:<x>` lets the rollout succeed with reward x, marked as such. `keep` (only for `no_reward`) lets it
    succeed without a reward, which may still come from elsewhere. A rollout whose own `retry_condition` names the
    attempt's status is retried first, whatever is said here.

    Args:
        retries: Further attempts for rollouts whose configuration leaves `max_attempts` at 1.
        **actions: Class to action, e.g. `timeout="score:0"`.

    Raises:
        ConfigError: An unknown class or action.
    """

    def __init__(self, *, retries: int = 2, **actions: str) -> None:
        unknown = sorted(set(actions) - set(ERROR_CLASSES))
        if unknown:
            raise ConfigError(
                f"Unknown error class {', '.join(unknown)}.", hint=f"There are {', '.join(ERROR_CLASSES)}."
            )
        if retries < 0:
            raise ConfigError(f"retries must not be negative, it is {retries}.")
        self.retries = retries
        self.actions: dict[ErrorClass, Action] = {
            error_class: _parse(error_class, actions.get(error_class, default))
            for error_class, default in DEFAULT_ACTIONS.items()
        }

    def __repr__(self) -> str:
        parts = [f"{name}={_text(action)!r}" for name, action in self.actions.items()]
        return f"FailurePolicy(retries={self.retries}, {', '.join(parts)})"

    def decide(
        self, failure: Failure, rollout: Rollout, attempt_number: int, *, may_be_innocent: bool = False
    ) -> Decision:
        """What to do about `failure` of the attempt with that `sequence_id`.

        Args:
            failure: What happened.
            rollout: Whose attempt it was.
            attempt_number: The attempt's `sequence_id`.
            may_be_innocent: Whether others ran beside it, and nobody knows whose doing it was.
        """
        action = self.actions[failure.error_class]
        status: AttemptStatus = "timeout" if failure.error_class == "timeout" else "failed"
        config = rollout.config
        if status in config.retry_condition and attempt_number < config.max_attempts:
            return Decision("retry", status)
        if action.kind == "score":
            return Decision("score", "succeeded", reward=action.reward)
        if action.kind == "keep":
            return Decision("keep", "succeeded")
        if action.kind == "retry":
            allowed = config.max_attempts if config.max_attempts > 1 else 1 + self.retries
            if failure.error_class == "cancelled" or may_be_innocent:  # being stopped is nobody's fault
                allowed = max(allowed, attempt_number + 1)
            if attempt_number < allowed:
                return Decision("retry", status, config=_granting(config, status, allowed))
        return Decision("drop", status)


def _granting(config: RolloutConfig, status: AttemptStatus, max_attempts: int) -> RolloutConfig:
    condition = config.retry_condition if status in config.retry_condition else [*config.retry_condition, status]
    return config.model_copy(update={"max_attempts": max_attempts, "retry_condition": condition})


def _parse(error_class: ErrorClass, text: str) -> Action:
    if text in ("retry", "drop") or (text == "keep" and error_class == "no_reward"):
        return Action(cast("ActionKind", text))
    kind, _, number = text.partition(":")
    if kind == "score":
        try:
            reward = float(number)
        except ValueError:
            reward = math.nan
        if math.isfinite(reward):
            return Action("score", reward)
    choices = "retry, drop, score:<number>" + (", keep" if error_class == "no_reward" else "")
    raise ConfigError(f"Unknown action {text!r} for {error_class}.", hint=f"Choose one of {choices}.")


def _text(action: Action) -> str:
    return action.kind if action.reward is None else f"{action.kind}:{action.reward:g}"
