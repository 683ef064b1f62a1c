"""Flat attributes, tags and links."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlightning import OtelTracer, Span
from agentlightning.agent import (
    BadResultError,
    extract_links_from_attributes,
    extract_tags_from_attributes,
    make_link_attributes,
    make_tag_attributes,
    query_linked_spans,
)
from agentlightning.agent.emit.attributes import (
    flatten_attributes,
    is_leaf_list,
    sanitize_attributes,
    unflatten_attributes,
)


@pytest.mark.parametrize(
    ("nested", "flat"),
    [
        ({"a": {"b": 1}}, {"a.b": 1}),
        ({"a": [{"b": 1}, {"b": 2}]}, {"a.0.b": 1, "a.1.b": 2}),
        ({"a": [1, 2]}, {"a": [1, 2]}),
        ({"a": [1, "x"]}, {"a.0": 1, "a.1": "x"}),
        ([{"a": 1}], {"0.a": 1}),
        ({"a": []}, {}),
    ],
)
def test_flatten(nested, flat):
    assert flatten_attributes(nested) == flat


def test_flatten_expands_lists_when_asked():
    assert flatten_attributes({"a": [1, 2]}, expand_leaf_lists=True) == {"a.0": 1, "a.1": 2}


def test_keys_that_are_no_strings_are_refused():
    with pytest.raises(BadResultError, match="top level has 1"):
        flatten_attributes({1: 2})


words = st.text("abc", min_size=1, max_size=3)
trees = st.recursive(
    st.integers() | st.text(max_size=3) | st.booleans(),
    lambda inner: st.dictionaries(words, inner, min_size=1, max_size=3) | st.lists(inner, min_size=1, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(words, trees, min_size=1, max_size=3))
def test_unflatten_inverts_flatten(tree):
    assert unflatten_attributes(flatten_attributes(tree)) == tree
    assert unflatten_attributes(flatten_attributes(tree, expand_leaf_lists=True)) == tree


def test_sanitize_keeps_what_opentelemetry_takes_and_writes_the_rest_as_json():
    assert sanitize_attributes({"a": 1, "b": [True], "c": {"x": 1}, "d": None, "e": (1.0, 2.0)}) == {
        "a": 1,
        "b": [True],
        "c": '{"x": 1}',
        "d": "null",
        "e": [1.0, 2.0],
    }
    assert not is_leaf_list([1, True])


def test_tags_come_back():
    attributes = make_tag_attributes(["fast", "reliable"])
    assert extract_tags_from_attributes(attributes) == ["fast", "reliable"]
    assert extract_tags_from_attributes({"x": 1}) == []


def test_links_find_the_spans_they_mean():
    wanted = Span.from_attributes(attributes={"gen_ai.response.id": "x"}, trace_id="t", span_id="s")
    other = Span.from_attributes(attributes={"gen_ai.response.id": "y"})
    by_attribute = extract_links_from_attributes(make_link_attributes({"gen_ai.response.id": "x"}))
    assert query_linked_spans([wanted, other], by_attribute) == [wanted]
    by_identity = extract_links_from_attributes(make_link_attributes({"trace_id": "t", "span_id": "s"}))
    assert query_linked_spans([wanted, other], by_identity) == [wanted]
    assert extract_links_from_attributes({}) == []
    with pytest.raises(BadResultError, match="'n' is int"):
        make_link_attributes({"n": 3})  # type: ignore[dict-item]


def test_links_find_spans_of_the_sdk():
    with OtelTracer().trace_context_sync("x") as otel:
        span = otel.start_span("a")
        span.end()
    identity = f"{span.get_span_context().span_id:016x}"
    links = extract_links_from_attributes(make_link_attributes({"span_id": identity}))
    assert query_linked_spans([span], links) == [span]
    trace = extract_links_from_attributes(make_link_attributes({"trace_id": "0"}))
    assert query_linked_spans([span], trace) == []
