"""Messages and triplets out of spans."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agentlightning import LlmProxyTraceToTriplet, Span, TraceAdapter, TracerTraceToTriplet, TraceToMessages
from agentlightning.agent import RewardMatchPolicy, emit_reward
from agentlightning.schemas import semconv
from tests.unit.agent.builders import model_call

TOOL = {"type": "function", "function": {"name": "sql", "description": "", "parameters": {}}}
CALLING: dict[str, Any] = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "sql", "arguments": "{}"}}],
}


def reward(value: float, at: float, *, sequence_id: int = 0, parent_id: str | None = None) -> Span:
    return Span.from_attributes(
        attributes=emit_reward(value, propagate=False).attributes,
        name=semconv.AGL_ANNOTATION,
        sequence_id=sequence_id,
        parent_id=parent_id,
        start_time=at,
        end_time=at,
    )


def agent_span(
    name: str, span_id: str, *, at: float = 0.0, parent_id: str | None = None, key: str = "agent.name"
) -> Span:
    return Span.from_attributes(
        attributes={key: name}, name="agent", span_id=span_id, parent_id=parent_id, start_time=at, end_time=at + 10
    )


def test_messages_have_the_answer_last_and_the_tools():
    first = model_call([1], [2], output=CALLING, tools=[TOOL])
    history = [{"role": "user", "content": "hi"}, CALLING, {"role": "tool", "tool_call_id": "1", "content": "3"}]
    second = model_call([1], [2], sequence_id=2, messages=history, output={"role": "assistant", "content": "3"})
    one, two = TraceToMessages()([second, first])
    assert one == {"messages": [{"role": "user", "content": "hi"}, CALLING], "tools": [TOOL]}
    assert two == {"messages": [*history, {"role": "assistant", "content": "3"}], "tools": None}


def test_messages_of_a_call_that_failed_have_no_answer():
    span = model_call([1], None)
    del span.attributes[semconv.CALL_OUTPUT_MESSAGES]
    assert TraceToMessages().adapt([span]) == [{"messages": [{"role": "user", "content": "hi"}], "tools": None}]


def test_messages_of_instrumentation_libraries_are_understood():
    span = Span.from_attributes(
        name="openai.chat.completion.instrumented",
        span_id="s",
        attributes={
            "gen_ai.prompt.0.role": "user",
            "gen_ai.prompt.0.content": "hi",
            "gen_ai.prompt.1.role": "assistant",
            "gen_ai.prompt.1.tool_calls.0.id": "0",
            "gen_ai.prompt.1.tool_calls.0.name": "sql",
            "gen_ai.prompt.1.tool_calls.0.arguments": "{}",
            "gen_ai.completion.0.content": "calling",
            "gen_ai.request.functions.0.name": "sql",
            "gen_ai.request.functions.0.parameters": json.dumps({"type": "object"}),
        },
    )
    tool = Span.from_attributes(
        parent_id="s",
        attributes={
            "tool.name": "sql",
            "tool.parameters": '{"q": 1}',
            "tool.call.id": "7",
            "tool.call.type": "function",
        },
    )
    unrelated = Span.from_attributes(parent_id="s", attributes={"x": 1})
    (entry,) = TraceToMessages().adapt([span, tool, unrelated])
    user, before, answer = entry["messages"]
    assert user == {"role": "user", "content": "hi"}
    assert before["tool_calls"][0]["function"] == {"name": "sql", "arguments": "{}"}
    assert answer == {
        "role": "assistant",
        "content": "calling",
        "tool_calls": [{"id": "7", "type": "function", "function": {"name": "sql", "arguments": '{"q": 1}'}}],
    }
    assert entry["tools"] == [
        {"type": "function", "function": {"name": "sql", "description": "", "parameters": {"type": "object"}}}
    ]


def test_triplet_has_ids_logprobs_reward_and_origin():
    span = model_call([1, 2], [3], at=0)
    (triplet,) = TracerTraceToTriplet().adapt([span, reward(0.5, at=2)])
    assert triplet.prompt["token_ids"] == [1, 2]
    assert triplet.response["token_ids"] == [3]
    assert triplet.response["logprobs"] == [-0.5]
    assert triplet.reward == 0.5
    assert triplet.metadata["response_id"] == "resp-1"
    assert triplet.metadata["not_trainable_because"] is None


def test_each_reward_goes_to_the_latest_call_before_it_that_has_none():
    spans = [
        model_call([1], [2], at=0, sequence_id=1),
        reward(0.1, at=1),
        model_call([1], [3], at=2, sequence_id=2),
        model_call([1], [4], at=3, sequence_id=3),
        reward(0.2, at=4),
        reward(0.3, at=5),
        model_call([1], [5], at=6, sequence_id=4),
    ]
    triplets = TracerTraceToTriplet().adapt(list(reversed(spans)))
    assert [(t.response["token_ids"], t.reward) for t in triplets] == [([2], 0.1), ([3], 0.3), ([4], 0.2), ([5], None)]


def test_no_reward_stays_none():
    assert [t.reward for t in TracerTraceToTriplet().adapt([model_call([1], [2])])] == [None]
    assert TracerTraceToTriplet().adapt([]) == []


def test_sibling_policy_keeps_to_the_same_parent():
    spans = [
        model_call([1], [2], at=0, sequence_id=1, parent_id="p"),
        model_call([1], [3], at=1, sequence_id=2, parent_id="q"),
        reward(1.0, at=3, parent_id="p"),
    ]
    by_sibling = TracerTraceToTriplet(reward_match=RewardMatchPolicy.FIRST_SIBLING).adapt(spans)
    assert [t.reward for t in by_sibling] == [1.0, None]
    assert [t.reward for t in TracerTraceToTriplet(reward_match="first_occurrence").adapt(spans)] == [None, 1.0]
    with pytest.raises(ValueError, match="second_cousin"):
        TracerTraceToTriplet(reward_match="second_cousin")


@pytest.mark.parametrize("key", ["agent.name", semconv.OPERATION_NAME, "langchain.chain.type"])
def test_agents_are_selected_by_the_nearest_name_above(key):
    spans = [
        agent_span("writer", "w", key=key),
        agent_span("inner", "i", parent_id="w", key=key),
        model_call([1], [2], sequence_id=1, parent_id="w"),
        model_call([1], [3], sequence_id=2, parent_id="i"),
        model_call([1], [4], sequence_id=3),
    ]
    writers = TracerTraceToTriplet(agent_match="wri").adapt(spans)
    assert [(t.response["token_ids"], t.metadata["agent_name"]) for t in writers] == [([2], "writer")]
    assert len(TracerTraceToTriplet().adapt(spans)) == 3


def test_calls_of_a_judge_below_a_reward_are_left_out():
    judge = Span.from_attributes(attributes={semconv.OPERATION_NAME: semconv.AGL_REWARD}, span_id="j")
    spans = [judge, model_call([1], [2], parent_id="j"), model_call([1], [3], sequence_id=2)]
    assert len(TracerTraceToTriplet().adapt(spans)) == 1
    assert len(TracerTraceToTriplet(exclude_llm_call_in_reward=False).adapt(spans)) == 2


def test_other_span_names_can_be_matched_and_circles_do_no_harm():
    span = model_call([1], [2], name="my.llm", parent_id="loop")
    loop = Span.from_attributes(attributes={}, span_id="loop", parent_id="loop")
    (triplet,) = TracerTraceToTriplet(llm_call_match="^my").adapt([span, loop])
    assert triplet.response["token_ids"] == [2]


def test_proxy_adapter_orders_by_sequence_id_alone():
    spans = [
        model_call([1], [3], at=100, sequence_id=1),
        reward(0.1, at=0, sequence_id=2),
        model_call([1], [4], at=50, sequence_id=3),
        model_call(None, None, at=0, sequence_id=4),
        reward(0.2, at=0, sequence_id=5),
    ]
    triplets = LlmProxyTraceToTriplet().adapt(list(reversed(spans)))
    assert [(t.response["token_ids"], t.reward) for t in triplets] == [([3], 0.1), ([4], 0.2)]


def test_base_adapter_has_to_be_completed():
    with pytest.raises(NotImplementedError):
        TraceAdapter[int]()([])
