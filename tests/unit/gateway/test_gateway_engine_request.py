"""What an OpenAI request becomes for the engine, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from agentlightning.gateway.call import UpstreamCall
from agentlightning.gateway.errors import CallError
from agentlightning.gateway.upstream.engine_request import to_generate_requests
from agentlightning.schemas import SamplingParams
from agentlightning.schemas.generation import Constraint

CHAT: dict[str, Any] = {"model": "default", "messages": [{"role": "user", "content": "hi"}]}
TEXT: dict[str, Any] = {"model": "default", "prompt": "hi"}
TOOL = {"type": "function", "function": {"name": "sql"}}


def chat(**extra: Any) -> UpstreamCall:
    return UpstreamCall(call_id="c1", kind="chat", body={**CHAT, **extra})


def text(**extra: Any) -> UpstreamCall:
    return UpstreamCall(call_id="c1", kind="text", body={**TEXT, **extra})


def params(call: UpstreamCall) -> SamplingParams:
    return to_generate_requests(call)[0][0].params


def test_openais_defaults_apply() -> None:
    assert params(chat()) == SamplingParams(temperature=1.0, top_p=1.0, top_k=0, max_tokens=None, n=1)
    assert params(text()).max_tokens == 16


def test_parameters_are_handed_on() -> None:
    given = chat(temperature=0, top_p=0.5, top_k=-1, n=2, seed=5, stop="a", max_tokens=3, max_completion_tokens=4)
    assert params(given) == SamplingParams(temperature=0.0, top_p=0.5, top_k=0, max_tokens=4, stop=["a"], seed=5, n=2)
    assert params(chat(stop=["a", "b", ""], temperature=None)).stop == ["a", "b"]


@pytest.mark.parametrize(
    "harmless",
    [
        {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "parallel_tool_calls": True},
        {"response_format": {"type": "text"}, "top_logprobs": 0, "store": False, "modalities": ["text"]},
        {"user": "me", "metadata": {"a": "b"}, "safety_identifier": "x", "service_tier": "auto"},
        {"frequency_penalty": None, "logit_bias": None, "reasoning_effort": None},
    ],
)
def test_parameters_that_ask_for_nothing_are_accepted(harmless: dict[str, Any]) -> None:
    assert params(chat(**harmless)) == params(chat())


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"top_logprobs": 3, "logprobs": True}, "top_logprobs"),
        ({"functions": [{"name": "sql"}]}, "functions"),
        ({"made_up": 1}, "made_up"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages"),
    ],
)
def test_what_the_engine_cannot_honour_is_refused_by_name(body: dict[str, Any], param: str) -> None:
    with pytest.raises(CallError) as caught:
        to_generate_requests(chat(**body))
    assert (caught.value.status, caught.value.param, caught.value.reason) == (400, param, "unsupported_parameter")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"seed": 1.5}, "seed"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": "sql"}, "tools"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "sql"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": 5}}}, "response_format"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": [{"content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages"),
        ({"messages": ["x"]}, "messages"),
    ],
)
def test_wrong_values_are_refused_by_name(body: dict[str, Any], param: str) -> None:
    with pytest.raises(CallError) as caught:
        to_generate_requests(chat(**body))
    assert (caught.value.status, caught.value.param) == (400, param)
    assert caught.value.reason != "unsupported_parameter"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"logprobs": 2}, "logprobs"),
        ({"prompt": ["a", "b"], "stream": True}, "prompt"),
        ({"prompt": ["a", 5]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
    ],
)
def test_text_completions_refuse_by_name(body: dict[str, Any], param: str) -> None:
    with pytest.raises(CallError) as caught:
        to_generate_requests(text(**body))
    assert (caught.value.status, caught.value.param) == (400, param)


def test_messages_are_made_plain_for_chat_templates() -> None:
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "tool", "tool_call_id": "1", "content": "x"},
    ]
    [request], _ = to_generate_requests(chat(messages=messages))
    assert request.messages == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "ab"},
        *messages[2:],
    ]


@pytest.mark.parametrize(
    ("choice", "tools"), [(None, [TOOL]), ("auto", [TOOL]), ("none", None)], ids=["default", "auto", "none"]
)
def test_tools_are_shown_unless_the_agent_says_none(choice: str | None, tools: Any) -> None:
    [request], _ = to_generate_requests(chat(tools=[TOOL], tool_choice=choice))
    assert request.tools == tools


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
STRICT = {"type": "function", "function": {**TOOL["function"], "strict": True}}
NAMED = {"type": "function", "function": {"name": TOOL["function"]["name"]}}


@pytest.mark.parametrize(
    ("given", "constraint"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}, "tools": [TOOL]}, None),
        ({"response_format": {"type": "json_object"}}, Constraint(json_schema={"type": "object"})),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}},
            Constraint(json_schema=SCHEMA),
        ),
        ({"tools": [TOOL], "tool_choice": "required"}, Constraint(must_call=True)),
        ({"tools": [TOOL], "tool_choice": NAMED}, Constraint(must_call=True, tool="sql")),
        ({"tools": [STRICT]}, Constraint()),
        ({"tools": [STRICT], "tool_choice": "none"}, None),
        ({"tools": [TOOL], "parallel_tool_calls": False}, Constraint(parallel=False)),
        ({"parallel_tool_calls": False}, None),
        (
            {"tools": [TOOL], "tool_choice": "required", "response_format": {"type": "json_object"}},
            Constraint(must_call=True),
        ),
    ],
)
def test_formats_and_forced_calls_become_a_constraint(given: dict[str, Any], constraint: Constraint | None) -> None:
    [request], _ = to_generate_requests(chat(**given))
    assert request.constraint == constraint


@pytest.mark.parametrize("given", [{"tools": [STRICT]}, {"tools": [TOOL], "parallel_tool_calls": False}])
def test_what_is_to_be_trained_on_is_not_held_to_strict_tools(given: dict[str, Any]) -> None:
    call = chat(**given)
    call.samples_freely = True
    [request], _ = to_generate_requests(call)
    assert request.constraint is None
    assert request.tools == given["tools"]  # the model sees what it will see in production
    forced = chat(tools=[STRICT], tool_choice="required", parallel_tool_calls=False)
    forced.samples_freely = True
    [request], _ = to_generate_requests(forced)
    assert request.constraint == Constraint(must_call=True)


def test_several_prompts_become_several_requests() -> None:
    requests, _ = to_generate_requests(text(prompt=["a", "b"]))
    assert [request.prompt for request in requests] == ["a", "b"]
    assert len({request.request_id for request in requests}) == 2
    requests, _ = to_generate_requests(text(prompt=[[1, 2], [3]]))
    assert [request.prompt_token_ids for request in requests] == [[1, 2], [3]]
    requests, _ = to_generate_requests(text(prompt=[1, 2]))
    assert [request.prompt_token_ids for request in requests] == [[1, 2]]


def test_what_the_answer_has_to_contain() -> None:
    _, options = to_generate_requests(
        chat(logprobs=True, stream=True, stream_options={"include_usage": True}, return_token_ids=True, n=2)
    )
    assert (options.logprobs, options.include_usage, options.return_token_ids, options.n) == (True, True, True, 2)
    _, options = to_generate_requests(text(logprobs=0))
    assert (options.logprobs, options.include_usage, options.return_token_ids) == (True, False, False)
