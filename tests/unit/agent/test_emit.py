"""Emitters and getters."""

from __future__ import annotations

import asyncio

import pytest

from agentlightning import (
    OtelTracer,
    Span,
    emit_annotation,
    emit_exception,
    emit_message,
    emit_object,
    emit_reward,
    find_final_reward,
    find_reward_spans,
    get_message_value,
    get_object_value,
    get_reward_value,
    get_rewards_from_span,
    is_reward_span,
    operation,
    reward,
)
from agentlightning.agent import BadResultError, NoActiveTracerError, make_link_attributes, make_tag_attributes
from agentlightning.schemas import semconv


@pytest.fixture
def trace():
    tracer = OtelTracer()
    with tracer.trace_context_sync("test"):
        yield tracer.get_last_trace


def test_number_reward_has_the_documented_encoding(trace):
    core = emit_reward(True)
    assert core.attributes == {"agentlightning.reward.0.name": "primary", "agentlightning.reward.0.value": 1.0}
    (span,) = trace()
    assert span.name == "agentlightning.annotation"
    assert span.attributes == core.attributes
    assert span.status.status_code == "OK"
    assert is_reward_span(span)


def test_dict_reward_has_its_primary_key_first(trace):
    emit_reward({"cost": 2, "accuracy": 0.5}, primary_key="accuracy")
    (span,) = trace()
    assert get_rewards_from_span(span) == [("accuracy", 0.5), ("cost", 2.0)]
    assert get_reward_value(span) == 0.5


@pytest.mark.parametrize(
    ("value", "options", "says"),
    [
        ("high", {}, "is a number, not str"),
        (None, {}, "is a number, not NoneType"),
        (float("nan"), {}, "finite"),
        ({"a": 1}, {}, "needs primary_key"),
        ({"a": 1}, {"primary_key": "b"}, "'b' is not among"),
        ({"a": "x"}, {"primary_key": "a"}, "'a' is a number"),
    ],
)
def test_unusable_rewards_raise_and_record_nothing(trace, value, options, says):
    with pytest.raises(BadResultError, match=says) as caught:
        emit_reward(value, **options)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, ValueError)
    assert trace() == []


def test_final_reward_is_the_last_and_none_without(trace):
    assert find_final_reward([]) is None
    emit_message("before")
    assert find_final_reward(trace()) is None
    emit_reward(1.0)
    emit_reward(0.0)
    emit_message("after")
    assert find_final_reward(trace()) == 0.0
    assert len(find_reward_spans(trace())) == 2


def test_reward_of_before_0_3_is_read():
    old = Span.from_attributes(attributes={"reward": 0.7}, name="agentlightning.annotation")
    assert get_reward_value(old) == 0.7
    assert get_reward_value(Span.from_attributes(attributes={"reward": 0.7}, name="other")) is None


def test_propagate_false_records_nothing(trace):
    assert emit_reward(1.0, propagate=False).attributes[f"{semconv.REWARD_PREFIX}.0.value"] == 1.0
    emit_message("m", propagate=False)
    emit_exception(ValueError(), propagate=False)
    with operation(propagate=False) as op:
        op.set_output(1)
    assert op.span().attributes[semconv.OPERATION_OUTPUT] == 1
    assert trace() == []


def test_outside_of_a_rollout_emitting_raises():
    with pytest.raises(NoActiveTracerError, match="propagate=False") as caught:
        emit_reward(1.0)
    assert isinstance(caught.value, RuntimeError)


def test_tags_and_links_are_attributes_of_the_reward(trace):
    emit_reward(1.0, attributes={**make_tag_attributes(["fast"]), **make_link_attributes({"gen_ai.response.id": "x"})})
    (span,) = trace()
    assert span.attributes["agentlightning.tag.0"] == "fast"
    assert span.attributes["agentlightning.link.0.key_match"] == "gen_ai.response.id"


