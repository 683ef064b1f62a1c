"""Spans: what comes back, duplicates, sequence ids, signs of life, queries."""

from __future__ import annotations

import math

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from agentlightning.kit.errors import BadInputError, NotFoundError
from agentlightning.schemas import (
    AttemptedRollout,
    Event,
    Link,
    OtelResource,
    Span,
    SpanContext,
    TraceStatus,
)
from agentlightning.store import LightningStore
from tests.contract.conftest import make_span


async def test_a_span_comes_back_as_it_was(store: LightningStore) -> None:
    started = await store.start_rollout("x")
    full = Span(
        rollout_id=started.rollout_id,
        attempt_id=started.attempt.attempt_id,
        sequence_id=7,
        trace_id="0" * 31 + "1",
        span_id="0" * 15 + "2",
        parent_id="0" * 15 + "3",
        name="openai.chat.completion",
        status=TraceStatus(status_code="ERROR", description="broke"),
        attributes={"ids": list(range(300)), "logprob": -math.inf, "b": b"\x01", "s": "ü", "n": None},
        events=[Event(name="e", attributes={"k": 1}, timestamp=1.5)],
        links=[Link(context=SpanContext(trace_id="t", span_id="s"), attributes={"l": 1})],
        start_time=1.25,
        end_time=2.5,
        context=SpanContext(trace_id="0" * 31 + "1", span_id="0" * 15 + "2", trace_state={"v": "1"}),
        parent=SpanContext(trace_id="0" * 31 + "1", span_id="0" * 15 + "3", is_remote=True),
        resource=OtelResource(attributes={"service.name": "x"}, schema_url="u"),
        custom="kept",  # type: ignore[call-arg]
    )
    plain = make_span(started.rollout_id, started.attempt.attempt_id, 8, parent_id="p" * 16)
    assert list(await store.add_many_spans([full, plain])) == [full, plain]
    found = await store.query_spans(started.rollout_id)
    assert [s.model_dump() for s in found] == [full.model_dump(), plain.model_dump()]
    assert found[0].custom == "kept"  # type: ignore[attr-defined]
    assert found[1].context == plain.context
    assert isinstance(found[0].events[0], Event)


async def test_first_span_sets_running_and_heartbeat(store: LightningStore) -> None:
    started = await store.start_rollout("x")
    await store.add_span(make_span(started.rollout_id, started.attempt.attempt_id))
    rollout = await store.get_rollout_by_id(started.rollout_id)
    assert isinstance(rollout, AttemptedRollout)
    assert (rollout.status, rollout.attempt.status) == ("running", "running")
    assert rollout.attempt.last_heartbeat_time is not None


async def test_span_after_the_end_is_kept_and_changes_no_status(store: LightningStore) -> None:
    started = await store.start_rollout("x")
    await store.update_attempt(started.rollout_id, "latest", status="succeeded")
    await store.add_span(make_span(started.rollout_id, started.attempt.attempt_id))
    rollout = await store.get_rollout_by_id(started.rollout_id)
    assert isinstance(rollout, AttemptedRollout)
    assert (rollout.status, rollout.attempt.status) == ("succeeded", "succeeded")
    assert len(await store.query_spans(started.rollout_id)) == 1


async def test_span_of_a_superseded_attempt_is_kept_and_changes_nothing(store: LightningStore) -> None:
    started = await store.start_rollout("x")
    newer = await store.start_attempt(started.rollout_id)
    await store.add_span(make_span(started.rollout_id, started.attempt.attempt_id))
    rollout = await store.get_rollout_by_id(started.rollout_id)
    assert isinstance(rollout, AttemptedRollout)
    assert (rollout.status, rollout.attempt.status) == ("preparing", "preparing")
    old = next(a for a in await store.query_attempts(started.rollout_id) if a.sequence_id == 1)
    assert (old.status, old.last_heartbeat_time) == ("preparing", None)
    assert len(await store.query_spans(started.rollout_id, started.attempt.attempt_id)) == 1
    assert len(await store.query_spans(started.rollout_id, newer.attempt.attempt_id)) == 0
    assert len(await store.query_spans(started.rollout_id, "latest")) == 0


