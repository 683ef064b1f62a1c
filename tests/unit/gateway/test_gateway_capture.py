"""What is read out of OpenAI-shaped answers."""

from __future__ import annotations

from typing import Any

import pytest

from agentlightning.gateway.capture import MALFORMED, StreamCapture, capture_completion, check_trainable
from agentlightning.gateway.upstream.shapes import fault_in_answer, fault_in_chunk
from tests.unit.gateway.scripted import chunks, completion


@pytest.mark.parametrize(
    ("prompt", "response", "logprobs", "reason"),
    [
        ([1], [2], [-0.1], None),
        (None, [2], [-0.1], "the upstream does not report token ids"),
        ([1], None, [-0.1], "the upstream does not report token ids"),
        ([1], [2], None, "the upstream does not report logprobs"),
        ([1], [2, 3], [-0.1], "the upstream's token ids and logprobs differ in length"),
        ([1], [], [], "the response has no tokens"),
        ([1], [2], [float("nan")], "a logprob is not a finite number"),
        ([1], [2], [float("-inf")], "a logprob is not a finite number"),
    ],
)
def test_why_a_response_cannot_be_trained_on(prompt: Any, response: Any, logprobs: Any, reason: str | None) -> None:
    assert check_trainable(prompt, response, logprobs) == reason


def test_token_ids_are_found_where_sglang_puts_them() -> None:
    body = completion({"messages": [], "return_token_ids": True, "logprobs": True})
    body["choices"][0]["prompt_token_ids"] = body.pop("prompt_token_ids")
    [choice] = capture_completion("chat", body).choices
    assert choice.prompt_token_ids == [1, 2, 3]
    assert choice.not_trainable_because is None


def test_a_bare_answer_is_captured_too() -> None:
    capture = capture_completion("chat", {"choices": [{"message": None}, {}]})
    assert [choice.index for choice in capture.choices] == [0, 1]
    assert (capture.response_id, capture.model, capture.prompt_tokens) == ("", "", None)


def test_a_stream_is_put_together_like_the_whole_answer() -> None:
    asked: dict[str, Any] = {"return_token_ids": True, "logprobs": True, "stream_options": {"include_usage": True}}
    stream = StreamCapture("chat")
    assert stream.is_empty
    for event in chunks(asked):
        stream.feed(event)
    capture = stream.capture()
    [choice] = capture.choices
    assert choice.output == {"role": "assistant", "content": "hello there"}
    assert (choice.token_ids, choice.logprobs) == ([11, 12], [-0.11, -0.12])
    assert (choice.prompt_token_ids, choice.not_trainable_because) == ([1, 2, 3], None)
    assert (capture.response_id, capture.model, capture.completion_tokens) == ("chatcmpl-s", "m", 2)
    assert stream.finished_choices == 1


def test_streamed_choices_of_text_completions_are_kept_apart() -> None:
    stream = StreamCapture("text")
    for index, piece in [(1, "b1"), (0, "a1"), (1, "b2"), (0, None)]:
        stream.feed({"id": "t", "choices": [{"index": index, "text": piece}]})
    assert [choice.output["content"] for choice in stream.capture().choices] == ["a1", "b1b2"]
    assert stream.finished_choices == 0


def test_other_fields_of_deltas_are_kept() -> None:
    stream = StreamCapture("chat")
    for delta in ({"reasoning_content": "so "}, {"reasoning_content": "what", "content": None}, {"audio": {"id": 1}}):
        stream.feed({"choices": [{"index": 0, "delta": delta}]})
    [choice] = stream.capture().choices
    assert choice.output["reasoning_content"] == "so what"
    assert choice.output["audio"] == {"id": 1}


