"""Spans, with the real OpenTelemetry SDK on the other side."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanContext, Status, StatusCode, TraceFlags, TraceState

from agentlightning.schemas import OtelResource, Span, SpanCoreFields, TraceStatus
from agentlightning.schemas.semconv import AGL_VIRTUAL

REMOTE = SpanContext(
    trace_id=0xABC,
    span_id=0xDEF,
    is_remote=True,
    trace_flags=TraceFlags(1),
    trace_state=TraceState([("vendor", "value")]),
)


@pytest.fixture
def exported():
    """Makes spans with the SDK: `tracer, finished()`."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource({"service.name": "shop", "agentlightning.rollout_id": "r1"}))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider.get_tracer("test"), exporter.get_finished_spans
    provider.shutdown()


def convert(span: ReadableSpan) -> Span:
    return Span.from_opentelemetry(span, "r1", "a1", 7)


def test_identity_place_and_times_come_over(exported):
    tracer, finished = exported
    before = time.time()
    with tracer.start_as_current_span("outer"), tracer.start_as_current_span("inner"):
        pass
    inner, outer = (convert(span) for span in finished())
    assert (inner.rollout_id, inner.attempt_id, inner.sequence_id) == ("r1", "a1", 7)
    assert (inner.name, outer.name) == ("inner", "outer")
    assert inner.trace_id == outer.trace_id
    assert (len(inner.trace_id), len(inner.span_id)) == (32, 16)
    assert inner.parent_id == outer.span_id
    assert inner.parent is not None
    assert inner.parent.span_id == outer.span_id
    assert (outer.parent_id, outer.parent) == (None, None)
    assert inner.context is not None
    assert inner.context.trace_id == inner.trace_id
    assert before - 0.01 <= outer.start_time <= inner.start_time <= inner.end_time <= outer.end_time
    assert outer.end_time <= time.time() + 0.01


def test_ids_keep_their_leading_zeros():
    span = convert(ReadableSpan("zeros", context=REMOTE))
    assert span.trace_id == "0" * 29 + "abc"
    assert span.span_id == "0" * 13 + "def"
    assert span.context is not None
    assert span.context.is_remote
    assert span.context.trace_state == {"vendor": "value"}


def test_attributes_events_links_and_resource_are_plain_data(exported):
    tracer, finished = exported
    with tracer.start_as_current_span("work", links=[Link(REMOTE, {"why": "batch"})]) as span:
        span.set_attributes({"text": "x", "number": 1.5, "flag": True, "list": ["a", "b"]})
        span.add_event("checkpoint", {"step": 3}, timestamp=2_000_000_000)
    found = convert(finished()[0])
    assert found.attributes == {"text": "x", "number": 1.5, "flag": True, "list": ["a", "b"]}
    assert [(e.name, e.attributes, e.timestamp) for e in found.events] == [("checkpoint", {"step": 3}, 2.0)]
    assert found.links[0].context.span_id == "0" * 13 + "def"
    assert found.links[0].attributes == {"why": "batch"}
    assert found.resource.attributes == {"service.name": "shop", "agentlightning.rollout_id": "r1"}
    assert found.model_dump_json()


@pytest.mark.parametrize(
    ("status", "code", "description"),
    [
        (Status(StatusCode.ERROR, "boom"), "ERROR", "boom"),
        (Status(StatusCode.OK), "OK", None),
        (Status(StatusCode.UNSET), "UNSET", None),
    ],
)
def test_the_outcome_comes_over(exported, status, code, description):
    tracer, finished = exported
    with tracer.start_as_current_span("work") as span:
        span.set_status(status)
    found = convert(finished()[0])
    assert (found.status.status_code, found.status.description) == (code, description)


