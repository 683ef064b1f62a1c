"""Spans: the data an attempt leaves behind, in the shape of OpenTelemetry. Knows nothing of exporters."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from agentlightning.kit.ids import new_span_id, new_trace_id
from agentlightning.schemas.building import assemble
from agentlightning.schemas.semconv import AGL_VIRTUAL

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

AttributeValue = str | bool | int | float | Sequence[str] | Sequence[bool] | Sequence[int] | Sequence[float]
# Any on purpose: validating thousands of token ids against the union above costs more than storing them.
Attributes = dict[str, Any]
StatusCode = Literal["UNSET", "OK", "ERROR"]

_NANOSECONDS = 1_000_000_000


class TraceStatus(BaseModel):
    """Outcome of a span."""

    model_config = ConfigDict(extra="allow")

    status_code: StatusCode = "UNSET"
    description: str | None = None


class SpanContext(BaseModel):
    """Identity of a span in its trace; ids are lower-case hex."""

    model_config = ConfigDict(extra="allow")

    trace_id: str
    span_id: str
    is_remote: bool = False
    trace_state: dict[str, str] = Field(default_factory=dict[str, str])


class Event(BaseModel):
    """Something that happened during a span."""

    model_config = ConfigDict(extra="allow")

    name: str
    attributes: Attributes = Field(default_factory=dict[str, Any])
    timestamp: float | None = None


class Link(BaseModel):
    """A reference to a span elsewhere."""

    model_config = ConfigDict(extra="allow")

    context: SpanContext
    attributes: Attributes | None = None


class OtelResource(BaseModel):
    """What produced the span (OpenTelemetry's resource, not a tunable one)."""

    attributes: Attributes = Field(default_factory=dict[str, Any])
    schema_url: str = ""


class SpanCoreFields(BaseModel):
    """The part of a span that an emitter decides on."""

    name: str
    status: TraceStatus
    attributes: Attributes
    start_time: float | None
    end_time: float | None


class Span(BaseModel):
    """A stored span. Times are Unix seconds, UTC; fields beyond these are kept as extras."""

    model_config = ConfigDict(extra="allow")

    rollout_id: str
    attempt_id: str
    sequence_id: int
    """Order within the attempt, from 1."""
    trace_id: str
    span_id: str
    parent_id: str | None = None
    name: str
    status: TraceStatus = Field(default_factory=TraceStatus)
    attributes: Attributes = Field(default_factory=dict[str, Any])
    events: list[Event] = Field(default_factory=list[Event])
    links: list[Link] = Field(default_factory=list[Link])
    start_time: float | None = None
    end_time: float | None = None
    context: SpanContext | None = None
    parent: SpanContext | None = None
    resource: OtelResource = Field(default_factory=OtelResource)

    @classmethod
    def from_attributes(
        cls,
        *,
        attributes: Attributes,
        rollout_id: str | None = None,
        attempt_id: str | None = None,
        sequence_id: int | None = None,
        name: str | None = None,
        trace_id: str | None = None,
        span_id: str | None = None,
        parent_id: str | None = None,
        start_time: float | None = None,
        end_time: float | None = None,
        resource: OtelResource | None = None,
        status: TraceStatus | None = None,
    ) -> Span:
        """Build a span by hand; what is not given is generated (ids) or left empty."""
        trace_id = trace_id or new_trace_id()
        span_id = span_id or new_span_id()
        fields: dict[str, Any] = {
            "rollout_id": rollout_id or "",
            "attempt_id": attempt_id or "",
            "sequence_id": sequence_id or 0,
            "trace_id": trace_id,
            "span_id": span_id,
            "parent_id": parent_id,
            "name": name or AGL_VIRTUAL,
            "status": status,
            "attributes": attributes,
            "events": [],
            "links": [],
            "start_time": start_time,
            "end_time": end_time,
            "context": None,  # made of the ids
            "parent": None,
            "resource": resource,
        }
        return _build(fields) if cls is Span and _is_exact(fields) else _validate(cls, fields)

    @classmethod
    def from_core_fields(
        cls,
        core: SpanCoreFields,
        *,
        rollout_id: str | None = None,
        attempt_id: str | None = None,
        sequence_id: int | None = None,
    ) -> Span:
        """Give an emitter's span its place in an attempt."""
        return cls.from_attributes(
            attributes=core.attributes,
            rollout_id=rollout_id,
            attempt_id=attempt_id,
            sequence_id=sequence_id,
            name=core.name,
            start_time=core.start_time or time.time(),
            end_time=core.end_time,
            status=core.status,
        )

    @classmethod
    def from_opentelemetry(cls, src: ReadableSpan, rollout_id: str, attempt_id: str, sequence_id: int) -> Span:
        """Convert a span of the OpenTelemetry SDK.

        Raises:
            ValueError: The span carries no context, so it has no identity.
        """
        context = src.get_span_context()
        if context is None:
            raise ValueError(f"span {src.name!r} has no context")
        parent = src.parent
        return cls(
            rollout_id=rollout_id,
            attempt_id=attempt_id,
            sequence_id=sequence_id,
            trace_id=f"{context.trace_id:032x}",
            span_id=f"{context.span_id:016x}",
            parent_id=f"{parent.span_id:016x}" if parent else None,
            name=src.name,
            status=TraceStatus(status_code=src.status.status_code.name, description=src.status.description),
            attributes=_plain(src.attributes),
            events=[
                Event(name=e.name, attributes=_plain(e.attributes), timestamp=_seconds(e.timestamp)) for e in src.events
            ],
            links=[Link(context=_context(link.context), attributes=_plain(link.attributes)) for link in src.links],
            start_time=_seconds(src.start_time),
            end_time=_seconds(src.end_time),
            context=_context(context),
            parent=_context(parent) if parent else None,
            resource=OtelResource(attributes=_plain(src.resource.attributes), schema_url=src.resource.schema_url or ""),
        )


_TIMES = (float, type(None))
_ONLY_TEXT = {str}
_CONTEXT = frozenset(("trace_id", "span_id"))
_GIVEN = frozenset(Span.model_fields) - {"events", "links"}


def _is_exact(fields: dict[str, Any]) -> bool:
    """Whether validation would leave everything as it is: checked here in a fraction of its time."""
    attributes = fields["attributes"]
    return (
        type(fields["rollout_id"]) is str
        and type(fields["attempt_id"]) is str
        and type(fields["trace_id"]) is str
        and type(fields["span_id"]) is str
        and type(fields["name"]) is str
        and type(fields["sequence_id"]) is int
        and (fields["parent_id"] is None or type(fields["parent_id"]) is str)
        and type(fields["start_time"]) in _TIMES
        and type(fields["end_time"]) in _TIMES
        and type(attributes) is dict
        and (not attributes or set(map(type, attributes)) == _ONLY_TEXT)
        and (fields["status"] is None or type(fields["status"]) is TraceStatus)
        and (fields["resource"] is None or type(fields["resource"]) is OtelResource)
    )


def _build(fields: dict[str, Any]) -> Span:
    trace_id, parent_id = fields["trace_id"], fields["parent_id"]
    fields["attributes"] = dict(fields["attributes"])
    fields["context"] = _local_context(trace_id, fields["span_id"])
    fields["parent"] = _local_context(trace_id, parent_id) if parent_id else None
    if fields["status"] is None:
        fields["status"] = assemble(TraceStatus, {"status_code": "OK", "description": None}, {"status_code"}, {})
    if fields["resource"] is None:
        fields["resource"] = assemble(OtelResource, {"attributes": {}, "schema_url": ""}, set(), None)
    return assemble(Span, fields, set(_GIVEN), {})


def _local_context(trace_id: str, span_id: str) -> SpanContext:
    values: dict[str, Any] = {"trace_id": trace_id, "span_id": span_id, "is_remote": False, "trace_state": {}}
    return assemble(SpanContext, values, set(_CONTEXT), {})


def _validate(cls: type[Span], fields: dict[str, Any]) -> Span:
    trace_id, parent_id = fields["trace_id"], fields["parent_id"]
    return cls.model_validate(
        {
            **{name: value for name, value in fields.items() if name in _GIVEN},
            "status": fields["status"] or {"status_code": "OK"},
            "resource": fields["resource"] or {},
            "context": {"trace_id": trace_id, "span_id": fields["span_id"]},
            "parent": {"trace_id": trace_id, "span_id": parent_id} if parent_id else None,
        }
    )


def _seconds(nanoseconds: int | None) -> float | None:
    return nanoseconds / _NANOSECONDS if nanoseconds is not None else None


def _context(context: Any) -> SpanContext:
    return SpanContext(
        trace_id=f"{context.trace_id:032x}",
        span_id=f"{context.span_id:016x}",
        is_remote=context.is_remote,
        trace_state=dict(context.trace_state.items()) if context.trace_state else {},
    )


def _plain(attributes: Any) -> dict[str, Any]:
    return json.loads(json.dumps(dict(attributes or {}), default=str))
