"""Model calls out of spans, token sequences out of calls."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlightning.agent import calls_from_spans, merge_calls
from agentlightning.schemas import ModelCall, Span, semconv
from tests.unit.agent.builders import model_call


def call(prompt, response, **more):
    return ModelCall(
        rollout_id="r",
        attempt_id="a",
        sequence_id=1,
        span_id=more.pop("span_id", "s"),
        prompt_token_ids=prompt,
        response_token_ids=response,
        response_logprobs=[-float(t) for t in response] if response is not None else None,
        **more,
    )


def test_call_has_everything_the_span_has():
    span = model_call(
        [1, 2],
        [3],
        tools=[{"type": "function"}],
        **{
            semconv.REQUEST_MODEL: "asked",
            semconv.MODEL_VERSION: "v3",
            semconv.CALL_TEMPERATURE: 0.5,
            semconv.CALL_CHOICE: 1,
        },
    )
    (got,) = calls_from_spans([span, Span.from_attributes(attributes={}, name="other")])
    assert (got.rollout_id, got.attempt_id, got.span_id, got.response_id) == ("r1", "a1", span.span_id, "resp-1")
    assert (got.prompt_token_ids, got.response_token_ids, got.response_logprobs) == ([1, 2], [3], [-0.5])
    assert (got.model, got.model_version, got.temperature, got.choice) == ("asked", "v3", 0.5, 1)
    assert got.messages == [{"role": "user", "content": "hi"}]
    assert got.output == {"role": "assistant", "content": "yo"}
    assert got.tools == [{"type": "function"}]
    assert got.finish_reason == "stop"
    assert got.trainable


def test_messages_may_be_left_out_and_attributes_may_be_json():
    span = model_call(
        json.dumps([1]),  # type: ignore[arg-type]
        json.dumps([2, 3]),  # type: ignore[arg-type]
        logprobs=json.dumps([-1.0, -2.0]),  # type: ignore[arg-type]
        **{semconv.FINISH_REASONS: '["length"]', semconv.CALL_OUTPUT_MESSAGES: {"role": "assistant"}},
    )
    (got,) = calls_from_spans([span], messages=False)
    assert (got.messages, got.output, got.response_token_ids, got.finish_reason) == ([], {}, [2, 3], "length")
    (full,) = calls_from_spans([span])
    assert full.output == {"role": "assistant"}


@pytest.mark.parametrize(
    ("span", "reason"),
    [
        (model_call(None, [1]), "no token ids"),
        (model_call([1], None), "no token ids"),
        (model_call([1], [2, 3], logprobs=[-1.0]), "2 response tokens but 1 log"),
        (model_call([1], [2], **{semconv.NOT_TRAINABLE_BECAUSE: "redacted"}), "redacted"),
    ],
)
def test_call_that_cannot_be_trained_on_says_why(span, reason):
    (got,) = calls_from_spans([span])
    assert reason in got.not_trainable_because
    assert merge_calls([got]) == []


def test_call_without_logprobs_says_so():
    span = model_call([1], [2])
    del span.attributes[semconv.RESPONSE_LOGPROBS], span.attributes[semconv.FINISH_REASONS]
    del span.attributes[semconv.CALL_OUTPUT_MESSAGES]
    (got,) = calls_from_spans([span])
    assert got.not_trainable_because == "the upstream reported no log-probabilities"
    assert (got.finish_reason, got.output) == ("", {})


def test_calls_come_in_sequence_order():
    spans = [model_call([1], [2], sequence_id=i) for i in (3, 1, 2)]
    assert [c.sequence_id for c in calls_from_spans(spans)] == [1, 2, 3]


def test_turns_that_continue_exactly_become_one_sequence():
    merged = merge_calls([call([1, 2], [3], span_id="x"), call([1, 2, 3, 4, 5], [6, 7], span_id="y")])
    assert len(merged) == 1
    (one,) = merged
    assert one.token_ids == [1, 2, 3, 4, 5, 6, 7]
    assert one.loss_mask == [0, 0, 1, 0, 0, 1, 1]
    assert one.logprobs == [0.0, 0.0, -3.0, 0.0, 0.0, -6.0, -7.0]
    assert (one.span_ids, one.breaks, one.break_reason) == (["x", "y"], 0, None)


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        ([9, 2, 3, 4], "history_changed"),
        ([1, 2, 8, 4], "retokenized"),
        ([1, 2, 3], "prompt_shorter"),
        ([1, 2], "prompt_shorter"),
        ([1], "history_changed"),
    ],
)
def test_anything_else_breaks_and_says_how(second, reason):
    first, other = merge_calls([call([1, 2], [3, 4]), call(second, [5])])
    assert (first.breaks, first.break_reason) == (0, None)
    assert (other.breaks, other.break_reason) == (1, reason)
    assert other.token_ids == [*second, 5]
    assert other.loss_mask == [0] * len(second) + [1]


def test_interleaved_conversations_are_told_apart():
    calls = [call([1], [2]), call([7], [8]), call([1, 2, 3], [4]), call([7, 8, 9], [10])]
    first, second = merge_calls(calls)
    assert first.token_ids == [1, 2, 3, 4]
    assert second.token_ids == [7, 8, 9, 10]
    assert (first.breaks, second.breaks) == (0, 1)


def test_two_continuations_of_one_turn_train_its_tokens_once():
    merged = merge_calls([call([1], [2]), call([1, 2, 3], [4]), call([1, 2, 3], [5])])
    assert [t.token_ids for t in merged] == [[1, 2, 3, 4], [1, 2, 3, 5]]
    assert [sum(t.loss_mask) for t in merged] == [2, 1]


def test_untrainable_turn_in_between_is_context_of_the_next():
    calls = [call([1], [2]), call([1, 2, 3], None, not_trainable_because="x"), call([1, 2, 3, 4, 5], [6])]
    (one,) = merge_calls(calls)
    assert one.token_ids == [1, 2, 3, 4, 5, 6]
    assert one.loss_mask == [0, 1, 0, 0, 0, 1]


ids = st.lists(st.integers(0, 3), min_size=1, max_size=4)


@given(st.lists(st.tuples(ids, ids), max_size=6))
def test_every_sampled_token_is_trained_exactly_once(turns):
    calls = [call(prompt, response) for prompt, response in turns]
    merged = merge_calls(calls)
    assert sum(sum(t.loss_mask) for t in merged) == sum(len(response) for _, response in turns)
    for one in merged:
        assert len(one.token_ids) == len(one.loss_mask) == len(one.logprobs)
        assert one.loss_mask[0] == 0
        assert all(
            p == (-float(t) if m else 0.0) for t, m, p in zip(one.token_ids, one.loss_mask, one.logprobs, strict=True)
        )
    assert sum(t.breaks for t in merged) == max(len(merged) - 1, 0)