@pytest.mark.parametrize(
    "extra",
    [
        {"token_ids": "ab"},
        {"token_ids": ["a", "b"]},
        {"token_ids": [-1, 2]},
        {"token_ids": [1.5, 2]},
        {"token_ids": [None, 2]},
        {"token_ids": {"1": 2, "3": 4}},
        {"prompt_token_ids": [[1], [2]]},
        {"logprobs": "x"},
        {"logprobs": {"content": [None, None]}},
        {"logprobs": {"content": [{"logprob": None}, {"logprob": -1.0}]}},
        {"logprobs": {"content": [{"logprob": "-1"}, {"logprob": -1.0}]}},
        {"logprobs": {"content": 5}},
    ],
)
def test_malformed_extras_make_a_choice_untrainable_and_nothing_worse(extra: dict[str, Any]) -> None:
    good = {
        "index": 0,
        "prompt_token_ids": [1],
        "token_ids": [2, 3],
        "logprobs": {"content": [{"logprob": -0.5}, {"logprob": -0.25}]},
        "finish_reason": "stop",
    }
    whole = capture_completion("chat", {"choices": [{**good, **extra, "message": {"content": "hi"}}]})
    stream = StreamCapture("chat")
    stream.feed({"choices": [{**good, **extra, "delta": {"content": "hi"}}]})
    stream.feed({"choices": [{"index": 0, "delta": {}, "token_ids": [4], "logprobs": {"content": [{"logprob": -1}]}}]})
    for capture in (whole, stream.capture()):
        [choice] = capture.choices
        assert choice.not_trainable_because == MALFORMED
        assert choice.token_ids is choice.prompt_token_ids is choice.logprobs is None
        assert choice.output["content"] == "hi"


def test_other_fields_of_the_wrong_kind_are_left_out() -> None:
    body = {
        "id": 5,
        "model": None,
        "choices": [{"index": None, "finish_reason": 7}],
        "usage": {"prompt_tokens": "3", "completion_tokens": 2, "prompt_tokens_details": "none"},
    }
    capture = capture_completion("chat", body)
    assert (capture.response_id, capture.model, capture.choices[0].finish_reason) == ("5", "", "7")
    assert (capture.prompt_tokens, capture.completion_tokens, capture.cached_tokens) == (None, 2, None)
    assert capture_completion("chat", {**body, "usage": "much"}).completion_tokens is None


def test_an_index_of_the_servers_choosing_makes_no_calls_that_it_did_not_send() -> None:
    def part(index: int | None, arguments: Any, name: str | None = None) -> dict[str, Any]:
        return {"index": index, "id": name, "function": {"name": name, "arguments": arguments}}

    stream = StreamCapture("chat")
    for calls in (
        [part(10**9, '{"a"', "far"), part(-3, "{}", "first")],
        [part(10**9, ": 1}")],
        [part(None, {"b": 2}, "last")],
    ):
        stream.feed({"choices": [{"index": 0, "delta": {"tool_calls": calls}}]})
    told = [call["function"] for call in stream.capture().choices[0].output["tool_calls"]]
    assert told == [
        {"name": "first", "arguments": "{}"},
        {"name": "far", "arguments": '{"a": 1}'},
        {"name": "last", "arguments": '{"b":2}'},
    ]


def test_content_in_parts_is_kept_as_it_came() -> None:
    stream = StreamCapture("chat")
    for content in ("a", [{"type": "thinking", "thinking": []}], "b"):
        stream.feed({"choices": [{"index": 0, "delta": {"content": content}}]})
    parts = [{"type": "text", "text": "a"}, {"type": "thinking", "thinking": []}, {"type": "text", "text": "b"}]
    assert stream.capture().choices[0].output["content"] == parts


@pytest.mark.parametrize(
    ("choices", "fault"),
    [
        ("ab", "no"),
        ([None], "a choice is no object"),
        ([{"index": "0"}], "the index of a choice"),
        ([{"text": 5}], "the text of a choice"),
        ([{"part": "text"}], "a message is no object"),
        ([{"part": {"content": 5}}], "the content of a message"),
        ([{"part": {"tool_calls": {}}}], "the tool calls"),
        ([{"part": {"tool_calls": [None]}}], "a tool call is no object"),
        ([{"part": {"tool_calls": [{"index": "a"}]}}], "the index of a tool call"),
        ([{"part": {"tool_calls": [{"function": {"name": []}}]}}], "the name of a tool call"),
    ],
)
def test_what_is_no_completion_is_told_before_anything_relies_on_it(choices: Any, fault: str) -> None:
    def named(part: str) -> Any:
        if isinstance(choices, str):
            return {"choices": choices}
        return {"choices": [c and {part if key == "part" else key: value for key, value in c.items()} for c in choices]}

    assert fault in str(fault_in_answer(named("message")))
    assert fault in str(fault_in_chunk(named("delta")))


def test_what_servers_leave_out_is_no_fault() -> None:
    parts = [
        None,
        {"content": None},
        {"content": [{"type": "text"}]},
        {"tool_calls": [{"index": None, "function": None}]},
    ]
    for part in parts:
        assert fault_in_answer({"choices": [{"message": part}]}) is None
        assert fault_in_chunk({"choices": [{"index": 0, "delta": part}]}) is None
    assert fault_in_chunk({"usage": {}}) is fault_in_chunk({"choices": None}) is None