def test_messages(trace):
    emit_message("hello", attributes={"a": {"b": 1}})
    (span,) = trace()
    assert get_message_value(span) == "hello"
    assert span.attributes["a.b"] == 1
    assert get_message_value(Span.from_attributes(attributes={})) is None
    with pytest.raises(TypeError):
        emit_message(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        get_message_value(Span.from_attributes(attributes={semconv.MESSAGE_BODY: 3}))


@pytest.mark.parametrize("value", ["s", 3, 2.5, True, False, b"\x00\xff", {"a": [1, None]}, [1, "x"], None])
def test_objects_come_back_as_they_were(trace, value):
    emit_object(value)
    got = get_object_value(trace()[0])
    assert got == value
    assert type(got) is type(value)


def test_objects_that_are_no_json_are_refused():
    with pytest.raises(RuntimeError, match="cannot be written as JSON"):
        emit_object(object(), propagate=False)


def test_broken_objects_are_told_apart_from_none():
    assert get_object_value(Span.from_attributes(attributes={})) is None
    with pytest.raises(RuntimeError, match="broken"):
        get_object_value(Span.from_attributes(attributes={semconv.OBJECT_JSON: "{"}))
    with pytest.raises(RuntimeError, match="'complex'"):
        get_object_value(
            Span.from_attributes(attributes={semconv.OBJECT_LITERAL: "1j", semconv.OBJECT_TYPE: "complex"})
        )


def test_exceptions_carry_their_traceback(trace):
    try:
        raise KeyError("lost")
    except KeyError as error:
        emit_exception(error, attributes={"phase": "search"})
    (span,) = trace()
    assert span.name == semconv.AGL_EXCEPTION
    assert span.attributes[semconv.EXCEPTION_TYPE] == "KeyError"
    assert "raise KeyError" in span.attributes[semconv.EXCEPTION_STACKTRACE]
    assert span.attributes["phase"] == "search"
    with pytest.raises(TypeError):
        emit_exception("no exception")  # type: ignore[arg-type]


def test_annotations_are_flattened(trace):
    emit_annotation({"a": {"b": [1, 2]}, "c": [{"d": None}], "e": ["x", 1]})
    assert trace()[0].attributes == {"a.b": [1, 2], "c.0.d": "null", "e.0": "x", "e.1": 1}


def test_operation_as_decorator_records_arguments_result_and_nesting(trace):
    @operation
    def add(a, b=2, *rest):
        emit_message("inside")
        return {"sum": a + b}

    @operation(kind="math", name="renamed")
    def fails(x):
        raise ValueError("no")

    assert add(1) == {"sum": 3}
    with pytest.raises(ValueError, match="no"):
        fails(1)
    message, added, failed = trace()
    assert message.parent_id == added.span_id
    assert added.attributes["agentlightning.operation.name"] == "add"
    assert added.attributes["agentlightning.operation.input.b"] == 2
    assert added.attributes["agentlightning.operation.output.sum"] == 3
    assert failed.attributes["agentlightning.operation.name"] == "renamed"
    assert failed.attributes["kind"] == "math"
    assert failed.status.status_code == "ERROR"
    assert failed.events[0].attributes["exception.type"] == "ValueError"


async def test_operation_on_async_functions(trace):
    @operation
    async def work(x):
        await asyncio.sleep(0)
        return x

    assert await work(x=3) == 3
    assert trace()[0].attributes["agentlightning.operation.output"] == 3


def test_operation_as_block(trace):
    with operation(user=1, name="search") as op:
        op.set_input("q", limit=3)
        with pytest.raises(RuntimeError, match="not ended"):
            op.span()
        op.set_output(["a"])
    core = op.span()
    assert core.attributes["agentlightning.operation.input.args.0"] == "q"
    assert core.attributes["agentlightning.operation.input.limit"] == 3
    assert core.attributes["agentlightning.operation.output"] == ["a"]
    assert trace()[0].attributes == core.attributes
    with pytest.raises(RuntimeError, match="inside the"):
        op.set_output(1)


def test_recording_never_breaks_the_function(trace):
    @operation
    def odd(table):
        return {(1, 2): object()}

    odd({3: 4})
    assert "(1, 2)" in trace()[0].attributes["agentlightning.operation.output"]

    @operation
    def strict(a): ...

    with pytest.raises(TypeError, match="argument"):
        strict()


def test_operation_outside_of_a_rollout_just_runs():
    @operation
    def work(x):
        return x

    assert work(3) == 3
    with pytest.raises(ZeroDivisionError), operation() as op:
        1 / 0  # noqa: B018
    assert op.span().status.status_code == "ERROR"


async def test_reward_decorator_emits_what_is_returned(trace):
    @reward
    def score(x):
        return x

    @reward
    async def score_later(x):
        return x

    assert score(0.5) == 0.5
    assert await score_later(0.75) == 0.75
    assert score(None) is None
    assert [get_reward_value(span) for span in trace()] == [0.5, 0.75]
