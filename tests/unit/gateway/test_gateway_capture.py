"""What is read out of OpenAI-shaped answers."""

from __future__ import annotations

from typing import Any

import pytest

from agentlightning.gateway.capture import StreamCapture, capture_completion, check_trainable
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
