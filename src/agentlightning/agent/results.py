"""What the return value of an agent or an evaluator means.

| returned | meaning |
|---|---|
| number, bool, one-element array | the reward |
| `None` | no reward from here; spans may carry one |
| `{"reward": number, ...}` | the reward; other numbers are further dimensions, other values are output |
| list of spans | recorded; a reward among them counts |
| anything else | `BadResultError`, unless an evaluator turns it into a reward |
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, cast

from opentelemetry.sdk.trace import ReadableSpan

from agentlightning.agent.emit.rewards import PRIMARY, RewardDimension, order_dimensions, to_number
from agentlightning.agent.errors import AgentSignatureError, BadResultError
from agentlightning.agent.inject import Arguments, Injector
from agentlightning.schemas import NamedResources, Rollout, Span, SpanCoreFields

REWARD_KEY = "reward"
ReturnedSpan = Span | SpanCoreFields | ReadableSpan

_ACCEPTED = "a number, None, a dict with a 'reward', or a list of spans"
_HINT = (
    "Return the reward, call agl.emit_reward(...) and return None, or pass evaluator= "
    "(a function of task and output that returns the reward)."
)


@dataclass
class Result:
    """A return value, understood."""

    rewards: list[RewardDimension] = field(default_factory=list[RewardDimension])
    """The primary one first; empty when there is none."""
    spans: list[ReturnedSpan] = field(default_factory=list[ReturnedSpan])


def read_result(value: Any) -> Result:
    """Understand what an agent has returned.

    Raises:
        BadResultError: It is of no accepted type, or a reward is not finite.
    """
    if value is None:
        return Result()
    if isinstance(value, Mapping):
        return Result(rewards=_from_mapping(cast("Mapping[str, Any]", value)))
    if isinstance(value, list | tuple):
        return Result(spans=_spans(cast("Sequence[Any]", value)))
    if _is_number(value):
        return Result(rewards=[RewardDimension(PRIMARY, to_number(value))])
    raise BadResultError(f"The agent returned {_describe(value)}; accepted are {_ACCEPTED}.", hint=_HINT)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) or (
        callable(getattr(value, "item", None)) and getattr(value, "size", None) is not None
    )


def _from_mapping(value: Mapping[str, Any]) -> list[RewardDimension]:
    if REWARD_KEY not in value:
        raise BadResultError(
            f"The agent returned a dict without 'reward' (keys: {sorted(map(str, value))}); accepted are {_ACCEPTED}.",
            hint=_HINT,
        )
    if value[REWARD_KEY] is None:
        return []
    numbers = {key: item for key, item in value.items() if key == REWARD_KEY or isinstance(item, Real)}
    return order_dimensions(numbers, REWARD_KEY)


def _spans(values: Sequence[Any]) -> list[ReturnedSpan]:
    for kind in (Span, SpanCoreFields, ReadableSpan):
        if all(isinstance(value, kind) for value in values):
            return list(values)
    kinds = sorted({type(value).__name__ for value in values})
    raise BadResultError(
        f"The agent returned a list of {', '.join(kinds)}; a list holds spans of one type.", hint=_HINT
    )


def _describe(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} ({text if len(text) <= 80 else text[:77] + '...'})"


class Evaluator:
    """A user's reward function, called by argument names: `task`, `output`, `resources`, `rollout`, keys of the task.

    A function of two other names gets task and output in that order, one of a single other name gets the output.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004 - the method itself is looked at
        )
        self._injector = Injector(function)

    def bind(self, task: Any, output: Any, resources: NamedResources, rollout: Rollout) -> Arguments:
        """Arguments for one call.

        Raises:
            AgentSignatureError: The arguments cannot be filled.
        """
        offers = self._injector.offers(resources, rollout)
        if isinstance(task, Mapping):
            offers.update(cast("Mapping[str, Any]", task))
        offers.update(task=task, output=output)
        required = self._injector.required
        strange = [name for name in required if name not in offers]
        if len(strange) == 1:
            offers[strange[0]] = output
        elif len(strange) == 2 == len(required):
            offers.update(zip(strange, (task, output), strict=True))
        elif strange:
            raise AgentSignatureError(
                f"The evaluator {self._injector.name} has arguments that nothing fills: {', '.join(strange)}.",
                hint="There are task, output, resources, rollout, and the keys of a task that is a dict.",
            )
        return self._injector.fill(offers)


def read_evaluation(value: Any) -> list[RewardDimension]:
    """The rewards an evaluator returned; empty for `None`.

    A dict without `reward` is accepted when it has exactly one entry, which then is the primary one.

    Raises:
        BadResultError: It is neither a number, a dict of numbers nor `None`.
    """
    if value is None:
        return []
    if isinstance(value, Mapping):
        mapping = cast("Mapping[str, Any]", value)
        if REWARD_KEY not in mapping and len(mapping) == 1:
            return order_dimensions(mapping, next(iter(mapping)))
        return _from_mapping(mapping)
    return [RewardDimension(PRIMARY, to_number(value, "What an evaluator returns"))]
