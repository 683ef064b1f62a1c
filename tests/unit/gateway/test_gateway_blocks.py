"""Streams of blocks out of chat chunks, and the translations that need no server."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlightning.gateway import CallError
from agentlightning.gateway.call import Answer, Capture, UpstreamCall
from agentlightning.gateway.dialects.anthropic import AnthropicDialect
from agentlightning.gateway.dialects.blocks import BlockStream, blocks_of
from agentlightning.gateway.dialects.responses import ResponsesDialect


def chunk(delta: dict[str, Any]) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}


def tool(index: int, arguments: str) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, "id": f"c{index}", "function": {"name": "f", "arguments": arguments}}]}


DELTAS = st.one_of(
    st.builds(lambda text: {"content": text}, st.text("ab", max_size=2)),
    st.builds(lambda text: {"reasoning": text}, st.text("xy", max_size=2)),
    st.builds(tool, st.integers(0, 3), st.text("{}", max_size=2)),
)


@given(st.lists(DELTAS, max_size=12))
def test_nothing_is_lost_and_one_block_ends_before_the_next_begins(deltas: list[dict[str, Any]]) -> None:
    stream = BlockStream()
    events = [event for delta in deltas for event in stream.feed(chunk(delta))] + stream.finish()
    open_index = None
    for event in events:
        if event.what == "open":
            assert open_index is None
            open_index = event.block.index
        else:
            assert event.block.index == open_index
        if event.what == "close":
            open_index = None
    assert open_index is None
    assert [block.index for block in stream.finished] == list(range(len(stream.finished)))
    for block in stream.finished:
        assert block.text == "".join(e.text for e in events if e.block is block)
    for kind, key in (("text", "content"), ("thinking", "reasoning")):
        said = "".join(block.text for block in stream.finished if block.kind == kind)
        assert said == "".join(delta.get(key, "") for delta in deltas)
    arguments: dict[str, str] = {}
    for delta in deltas:
        for call in delta.get("tool_calls", ()):
            arguments[call["id"]] = arguments.get(call["id"], "") + call["function"]["arguments"]
    assert {block.call_id: block.text for block in stream.finished if block.kind == "tool"} == arguments


def test_other_choices_are_left_out() -> None:
    assert BlockStream().feed({"choices": [{"index": 1, "delta": {"content": "x"}}]}) == []


def test_a_finished_message_has_its_blocks_in_order() -> None:
    calls = [{"function": {"name": "f", "arguments": "{}"}}]
    blocks = blocks_of({"reasoning_content": "hm", "content": "so", "tool_calls": calls})
    assert [(block.kind, block.index) for block in blocks] == [("thinking", 0), ("text", 1), ("tool", 2)]
    assert blocks[2].call_id  # one is made up where the server gives none


@pytest.mark.parametrize(
    ("finish", "arguments", "stop_reason", "expected"),
    [
        ("stop", '{"a": 1}', "tool_use", {"a": 1}),  # some servers end tool calls with "stop"
        ("length", '{"a": ', "max_tokens", {"invalid_json": '{"a": '}),
        ("content_filter", "[1]", "refusal", {"invalid_json": "[1]"}),
        ("tool_calls", "", "tool_use", {}),
    ],
)
def test_whatever_a_model_writes_becomes_a_message(
    finish: str, arguments: str, stop_reason: str, expected: dict[str, Any]
) -> None:
    message = {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": arguments}}]}
    body = {"model": "m", "choices": [{"index": 0, "message": message, "finish_reason": finish}]}
    call = UpstreamCall(call_id="msg_1", kind="chat", body={"model": "m"})
    answer = json.loads(AnthropicDialect().encode(call, Answer(body=body, capture=Capture())))
    assert (answer["stop_reason"], answer["content"][0]["input"]) == (stop_reason, expected)


def anthropic_body(**fields: Any) -> dict[str, Any]:
    native = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}], **fields}
    parsed = AnthropicDialect().parse(json.dumps(native).encode())
    if parsed.refusal is not None:
        raise parsed.refusal
    return parsed.body


def test_a_message_request_keeps_thinking_documents_and_order() -> None:
    turns = [
        {"role": "user", "content": [{"type": "document", "source": {"type": "text", "data": "D"}, "title": "t"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": "so"},
                {"type": "tool_use", "id": "a", "name": "f", "input": {"é": 1}},
                {"type": "tool_use", "id": "b", "name": "f", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "before"},
                {"type": "tool_result", "tool_use_id": "a", "content": "1"},
                {"type": "tool_result", "tool_use_id": "b", "is_error": True},
                {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "eA=="}},
            ],
        },
    ]
    messages = anthropic_body(messages=turns, system=[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])[
        "messages"
    ]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user", "tool", "tool", "user"]
    assert messages[0]["content"] == [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert (messages[1]["content"], messages[2]["reasoning_content"], messages[2]["content"]) == ("D", "hm", "so")
    assert [call["function"]["arguments"] for call in messages[2]["tool_calls"]] == ['{"é":1}', "{}"]
    assert [message["content"] for message in messages[3:6]] == ["before", "1", ""]
    assert messages[6]["content"][0]["file"]["file_data"] == "data:application/pdf;base64,eA=="


def test_a_message_requests_choices_are_translated() -> None:
    tools = [{"name": "f", "input_schema": {"type": "object"}, "type": "custom", "strict": True}]
    body = anthropic_body(
        tools=tools,
        tool_choice={"type": "tool", "name": "f", "disable_parallel_tool_use": True},
        thinking={"type": "disabled"},
        output_config={"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}},
        metadata={"user_id": "u"},
        seed=3,
    )
    assert body["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert body["tools"][0]["function"]["strict"] is True
    assert (body["parallel_tool_calls"], body["reasoning_effort"], body["seed"]) == (False, "low", 3)
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert "metadata" not in body
    assert anthropic_body(tools=tools, tool_choice={"type": "any"})["tool_choice"] == "required"
    with pytest.raises(CallError, match="unknown value 'some'"):
        anthropic_body(tool_choice={"type": "some"})


@pytest.mark.parametrize(
    ("role", "block", "message"),
    [
        ("user", {"type": "thinking", "thinking": "x"}, "user message cannot hold thinking"),
        ("assistant", {"type": "image", "source": {"type": "url", "url": "u"}}, "assistant message cannot hold image"),
    ],
)
def test_blocks_in_the_wrong_place_are_refused(role: str, block: dict[str, Any], message: str) -> None:
    turns = [{"role": role, "content": [block]}, {"role": "user", "content": "hi"}]
    with pytest.raises(CallError, match=message):
        anthropic_body(messages=turns)


def responses_body(items: Any, **fields: Any) -> dict[str, Any]:
    return ResponsesDialect().parse(json.dumps({"model": "m", "input": items, **fields}).encode()).body


def test_the_items_of_one_turn_become_one_message() -> None:
    def call(name: str) -> dict[str, Any]:
        return {"type": "function_call", "call_id": name, "name": "f", "arguments": "{}"}

    def output(name: str, content: Any) -> dict[str, Any]:
        return {"type": "function_call_output", "call_id": name, "output": content}

    image = {"type": "input_image", "image_url": "u", "detail": "low"}
    items = [
        {"role": "developer", "content": "d"},
        {"role": "user", "content": [{"type": "input_text", "text": "q"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}], "id": "x"},
        call("c1"),
        call("c2"),
        output("c1", "1"),
        output("c2", [{"type": "input_text", "text": "2"}, image]),
        {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
    ]
    messages = responses_body(items)["messages"]
    roles = ["developer", "user", "assistant", "tool", "tool", "user", "assistant"]
    assert [message["role"] for message in messages] == roles
    assert (messages[2]["content"], [c["id"] for c in messages[2]["tool_calls"]]) == ("a", ["c1", "c2"])
    assert (messages[1]["content"], messages[4]["content"], messages[6]["content"]) == ("q", "2", "no")
    assert messages[5]["content"] == [{"type": "image_url", "image_url": {"url": "u", "detail": "low"}}]


def test_a_responses_requests_options_are_translated() -> None:
    body = responses_body(
        "hi", text={"verbosity": "low", "format": {"type": "json_object"}}, user="u", seed=3, top_logprobs=0
    )
    assert (body["verbosity"], body["response_format"], body["seed"]) == ("low", {"type": "json_object"}, 3)
    assert body.keys().isdisjoint({"user", "top_logprobs", "input", "text"})
    assert responses_body("hi", text={"format": {"type": "text"}}).get("response_format") is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"input": [{"role": "assistant", "content": [{"type": "input_image", "image_url": "u"}]}]}, "text only"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]}, "`image_url`"),
        ({"conversation": "c"}, "'conversation' is not supported"),
        ({"input": [3]}, "Invalid value for 'input"),
    ],
)
def test_malformed_responses_requests_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(CallError, match=message):
        responses_body(**{"items": fields.pop("input", "hi"), **fields})
