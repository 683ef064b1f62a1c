"""OTLP traces, sent by the official exporter and by hand."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, Status, StatusCode

from agentlightning.schemas.semconv import ATTEMPT_ID, ROLLOUT_ID, SPAN_SEQUENCE_ID
from agentlightning.store import LightningStoreServer, SqlLightningStore, create_store_app

PROTOBUF = {"content-type": "application/x-protobuf"}


@pytest.fixture
async def http(sql_store: SqlLightningStore) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=create_store_app(sql_store))
    async with httpx.AsyncClient(transport=transport, base_url="http://store") as client:
        yield client


def _spans(resource: dict[str, Any], attributes: dict[str, Any] | None = None) -> tuple[ReadableSpan, ...]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource(resource))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    with tracer.start_as_current_span("outer", attributes=attributes) as outer:
        outer.add_event("thought", {"n": 1})
        outer.set_status(Status(StatusCode.ERROR, "broke"))
        link = Link(outer.get_span_context(), {"l": True})
        with tracer.start_as_current_span("inner", attributes=attributes, links=[link]) as inner:
            inner.set_attribute("ids", [1, 2, 3])
            inner.set_attribute("p", 0.5)
    provider.shutdown()
    return exporter.get_finished_spans()


def _encoded(*spans: ReadableSpan) -> ExportTraceServiceRequest:
    return ExportTraceServiceRequest.FromString(encode_spans(spans).SerializeToString())


@pytest.mark.parametrize("compressed", [False, True])
async def test_protobuf(http: httpx.AsyncClient, sql_store: SqlLightningStore, compressed: bool) -> None:
    started = await sql_store.start_rollout("x")
    sent = _spans({ROLLOUT_ID: started.rollout_id, ATTEMPT_ID: started.attempt.attempt_id})
    body = _encoded(*sent).SerializeToString()
    headers = dict(PROTOBUF)
    if compressed:
        body, headers["content-encoding"] = gzip.compress(body), "gzip"
    reply = await http.post("/v1/traces", content=body, headers=headers)
    assert reply.status_code == 200
    assert reply.headers["content-type"] == PROTOBUF["content-type"]
    answer = ExportTraceServiceResponse.FromString(reply.content)
    assert not answer.HasField("partial_success")
    inner, outer = await sql_store.query_spans(started.rollout_id)
    assert (inner.name, inner.attributes, inner.parent_id) == (
        "inner",
        {"ids": [1, 2, 3], "p": 0.5},
        outer.span_id,
    )
    assert (outer.status.status_code, outer.status.description) == ("ERROR", "broke")
    assert (outer.events[0].name, outer.events[0].attributes) == ("thought", {"n": 1})
    assert inner.links[0].context.span_id == outer.span_id
    assert outer.parent_id is None
    assert outer.start_time is not None
    assert abs(outer.start_time - sent[1].start_time / 1e9) < 1e-6  # type: ignore[operator]
    assert outer.resource.attributes[ROLLOUT_ID] == started.rollout_id
    assert outer.span_id == f"{sent[1].context.span_id:016x}"
    assert {inner.sequence_id, outer.sequence_id} == {1, 2}


async def test_json_has_ids_in_hex(http: httpx.AsyncClient, sql_store: SqlLightningStore) -> None:
    started = await sql_store.start_rollout("x")
    span = {
        "traceId": "5b8efff798038103d269b633813fc60c",
        "spanId": "eee19b7ec3c1b174",
        "parentSpanId": "eee19b7ec3c1b173",
        "name": "by hand",
        "startTimeUnixNano": "1544712660000000000",
        "attributes": [
            {"key": ROLLOUT_ID, "value": {"stringValue": started.rollout_id}},
            {"key": ATTEMPT_ID, "value": {"stringValue": started.attempt.attempt_id}},
            {"key": SPAN_SEQUENCE_ID, "value": {"stringValue": "7"}},
            {"key": "map", "value": {"kvlistValue": {"values": [{"key": "k", "value": {"intValue": "1"}}]}}},
            {"key": "empty", "value": {}},
        ],
        "unknownField": 1,
    }
    body = {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}
    reply = await http.post("/v1/traces", json=body)
    assert (reply.status_code, reply.json()) == (200, {})
    (found,) = await sql_store.query_spans(started.rollout_id)
    assert (found.trace_id, found.span_id, found.parent_id) == (
        span["traceId"],
        span["spanId"],
        span["parentSpanId"],
    )
    assert (found.sequence_id, found.attributes["map"], found.attributes["empty"]) == (7, {"k": 1}, None)
    assert (found.start_time, found.end_time) == (1544712660.0, None)


async def test_spans_without_a_place_are_reported(http: httpx.AsyncClient, sql_store: SqlLightningStore) -> None:
    started = await sql_store.start_rollout("x")
    key = {ROLLOUT_ID: started.rollout_id, ATTEMPT_ID: started.attempt.attempt_id}
    message = _encoded(*_spans(key))
    message.MergeFrom(_encoded(*_spans({})))
    message.MergeFrom(_encoded(*_spans({}, {ROLLOUT_ID: "ro-none", ATTEMPT_ID: "at-none"})))
    reply = await http.post("/v1/traces", content=message.SerializeToString(), headers=PROTOBUF)
    answer = ExportTraceServiceResponse.FromString(reply.content)
    assert reply.status_code == 200
    assert answer.partial_success.rejected_spans == 4
    assert "2 spans without" in answer.partial_success.error_message
    assert "2 spans of unknown" in answer.partial_success.error_message
    assert len(await sql_store.query_spans(started.rollout_id)) == 2


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        (PROTOBUF, b"\xff\xff", 400),
        ({**PROTOBUF, "content-encoding": "gzip"}, b"not gzip", 400),
        ({"content-type": "application/json"}, b"{", 400),
        ({"content-type": "application/json"}, b'{"resourceSpans": 3}', 400),
        (
            {"content-type": "application/json"},
            b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"xyz"}]}]}]}',
            400,
        ),
        ({"content-type": "text/plain"}, b"", 415),
    ],
)
async def test_bad_bodies(http: httpx.AsyncClient, headers: dict[str, str], body: bytes, status: int) -> None:
    reply = await http.post("/v1/traces", content=body, headers=headers)
    assert (reply.status_code, reply.json()["code"]) == (status, "BAD_INPUT")


async def test_empty_export_is_fine(http: httpx.AsyncClient) -> None:
    for headers in (PROTOBUF, {"content-type": "application/json"}):
        assert (await http.post("/v1/traces", headers=headers)).status_code == 200


async def test_other_signals_are_not_implemented(http: httpx.AsyncClient) -> None:
    for path in ("metrics", "logs", "development/profiles"):
        assert (await http.post(f"/v1/{path}")).status_code == 501


async def test_official_exporter(sql_store: SqlLightningStore) -> None:
    started = await sql_store.start_rollout("x")
    server = LightningStoreServer(sql_store, port=0)
    await server.start()
    exporter = OTLPSpanExporter(endpoint=server.otlp_traces_endpoint())
    provider = TracerProvider(
        resource=Resource({ROLLOUT_ID: started.rollout_id, ATTEMPT_ID: started.attempt.attempt_id})
    )
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with provider.get_tracer("t").start_as_current_span("exported"):
        pass
    provider.shutdown()
    assert [s.name for s in await sql_store.query_spans(started.rollout_id)] == ["exported"]
    await server.stop()
