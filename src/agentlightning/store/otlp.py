"""OTLP over HTTP: traces from any OpenTelemetry exporter, as protobuf or JSON, gzipped or not, to the store.

A span says in its own attributes or its resource's which rollout and attempt it belongs to. Those that do not, or name
unknown ones, are counted as rejected in the answer. Knows the OTLP messages, not the store's implementation.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import io
import json
import zlib
from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from agentlightning.kit.errors import BadInputError, NotFoundError, PayloadTooLargeError
from agentlightning.schemas import Event, Link, OtelResource, Span, SpanContext, TraceStatus
from agentlightning.schemas.semconv import ATTEMPT_ID, ROLLOUT_ID, SPAN_SEQUENCE_ID
from agentlightning.store import wire
from agentlightning.store.base import LightningStore
from agentlightning.store.http import Endpoint, body_too_large, largest_body, respond_error, whole_body

if TYPE_CHECKING:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
    from opentelemetry.proto.trace.v1.trace_pb2 import Span as OtlpSpan

PROTOBUF = "application/x-protobuf"

_STATUS = ("UNSET", "OK", "ERROR")
_NANOSECONDS = 1_000_000_000
_ID_FIELDS = ("traceId", "spanId", "parentSpanId")


def otlp_endpoint(store: LightningStore) -> Endpoint:
    """The endpoint for `POST /v1/traces`."""

    async def traces(request: Request) -> Response:
        content_type = request.headers.get("content-type", "").split(";")[0].strip()
        if content_type not in (PROTOBUF, wire.JSON):
            error = BadInputError(
                f"Content type {content_type!r} is not OTLP.", hint=f"Send {PROTOBUF} or {wire.JSON}."
            )
            return respond_error(error, 415)
        try:
            message = _parse(_plain_body(request, await whole_body(request)), content_type)
        except PayloadTooLargeError:
            raise
        except BadInputError as error:
            return respond_error(error, 400)  # the status OTLP asks for
        spans, rejected = spans_from_otlp(message)
        unknown = await _store(store, spans)
        return _answer(content_type, rejected, unknown)

    return traces


def _plain_body(request: Request, body: bytes) -> bytes:
    if request.headers.get("content-encoding", "") != "gzip":
        return body
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(body)) as packed:
            plain = packed.read(largest_body() + 1)  # a few kilobytes may stand for gigabytes
    except (OSError, EOFError, zlib.error) as error:
        raise BadInputError(f"The body is not gzip: {error}.") from error
    if len(plain) > largest_body():
        raise body_too_large(f"The request unpacks to {len(plain):,} bytes or more")
    return plain


def _parse(body: bytes, content_type: str) -> ExportTraceServiceRequest:
    from google.protobuf import json_format
    from google.protobuf.message import DecodeError
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    message = ExportTraceServiceRequest()
    try:
        if content_type == PROTOBUF:
            message.ParseFromString(body)
        else:
            data = json.loads(body or b"{}")
            _hex_to_base64(data)
            json_format.ParseDict(data, message, ignore_unknown_fields=True)
    except (DecodeError, json_format.ParseError, ValueError, RecursionError) as error:
        raise BadInputError(f"The body is not an OTLP trace export: {error}.") from error
    return message


def _hex_to_base64(node: Any) -> None:
    """OTLP's JSON has ids in hex where protobuf's own JSON expects base64."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in _ID_FIELDS and isinstance(value, str):
                node[key] = base64.b64encode(bytes.fromhex(value)).decode()
            else:
                _hex_to_base64(value)
    elif isinstance(node, list):
        for item in node:
            _hex_to_base64(item)


def spans_from_otlp(message: ExportTraceServiceRequest) -> tuple[list[Span], int]:
    """The spans that name a rollout and an attempt, and how many do not."""
    spans: list[Span] = []
    rejected = 0
    for group in message.resource_spans:
        resource = OtelResource(attributes=_attributes(group.resource.attributes), schema_url=group.schema_url)
        for scope in group.scope_spans:
            for otlp in scope.spans:
                span = _span(otlp, resource)
                if span is None:
                    rejected += 1
                else:
                    spans.append(span)
    return spans, rejected


def _span(otlp: OtlpSpan, resource: OtelResource) -> Span | None:
    attributes = _attributes(otlp.attributes)
    where = {**resource.attributes, **attributes}
    rollout_id, attempt_id = where.get(ROLLOUT_ID), where.get(ATTEMPT_ID)
    if not rollout_id or not attempt_id:
        return None
    number = str(where.get(SPAN_SEQUENCE_ID, ""))
    trace_id, span_id = otlp.trace_id.hex(), otlp.span_id.hex()
    return Span(
        rollout_id=str(rollout_id),
        attempt_id=str(attempt_id),
        sequence_id=int(number) if number.isdecimal() else 0,
        trace_id=trace_id,
        span_id=span_id,
        parent_id=otlp.parent_span_id.hex() or None,
        name=otlp.name,
        status=TraceStatus(
            status_code=_STATUS[otlp.status.code],  # pyright: ignore[reportArgumentType]
            description=otlp.status.message or None,
        ),
        attributes=attributes,
        events=[
            Event(name=e.name, attributes=_attributes(e.attributes), timestamp=_seconds(e.time_unix_nano))
            for e in otlp.events
        ],
        links=[
            Link(
                context=SpanContext(trace_id=link.trace_id.hex(), span_id=link.span_id.hex()),
                attributes=_attributes(link.attributes),
            )
            for link in otlp.links
        ],
        start_time=_seconds(otlp.start_time_unix_nano),
        end_time=_seconds(otlp.end_time_unix_nano),
        context=SpanContext(trace_id=trace_id, span_id=span_id),
        resource=resource,
    )


def _seconds(nanoseconds: int) -> float | None:
    return nanoseconds / _NANOSECONDS if nanoseconds else None


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return _attributes(value.kvlist_value.values)
    return getattr(value, kind) if kind else None


async def _store(store: LightningStore, spans: list[Span]) -> int:
    """Add the spans, attempt by attempt; returns how many belong to unknown ones."""
    groups: defaultdict[tuple[str, str], list[Span]] = defaultdict(list)
    for span in spans:
        groups[span.rollout_id, span.attempt_id].append(span)
    results = await asyncio.gather(*(store.add_many_spans(group) for group in groups.values()), return_exceptions=True)
    unknown = 0
    for group, result in zip(groups.values(), results, strict=True):
        if isinstance(result, NotFoundError):
            unknown += len(group)
        elif isinstance(result, BaseException):
            raise result
    return unknown


def _answer(content_type: str, rejected: int, unknown: int) -> Response:
    from google.protobuf import json_format
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

    answer = ExportTraceServiceResponse()
    if rejected or unknown:
        answer.partial_success.rejected_spans = rejected + unknown
        answer.partial_success.error_message = (
            f"{rejected} spans without {ROLLOUT_ID} and {ATTEMPT_ID}, {unknown} spans of unknown attempts"
        )
    if content_type == PROTOBUF:
        return Response(answer.SerializeToString(), media_type=PROTOBUF)
    return Response(json_format.MessageToJson(answer), media_type=wire.JSON)