async def test_timed_out_attempt_stays_timed_out_when_a_span_comes(store: LightningStore) -> None:
    started = await store.start_rollout("x")
    await store.update_attempt(started.rollout_id, "latest", status="timeout")
    await store.add_span(make_span(started.rollout_id, started.attempt.attempt_id))
    rollout = await store.get_rollout_by_id(started.rollout_id)
    assert isinstance(rollout, AttemptedRollout)
    assert (rollout.status, rollout.attempt.status) == ("failed", "timeout")


async def test_duplicates_are_ignored(store: LightningStore) -> None:
    started = await store.start_rollout("x")
    span = make_span(started.rollout_id, started.attempt.attempt_id)
    other = make_span(started.rollout_id, started.attempt.attempt_id)
    first = await store.add_span(span)
    assert first is not None
    assert first.sequence_id == 1
    assert await store.add_span(span) is None
    added = await store.add_many_spans([span, other, other])
    assert [(s.span_id, s.sequence_id) for s in added] == [(other.span_id, 2)]
    assert len(await store.query_spans(started.rollout_id)) == 2
    newer = await store.start_attempt(started.rollout_id)
    again = span.model_copy(update={"attempt_id": newer.attempt.attempt_id})
    assert await store.add_span(again) is not None


async def test_sequence_ids_count_up_and_follow_explicit_ones(store: LightningStore) -> None:
    started = await store.start_rollout("x")
    key = (started.rollout_id, started.attempt.attempt_id)
    assert [await store.get_next_span_sequence_id(*key) for _ in range(2)] == [1, 2]
    assert list(await store.get_many_span_sequence_ids([key, key])) == [3, 4]
    assert list(await store.get_many_span_sequence_ids([])) == []
    await store.add_span(make_span(*key, 10))
    added = await store.add_many_spans([make_span(*key, 0), make_span(*key, -1), make_span(*key, 5)])
    assert [s.sequence_id for s in added] == [11, 12, 5]
    assert await store.get_next_span_sequence_id(*key) == 13
    with pytest.raises(NotFoundError):
        await store.get_next_span_sequence_id("ro-none", "at-none")
    with pytest.raises(NotFoundError):
        await store.get_next_span_sequence_id(started.rollout_id, "at-none")


async def test_adding_to_unknown_attempts_stores_nothing(store: LightningStore) -> None:
    started = await store.start_rollout("x")
    good = make_span(started.rollout_id, started.attempt.attempt_id)
    for bad in (make_span("ro-none", "at-none"), make_span(started.rollout_id, "at-none")):
        with pytest.raises(NotFoundError):
            await store.add_many_spans([good, bad])
        with pytest.raises(ValueError, match="none"):
            await store.add_span(bad)
    with pytest.raises(BadInputError, match="step"):
        await store.add_span(make_span(started.rollout_id, started.attempt.attempt_id, attributes={"o": object()}))
    assert len(await store.query_spans(started.rollout_id)) == 0
    assert list(await store.add_many_spans([])) == []


async def test_add_otel_span(store: LightningStore) -> None:
    started = await store.start_rollout("x")
    key = (started.rollout_id, started.attempt.attempt_id)
    first, second = _otel_spans()
    added = await store.add_otel_span(*key, first)
    assert added is not None
    assert (added.name, added.sequence_id, added.attributes) == ("inner", 1, {"k": "v"})
    explicit = await store.add_otel_span(*key, second, sequence_id=9)
    assert explicit is not None
    assert explicit.sequence_id == 9
    assert await store.add_otel_span(*key, second) is None
    assert added.parent_id == explicit.span_id
    assert added.resource.attributes["service.name"] == "agent"


