"""Packing of values and spans."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentlightning.kit.errors import BadInputError
from agentlightning.schemas import Event, Link, OtelResource, Span, SpanContext, TraceStatus
from agentlightning.store.records import (
    SpanBody,
    check_body,
    pack,
    record_from_span,
    span_from_record,
    unpack,
)

plain_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
hex_ids = st.text("0123456789abcdef", min_size=16, max_size=16)
times = st.none() | st.floats(0, 2e9)
attributes = st.dictionaries(st.text(), plain_values, max_size=4)
contexts = st.builds(
    SpanContext,
    trace_id=hex_ids,
    span_id=hex_ids,
    is_remote=st.booleans(),
    trace_state=st.dictionaries(st.text(), st.text(), max_size=2),
)
spans = st.builds(
    Span,
    rollout_id=st.text(min_size=1),
    attempt_id=st.text(min_size=1),
    sequence_id=st.integers(0, 2**40),
    trace_id=hex_ids,
    span_id=hex_ids,
    parent_id=st.none() | hex_ids,
    name=st.text(),
    status=st.builds(
        TraceStatus, status_code=st.sampled_from(["UNSET", "OK", "ERROR"]), description=st.none() | st.text()
    ),
    attributes=attributes,
    events=st.lists(st.builds(Event, name=st.text(), attributes=attributes, timestamp=times), max_size=2),
    links=st.lists(st.builds(Link, context=contexts, attributes=st.none() | attributes), max_size=2),
    start_time=times,
    end_time=times,
    context=st.none() | contexts,
    parent=st.none() | contexts,
    resource=st.builds(OtelResource, attributes=attributes, schema_url=st.text()),
)


relaxed = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@relaxed
@given(plain_values)
def test_plain_values_survive(value: object) -> None:
    assert unpack(pack(value, "it")) == value


def test_nan_and_infinities_survive() -> None:
    back = unpack(pack([math.nan, math.inf, -math.inf], "it"))
    assert math.isnan(back[0])
    assert back[1:] == [math.inf, -math.inf]


@relaxed
@given(spans)
def test_spans_survive(span: Span) -> None:
    back = span_from_record(record_from_span(span))
    assert back.model_dump() == span.model_dump()
    assert Span.model_validate(back.model_dump()) == span


def test_span_extras_survive_even_with_awkward_names() -> None:
    span = Span.from_attributes(attributes={}, rollout_id="r", attempt_id="a", sequence_id=1)
    extra = Span.model_validate({**span.model_dump(), "own": 1, "_fields_set": 2})
    back = span_from_record(record_from_span(extra))
    assert back.own == 1  # type: ignore[attr-defined]


def test_numpy_dataclasses_and_models_are_plain_enough() -> None:
    @dataclass
    class Point:
        x: int

    value = {"scalar": np.float64(0.5), "array": np.arange(3), "point": Point(1), "status": TraceStatus()}
    assert unpack(pack(value, "it")) == {
        "scalar": 0.5,
        "array": [0, 1, 2],
        "point": {"x": 1},
        "status": {"status_code": "UNSET", "description": None},
    }


@pytest.mark.parametrize("value", [object(), {"f": print}, 2**70, {"k": {1, object()}}])
def test_other_values_are_refused(value: object) -> None:
    with pytest.raises(BadInputError, match="The thing"):
        pack(value, "The thing")


def test_circular_value_is_refused() -> None:
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(BadInputError):
        pack(loop, "it")


def test_nothing_is_nothing() -> None:
    assert unpack(None) is None


@pytest.mark.parametrize("body", [b"", b"\xc1", pack([1], "x"), pack({"attributes": 3}, "x")])
def test_malformed_body_is_refused(body: bytes) -> None:
    with pytest.raises(BadInputError, match="malformed"):
        check_body(body)
    check_body(pack(SpanBody(), "x"))
