"""How values are packed for the database and the wire, and unpacked again. Knows no SQL and no HTTP.

Free-form values (inputs, metadata, attributes) are msgpack: it keeps NaN, infinities and bytes, which JSON loses.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from pydantic import BaseModel, ValidationError

from agentlightning.kit.errors import BadInputError
from agentlightning.schemas import (
    Event,
    Link,
    OtelResource,
    Span,
    SpanContext,
    TraceStatus,
)
from agentlightning.schemas.building import construct

M = TypeVar("M", bound=BaseModel)


def plain(value: Any) -> Any:
    """What msgspec shall encode instead of a value it does not know: pydantic models, numpy scalars and arrays.

    Raises:
        TypeError: There is no plain form.
    """
    if isinstance(value, BaseModel):
        extra = value.__pydantic_extra__
        return {**value.__dict__, **extra} if extra else value.__dict__
    convert = getattr(value, "tolist", None)  # numpy and torch, without importing either
    if callable(convert):
        return convert()
    raise TypeError(f"a value of type {type(value).__name__} cannot be stored")


_encoder = msgspec.msgpack.Encoder(enc_hook=plain)
_UNPACKABLE = (TypeError, ValueError, OverflowError, RecursionError)
_decoder = msgspec.msgpack.Decoder()


def pack(value: Any, what: str) -> bytes:
    """Encode a free-form value; `what` names it in the error.

    Raises:
        BadInputError: It contains something that is not plain data.
    """
    try:
        return _encoder.encode(value)
    except _UNPACKABLE as error:
        raise _not_plain(what, error) from error


def _not_plain(what: str, error: BaseException) -> BadInputError:
    return BadInputError(
        f"{what} cannot be stored: {error}.",
        hint="Use plain data: numbers, strings, lists, dicts, pydantic models, dataclasses.",
    )


def bad_model(error: ValidationError) -> BadInputError:
    """Our error for pydantic's, naming the first field that is wrong."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or error.title
    return BadInputError(
        f"{error.title} is malformed: {first['msg']} at {where}.", details={"errors": error.error_count()}
    )


def checked(kind: type[M], value: Any) -> M:
    """`value`, made into the model it should be if it is not one.

    Raises:
        BadInputError: It cannot be.
    """
    if isinstance(value, kind):
        return value
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise bad_model(error) from error


def unpack(blob: bytes | None) -> Any:
    """Decode what `pack` encoded; `None` stays `None`."""
    return None if blob is None else _decoder.decode(blob)


class SpanRecord(msgspec.Struct, array_like=True):
    """A span as it is stored and sent: the columns one searches by, and the rest as one msgpack `body`."""

    rollout_id: str
    attempt_id: str
    sequence_id: int
    """0 or less asks the store for the next one."""
    span_id: str
    trace_id: str
    parent_id: str | None
    name: str
    start_time: float | None
    end_time: float | None
    status_code: str
    body: bytes


class SpanBody(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The part of a span that is not searched. `True` for a context means: nothing but the ids known anyway."""

    attributes: dict[str, Any] = {}
    status: dict[str, Any] = {}
    events: list[dict[str, Any]] = []
    links: list[dict[str, Any]] = []
    context: bool | dict[str, Any] | None = None
    parent: bool | dict[str, Any] | None = None
    resource: dict[str, Any] | None = None
    extra: dict[str, Any] = {}


_body_decoder = msgspec.msgpack.Decoder(SpanBody)


def check_body(body: bytes) -> None:
    """Make sure that a body from outside can be read back.

    Raises:
        BadInputError: It cannot.
    """
    try:
        _body_decoder.decode(body)
    except msgspec.MsgspecError as error:
        raise BadInputError(f"A span's body is malformed: {error}.") from error


def record_from_span(span: Span) -> SpanRecord:
    """Pack a span.

    Raises:
        BadInputError: An attribute is not plain data.
    """
    fields = vars(span)  # half the time of asking the model for each
    try:
        body = _encoder.encode(_body_of(span, fields))
    except _UNPACKABLE as error:
        raise _not_plain(f"Span {span.name!r}", error) from error
    return SpanRecord(
        fields["rollout_id"],
        fields["attempt_id"],
        fields["sequence_id"],
        fields["span_id"],
        fields["trace_id"],
        fields["parent_id"],
        fields["name"],
        fields["start_time"],
        fields["end_time"],
        fields["status"].status_code,
        body,
    )


def _body_of(span: Span, fields: dict[str, Any]) -> dict[str, Any]:
    """A `SpanBody`, fields in its order, as the dict that it would become: without what is empty."""
    body: dict[str, Any] = {}
    if fields["attributes"]:
        body["attributes"] = fields["attributes"]
    if status := _pack_status(fields["status"]):
        body["status"] = status
    if fields["events"]:
        body["events"] = fields["events"]
    if fields["links"]:
        body["links"] = fields["links"]
    if context := _pack_context(fields["context"], fields["trace_id"], fields["span_id"]):
        body["context"] = context
    if parent := _pack_context(fields["parent"], fields["trace_id"], fields["parent_id"]):
        body["parent"] = parent
    resource = vars(fields["resource"])
    if resource["attributes"] or resource["schema_url"]:
        body["resource"] = resource
    if span.__pydantic_extra__:
        body["extra"] = span.__pydantic_extra__
    return body


def span_from_record(record: SpanRecord) -> Span:
    """Unpack a span; the record is trusted, so nothing is validated twice."""
    body = _body_decoder.decode(record.body)
    return construct(
        Span,
        {
            "rollout_id": record.rollout_id,
            "attempt_id": record.attempt_id,
            "sequence_id": record.sequence_id,
            "trace_id": record.trace_id,
            "span_id": record.span_id,
            "parent_id": record.parent_id,
            "name": record.name,
            "status": construct(TraceStatus, {"status_code": record.status_code, "description": None, **body.status}),
            "attributes": body.attributes,
            "events": [construct(Event, event) for event in body.events],
            "links": [_unpack_link(link) for link in body.links],
            "start_time": record.start_time,
            "end_time": record.end_time,
            "context": _unpack_context(body.context, record.trace_id, record.span_id),
            "parent": _unpack_context(body.parent, record.trace_id, record.parent_id),
            "resource": construct(OtelResource, body.resource or {"attributes": {}, "schema_url": ""}),
            **body.extra,
        },
    )


def _pack_status(status: TraceStatus) -> dict[str, Any]:
    if status.description is None and not status.__pydantic_extra__:
        return {}
    return {k: v for k, v in plain(status).items() if k != "status_code" and v is not None}


def _pack_context(context: SpanContext | None, trace_id: str, span_id: str | None) -> bool | dict[str, Any] | None:
    if context is None:
        return None
    fields = vars(context)
    if (
        fields["trace_id"] == trace_id
        and fields["span_id"] == span_id
        and not (fields["is_remote"] or fields["trace_state"] or context.__pydantic_extra__)
    ):
        return True
    return plain(context)


def _unpack_context(packed: bool | dict[str, Any] | None, trace_id: str, span_id: str | None) -> SpanContext | None:
    if not packed:
        return None
    if packed is True:
        return construct(
            SpanContext,
            {"trace_id": trace_id, "span_id": span_id or "", "is_remote": False, "trace_state": {}},
        )
    return construct(SpanContext, packed)


def _unpack_link(packed: dict[str, Any]) -> Link:
    return construct(Link, {**packed, "context": construct(SpanContext, packed["context"])})
