"""Objects: data an agent leaves in its trace, as JSON."""

from __future__ import annotations

import base64
import json
from typing import Any

from agentlightning.agent.emit.attributes import encode_attributes
from agentlightning.agent.emit.rewards import SpanLike
from agentlightning.agent.emit.spans import emit_span
from agentlightning.schemas import SpanCoreFields
from agentlightning.schemas.semconv import AGL_OBJECT, OBJECT_JSON, OBJECT_LITERAL, OBJECT_TYPE

_LITERALS: dict[str, Any] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": "True".__eq__,
    "bytes": base64.b64decode,
}


def emit_object(object: Any, attributes: dict[str, Any] | None = None, propagate: bool = True) -> SpanCoreFields:
    """Leave data in the trace of the running rollout.

    Args:
        object: Anything JSON can hold, or bytes.
        attributes: More attributes.
        propagate: `False` returns the span without recording it.

    Raises:
        RuntimeError: The object cannot be written as JSON.
        NoActiveTracerError: There is no running rollout.
    """
    return emit_span(
        AGL_OBJECT, {**encode_object(object), **encode_attributes(attributes)}, propagate=propagate, what="object"
    )


def encode_object(object: Any) -> dict[str, Any]:
    """The attributes of an object span."""
    if isinstance(object, str | int | float | bool):
        return {OBJECT_TYPE: type(object).__name__, OBJECT_LITERAL: str(object)}
    if isinstance(object, bytes):
        return {OBJECT_TYPE: "bytes", OBJECT_LITERAL: base64.b64encode(object).decode()}
    try:
        text = json.dumps(object)
    except (TypeError, ValueError) as error:
        raise RuntimeError(f"{type(object).__name__} cannot be written as JSON: {error}") from error
    kind = type(object)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return {OBJECT_TYPE: name, OBJECT_JSON: text}


def get_object_value(span: SpanLike) -> Any:
    """The data of an object span, or `None` for other spans.

    Raises:
        RuntimeError: The span holds a literal of an unknown type, or broken JSON.
    """
    attributes = span.attributes or {}
    text = attributes.get(OBJECT_JSON)
    if text is not None:
        try:
            return json.loads(text)
        except ValueError as error:
            raise RuntimeError(f"the object's JSON is broken: {error}") from error
    literal = attributes.get(OBJECT_LITERAL)
    if literal is None:
        return None
    kind = attributes.get(OBJECT_TYPE, "str")
    if kind not in _LITERALS:
        raise RuntimeError(f"an object literal of type {kind!r} cannot be read")
    return _LITERALS[kind](literal)
