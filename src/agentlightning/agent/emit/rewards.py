"""Rewards: emitting them, and reading them back from spans. "No reward" is `None`, never 0.0."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple, Protocol, TypeVar, cast

from agentlightning.agent.emit.annotations import emit_annotation
from agentlightning.agent.errors import BadResultError
from agentlightning.schemas import SpanCoreFields
from agentlightning.schemas.semconv import AGL_ANNOTATION, REWARD_PREFIX

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
PRIMARY = "primary"
_FIRST_VALUE = f"{REWARD_PREFIX}.0.value"


class SpanLike(Protocol):
    """A `Span`, a `SpanCoreFields` or a span of the OpenTelemetry SDK."""

    @property
    def name(self) -> str:
        """Name."""
        ...

    @property
    def attributes(self) -> Mapping[str, Any] | None:
        """Flat attributes."""
        ...


SpanLikeT = TypeVar("SpanLikeT", bound=SpanLike)


class RewardDimension(NamedTuple):
    """One named component of a reward."""

    name: str
    value: float


def to_number(value: Any, what: str = "A reward") -> float:
    """Any finite real number as a float: Python's, NumPy's, or a tensor of one element.

    Raises:
        BadResultError: It is not a number, or NaN or infinite.
    """
    if not isinstance(value, Real) and callable(getattr(value, "item", None)):
        try:
            value = value.item()
        except (TypeError, ValueError, RuntimeError) as error:
            raise BadResultError(f"{what} is one number, but this is {type(value).__name__}: {error}") from error
    if not isinstance(value, Real):
        raise BadResultError(f"{what} is a number, not {type(value).__name__} ({_short(value)}).")
    number = float(value)
    if not math.isfinite(number):
        raise BadResultError(
            f"{what} is finite, not {number}.",
            hint="Return None when there is no reward; it is kept apart from 0.",
        )
    return number


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def order_dimensions(values: Mapping[str, Any], primary_key: str | None) -> list[RewardDimension]:
    """The components with the primary one first.

    Raises:
        BadResultError: No primary key is named, it is missing, or a value is not a finite number.
    """
    if primary_key is None:
        raise BadResultError(
            "A reward of several dimensions needs primary_key.", hint=f"Name one of {sorted(map(str, values))}."
        )
    if primary_key not in values:
        raise BadResultError(f"The primary key {primary_key!r} is not among {sorted(map(str, values))}.")
    names = [primary_key, *(name for name in values if name != primary_key)]
    return [RewardDimension(name, to_number(values[name], f"Reward dimension {name!r}")) for name in names]


def emit_reward(
    reward: float | Mapping[str, Any],
    *,
    primary_key: str | None = None,
    attributes: dict[str, Any] | None = None,
    propagate: bool = True,
) -> SpanCoreFields:
    """Give the running rollout a reward. The last one counts as its final reward.

    Args:
        reward: A number, or several by name.
        primary_key: Which of several is the one to learn from.
        attributes: More attributes, e.g. from `make_tag_attributes` or `make_link_attributes`.
        propagate: `False` returns the span without recording it.

    Raises:
        BadResultError: A `TypeError` and `ValueError`: not a finite number, or `primary_key` missing.
        NoActiveTracerError: There is no running rollout.
    """
    if isinstance(reward, Mapping):
        dimensions = order_dimensions(reward, primary_key)
    else:
        dimensions = [RewardDimension(PRIMARY, to_number(reward))]
    return emit_annotation({**reward_attributes(dimensions), **(attributes or {})}, propagate=propagate)


def reward_attributes(dimensions: Sequence[RewardDimension]) -> dict[str, Any]:
    """`agentlightning.reward.0.name`, `….0.value`, …"""
    attributes: dict[str, Any] = {}
    for index, dimension in enumerate(dimensions):
        attributes[f"{REWARD_PREFIX}.{index}.name"] = dimension.name
        attributes[f"{REWARD_PREFIX}.{index}.value"] = dimension.value
    return attributes


def get_rewards_from_span(span: SpanLike) -> list[RewardDimension]:
    """All components of a reward span, the primary one first; empty for other spans."""
    attributes = span.attributes or {}
    dimensions: list[RewardDimension] = []
    while (value := attributes.get(f"{REWARD_PREFIX}.{len(dimensions)}.value")) is not None:
        name = attributes.get(f"{REWARD_PREFIX}.{len(dimensions)}.name", PRIMARY)
        dimensions.append(RewardDimension(str(name), float(value)))
    return dimensions


def get_reward_value(span: SpanLike) -> float | None:
    """The primary reward of a span, or `None` when it carries none."""
    attributes = span.attributes
    if not attributes:
        return None
    value = attributes.get(_FIRST_VALUE)
    if value is None and span.name == AGL_ANNOTATION:
        value = attributes.get("reward")  # as written before 0.3
    return float(value) if value is not None else None


def is_reward_span(span: SpanLike) -> bool:
    """Whether the span carries a reward."""
    return get_reward_value(span) is not None


def find_reward_spans(spans: Sequence[SpanLikeT]) -> list[SpanLikeT]:
    """The spans that carry a reward, in order."""
    return [span for span in spans if is_reward_span(span)]


def find_final_reward(spans: Sequence[SpanLike]) -> float | None:
    """The primary value of the last reward span, or `None` when there is none."""
    for span in reversed(spans):
        value = get_reward_value(span)
        if value is not None:
            return value
    return None


def reward(fn: FunctionT) -> FunctionT:
    """Decorate a reward function: what it returns is also emitted; `None` is not.

    Raises:
        BadResultError: On a call that returns something else than a finite number or `None`.
    """

    def emit(value: Any) -> None:
        if value is not None:
            emit_reward(value)

    if inspect.iscoroutinefunction(fn):

        @functools.wraps(fn)
        async def asynchronous(*args: Any, **kwargs: Any) -> Any:
            value = await fn(*args, **kwargs)
            emit(value)
            return value

        return cast("FunctionT", asynchronous)

    @functools.wraps(fn)
    def synchronous(*args: Any, **kwargs: Any) -> Any:
        value = fn(*args, **kwargs)
        emit(value)
        return value

    return cast("FunctionT", synchronous)