def test_an_exception_leaves_an_event_and_an_error(exported):
    tracer, finished = exported
    with pytest.raises(KeyError), tracer.start_as_current_span("work"):
        raise KeyError("missing")
    found = convert(finished()[0])
    assert found.status.status_code == "ERROR"
    assert found.events[0].name == "exception"
    assert found.events[0].attributes["exception.type"] == "KeyError"


def test_a_span_under_way_has_no_end():
    provider = TracerProvider()
    span = provider.get_tracer("t").start_span("open")
    try:
        found = convert(span)  # pyright: ignore[reportArgumentType]
        assert found.end_time is None
        assert found.start_time is not None
    finally:
        span.end()
        provider.shutdown()


def test_a_span_without_identity_is_refused():
    with pytest.raises(ValueError, match="span 'ghost' has no context"):
        convert(ReadableSpan("ghost", context=None))


def test_a_span_without_any_attribute_is_empty_not_broken():
    span = convert(ReadableSpan("bare", context=trace.INVALID_SPAN_CONTEXT))
    assert (span.attributes, span.events, span.links) == ({}, [], [])


def test_from_attributes_fills_what_is_not_given():
    span = Span.from_attributes(attributes={"a": 1})
    assert (span.rollout_id, span.attempt_id, span.sequence_id) == ("", "", 0)
    assert span.name == AGL_VIRTUAL
    assert span.status.status_code == "OK"
    assert span.context is not None
    assert (span.context.trace_id, span.context.span_id) == (span.trace_id, span.span_id)
    assert (span.parent_id, span.parent, span.start_time, span.end_time) == (None, None, None, None)


def test_from_attributes_takes_what_is_given():
    given_values = {
        "rollout_id": "r",
        "attempt_id": "a",
        "sequence_id": 4,
        "name": "n",
        "trace_id": "t" * 32,
        "span_id": "s" * 16,
        "parent_id": "p" * 16,
        "start_time": 1.0,
        "end_time": 2.0,
        "resource": OtelResource(attributes={"k": "v"}),
        "status": TraceStatus(status_code="ERROR", description="no"),
    }
    span = Span.from_attributes(attributes={}, **given_values)
    assert {key: getattr(span, key) for key in given_values} == given_values
    assert span.parent is not None
    assert (span.parent.trace_id, span.parent.span_id) == ("t" * 32, "p" * 16)


def test_core_fields_get_a_place_and_a_start():
    core = SpanCoreFields(
        name="n", status=TraceStatus(status_code="OK"), attributes={"k": 1}, start_time=None, end_time=None
    )
    before = time.time()
    span = Span.from_core_fields(core, rollout_id="r", attempt_id="a", sequence_id=2)
    assert (span.name, span.attributes, span.rollout_id, span.sequence_id) == ("n", {"k": 1}, "r", 2)
    assert span.start_time is not None
    assert before <= span.start_time <= time.time()


def test_core_fields_with_times_keep_them():
    core = SpanCoreFields(name="n", status=TraceStatus(), attributes={}, start_time=1.0, end_time=2.0)
    span = Span.from_core_fields(core)
    assert (span.start_time, span.end_time) == (1.0, 2.0)


def test_unknown_fields_are_kept():
    span = Span.model_validate({**Span.from_attributes(attributes={}).model_dump(), "scope": "theirs"})
    assert span.model_dump()["scope"] == "theirs"


def test_an_unknown_status_is_refused():
    with pytest.raises(ValueError, match="status_code"):
        TraceStatus.model_validate({"status_code": "FINE"})


attributes = st.dictionaries(
    st.text(min_size=1, max_size=8),
    st.one_of(
        st.text(max_size=8),
        st.booleans(),
        st.integers(-(2**53), 2**53),
        st.floats(allow_nan=False, allow_infinity=False),
        st.lists(st.integers(0, 2**40), max_size=5),
    ),
    max_size=5,
)


@given(attributes)
def test_a_span_survives_json(values):
    span = Span.from_attributes(attributes=values, start_time=1.5)
    assert Span.model_validate_json(span.model_dump_json()) == span
