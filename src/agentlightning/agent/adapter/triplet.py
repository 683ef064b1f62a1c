"""Triplets (prompt, response, reward) out of spans: one per model call.

Two adapters of one interface: `TracerTraceToTriplet` orders by time and sees the span tree (agents, operations);
`LlmProxyTraceToTriplet` orders by sequence id only, for spans from machines whose clocks differ.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

from agentlightning.agent.adapter.base import TraceAdapter
from agentlightning.agent.adapter.trajectory import calls_from_spans
from agentlightning.agent.emit.rewards import get_reward_value, is_reward_span
from agentlightning.schemas import ModelCall, Span, Triplet, semconv

_AGENT_NAMES = (
    "agent.name",
    "gen_ai.agent.name",
    "recipient_agent_type",
    "langchain.chain.type",
    "executor.id",
    semconv.OPERATION_NAME,
)


class RewardMatchPolicy(str, Enum):  # noqa: UP042 - a str, as in 0.3: users compare with plain strings
    """Which model call a reward belongs to."""

    FIRST_SIBLING = "first_sibling"
    """The latest call before it that has the same parent span and no reward yet."""
    FIRST_OCCURRENCE = "first_occurrence"
    """The latest call before it that has no reward yet."""


class TraceToTripletBase(TraceAdapter[list[Triplet]]):
    """Anything that makes triplets of spans."""


class TracerTraceToTriplet(TraceToTripletBase):
    """Triplets by time and span tree.

    Args:
        repair_hierarchy: Kept for compatibility: captured calls carry their place, there is nothing to repair.
        llm_call_match: Pattern of the names of model-call spans.
        agent_match: Pattern of agent names; only calls below a matching agent's span count. All when `None`.
        exclude_llm_call_in_reward: Leave out calls made below a reward span (a judge's, for instance).
        reward_match: Which call a reward belongs to.
    """

    def __init__(
        self,
        repair_hierarchy: bool = True,
        llm_call_match: str = r"openai\.chat\.completion",
        agent_match: str | None = None,
        exclude_llm_call_in_reward: bool = True,
        reward_match: RewardMatchPolicy | str = RewardMatchPolicy.FIRST_OCCURRENCE,
    ) -> None:
        self.repair_hierarchy = repair_hierarchy
        self.llm_call_match = llm_call_match
        self.agent_match = agent_match
        self.exclude_llm_call_in_reward = exclude_llm_call_in_reward
        self.reward_match = RewardMatchPolicy(reward_match)

    def adapt(self, source: Sequence[Span], /) -> list[Triplet]:
        """Convert the spans of one attempt."""
        tree = {span.span_id: span for span in source}
        calls: list[tuple[Span, str | None]] = []
        for span in source:
            if re.search(self.llm_call_match, span.name):
                ancestors = _ancestors(span, tree)
                agent = _nearest_agent(ancestors)
                if self._counts(ancestors, agent):
                    calls.append((span, agent))
        calls.sort(key=lambda pair: _ended(pair[0]))
        spans = [span for span, _ in calls]
        rewards = sorted((span for span in source if is_reward_span(span)), key=_ended)
        same_parent = self.reward_match is RewardMatchPolicy.FIRST_SIBLING
        matched = _match(spans, rewards, _ended, same_parent=same_parent)
        return [_triplet(span, matched.get(span.span_id), agent) for span, agent in calls]

    def _counts(self, ancestors: list[Span], agent: str | None) -> bool:
        if self.exclude_llm_call_in_reward and any(_is_reward_work(span) for span in ancestors):
            return False
        return self.agent_match is None or (agent is not None and re.search(self.agent_match, agent) is not None)


class LlmProxyTraceToTriplet(TraceToTripletBase):
    """Triplets by sequence id; of calls without token ids there are none."""

    def adapt(self, source: Sequence[Span], /) -> list[Triplet]:
        """Convert the spans of one attempt."""
        spans = [
            span for span in source if span.name == semconv.MODEL_CALL and span.attributes.get(semconv.PROMPT_TOKEN_IDS)
        ]
        spans.sort(key=_sequence)
        rewards = sorted((span for span in source if is_reward_span(span)), key=_sequence)
        matched = _match(spans, rewards, _sequence, same_parent=False)
        return [_triplet(span, matched.get(span.span_id), None) for span in spans]


def _ended(span: Span) -> tuple[float, int]:
    return (span.end_time if span.end_time is not None else span.start_time or 0.0, span.sequence_id)


def _sequence(span: Span) -> tuple[float, int]:
    return (float(span.sequence_id), 0)


def _ancestors(span: Span, tree: dict[str, Span]) -> list[Span]:
    found: list[Span] = []
    seen = {span.span_id}
    while span.parent_id is not None and span.parent_id in tree and span.parent_id not in seen:
        span = tree[span.parent_id]
        seen.add(span.span_id)
        found.append(span)
    return found


def _nearest_agent(ancestors: list[Span]) -> str | None:
    for span in ancestors:
        for key in _AGENT_NAMES:
            name = span.attributes.get(key)
            if isinstance(name, str):
                return name
    return None


def _is_reward_work(span: Span) -> bool:
    return is_reward_span(span) or span.attributes.get(semconv.OPERATION_NAME) == semconv.AGL_REWARD


def _match(
    calls: list[Span], rewards: list[Span], order: Callable[[Span], Any], *, same_parent: bool
) -> dict[str, float]:
    matched: dict[str, float] = {}
    for reward in rewards:
        value = get_reward_value(reward)
        for call in reversed(calls):
            if call.span_id in matched or order(call) > order(reward):
                continue
            if same_parent and call.parent_id != reward.parent_id:
                continue
            if value is not None:
                matched[call.span_id] = value
            break
    return matched


def _triplet(span: Span, reward: float | None, agent: str | None) -> Triplet:
    call = _as_call(span)
    return Triplet(
        prompt={"token_ids": call.prompt_token_ids or [], "raw_content": call.messages},
        response={
            "token_ids": call.response_token_ids or [],
            "logprobs": call.response_logprobs,
            "raw_content": call.output,
        },
        reward=reward,
        metadata={
            "response_id": call.response_id or None,
            "agent_name": agent,
            "span_id": call.span_id,
            "sequence_id": call.sequence_id,
            "model": call.model,
            "not_trainable_because": call.not_trainable_because,
        },
    )


def _as_call(span: Span) -> ModelCall:
    named = span if span.name == semconv.MODEL_CALL else span.model_copy(update={"name": semconv.MODEL_CALL})
    return calls_from_spans([named])[0]