def _otel_spans() -> tuple[ReadableSpan, ReadableSpan]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource({"service.name": "agent"}))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    with tracer.start_as_current_span("outer"), tracer.start_as_current_span("inner") as inner:
        inner.set_attribute("k", "v")
    first, second = exporter.get_finished_spans()
    provider.shutdown()
    return first, second


async def _three_spans(store: LightningStore) -> AttemptedRollout:
    started = await store.start_rollout("x")
    key = (started.rollout_id, started.attempt.attempt_id)
    await store.add_many_spans(
        [
            make_span(*key, 3, name="gamma", trace_id="t1", span_id="s3", parent_id="s1"),
            make_span(*key, 1, name="alpha", trace_id="t1", span_id="s1", start_time=5.0),
            make_span(*key, 2, name="beta", trace_id="t2", span_id="s2", start_time=4.0),
        ]
    )
    return started


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, ["alpha", "beta", "gamma"]),
        ({"name": "beta"}, ["beta"]),
        ({"name_contains": "a", "trace_id": "t1"}, ["alpha", "gamma"]),
        ({"name_contains": "ALPHA"}, []),
        ({"name": "alpha", "span_id": "s2", "filter_logic": "or"}, ["alpha", "beta"]),
        ({"name": "alpha", "span_id": "s2"}, []),
        ({"parent_id": "s1"}, ["gamma"]),
        ({"parent_id_contains": "s", "trace_id_contains": "1", "span_id_contains": "3"}, ["gamma"]),
        ({"sort_by": "name", "sort_order": "desc"}, ["gamma", "beta", "alpha"]),
        ({"sort_by": "start_time", "limit": 1, "offset": 1}, ["beta"]),
        ({"limit": 2}, ["alpha", "beta"]),
        ({"offset": 2}, ["gamma"]),
        ({"limit": 0}, []),
        ({"sort_by": None}, ["gamma", "alpha", "beta"]),
    ],
)
async def test_query_spans(store: LightningStore, filters: dict[str, object], expected: list[str]) -> None:
    started = await _three_spans(store)
    page = await store.query_spans(started.rollout_id, "latest", **filters)  # type: ignore[arg-type]
    assert [s.name for s in page] == expected


async def test_query_spans_page_counts_all_matches(store: LightningStore) -> None:
    started = await _three_spans(store)
    page = await store.query_spans(started.rollout_id, limit=1, offset=1, trace_id="t1")
    assert (len(page), page.total, page.limit, page.offset) == (1, 2, 1, 1)


async def test_query_spans_when_arguments_are_bad(store: LightningStore) -> None:
    started = await _three_spans(store)
    with pytest.raises(NotFoundError):
        await store.query_spans("ro-none")
    with pytest.raises(NotFoundError):
        await store.query_spans(started.rollout_id, "at-none")
    for bad in ({"sort_by": "attributes"}, {"limit": -2}, {"offset": -1}, {"sort_order": "up"}):
        with pytest.raises(BadInputError):
            await store.query_spans(started.rollout_id, **bad)  # type: ignore[arg-type]


async def test_query_many_spans_reads_all_at_once(store: LightningStore) -> None:
    first = await _three_spans(store)
    second = await store.start_rollout("y")
    await store.add_span(make_span(second.rollout_id, second.attempt.attempt_id, name="old"))
    newer = await store.start_attempt(second.rollout_id)
    await store.add_span(make_span(second.rollout_id, newer.attempt.attempt_id, name="new"))
    ids = [second.rollout_id, first.rollout_id, "ro-none"]
    found = await store.query_many_spans(ids)
    assert {k: [s.name for s in v] for k, v in found.items()} == {
        second.rollout_id: ["new"],
        first.rollout_id: ["alpha", "beta", "gamma"],
        "ro-none": [],
    }
    every = await store.query_many_spans(ids, attempt_id=None)
    assert [s.name for s in every[second.rollout_id]] == ["old", "new"]
    named = await store.query_many_spans(ids, name="beta")
    assert [s.name for spans in named.values() for s in spans] == ["beta"]
    assert await store.query_many_spans([]) == {}
