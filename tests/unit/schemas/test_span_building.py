"""`Span.from_attributes` builds what validation would, whether it validates or sees that nothing is to be done."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from agentlightning.schemas import Event, OtelResource, Span, TraceStatus

EXACT: dict[str, Any] = {
    "attributes": {"a": 1, "b": [1.5]},
    "rollout_id": "r",
    "attempt_id": "a",
    "sequence_id": 3,
    "name": "n",
    "trace_id": "t",
    "span_id": "s",
    "start_time": 1.0,
    "end_time": None,
}


def validated(arguments: dict[str, Any]) -> Span:
    """The same span by way of the constructor."""
    parent_id = arguments.get("parent_id")
    parts: dict[str, Any] = {
        "parent_id": None,
        "status": TraceStatus(status_code="OK"),
        "context": {"trace_id": arguments["trace_id"], "span_id": arguments["span_id"]},
        "parent": {"trace_id": arguments["trace_id"], "span_id": parent_id} if parent_id else None,
        "resource": OtelResource(),
    }
    return Span(**{**parts, **arguments})


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"attributes": {}},
        {"parent_id": "p"},
        {"start_time": 1, "end_time": 2},
        {"sequence_id": True},
        {"attributes": {"nested": {"x": None}}},
    ],
)
def test_a_span_by_hand_is_what_validation_makes(change: dict[str, Any]) -> None:
    arguments = {**EXACT, **change}
    span, other = Span.from_attributes(**arguments), validated(arguments)
    assert span == other
    assert span.model_dump() == other.model_dump()
    assert span.model_fields_set == other.model_fields_set
    assert {name: type(value) for name, value in span} == {name: type(value) for name, value in other}
    for part in ("status", "context", "resource"):
        assert getattr(span, part).model_fields_set == getattr(other, part).model_fields_set
    assert Span.model_validate_json(span.model_dump_json()) == span
    assert span.model_copy(deep=True) == span


def test_given_parts_are_kept_and_attributes_copied() -> None:
    status, resource, attributes = TraceStatus(status_code="ERROR"), OtelResource(schema_url="u"), {"a": 1}
    parts: dict[str, Any] = {"attributes": attributes, "status": status, "resource": resource}
    span = Span.from_attributes(**{**EXACT, **parts})
    attributes["b"] = 2
    assert span.attributes == {"a": 1}
    assert span.status is status
    assert span.resource is resource
    span.name = "other"  # assignment and extra fields work as on any span
    assert span.model_extra == {}


def test_two_spans_share_nothing() -> None:
    one, two = Span.from_attributes(**EXACT), Span.from_attributes(**EXACT)
    one.events.append(Event(name="e"))
    one.resource.attributes["x"] = 1
    one.attributes["x"] = 1
    assert (two.events, two.resource.attributes, "x" in two.attributes) == ([], {}, False)


@pytest.mark.parametrize(
    "change",
    [
        {"name": 5},
        {"attributes": {1: 2}},
        {"attributes": None},
        {"start_time": "soon"},
        {"sequence_id": "x"},
        {"trace_id": 7},
        {"status": "OK"},
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Span.from_attributes(**{**EXACT, **change})


def test_a_subclass_keeps_its_own_fields() -> None:
    class Marked(Span):
        mark: int = 7

    span = Marked.from_attributes(**EXACT)
    assert isinstance(span, Marked)
    assert span.mark == 7
