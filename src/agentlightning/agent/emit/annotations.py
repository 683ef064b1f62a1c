"""Annotations: key-value facts about a rollout. Rewards are annotations too."""

from __future__ import annotations

from typing import Any

from agentlightning.agent.emit.attributes import encode_attributes
from agentlightning.agent.emit.spans import emit_span
from agentlightning.schemas import SpanCoreFields
from agentlightning.schemas.semconv import AGL_ANNOTATION


def emit_annotation(annotation: dict[str, Any], propagate: bool = True) -> SpanCoreFields:
    """Attach key-value pairs to the running rollout; nested data is flattened to dotted keys.

    Args:
        annotation: What to attach.
        propagate: `False` returns the span without recording it.

    Raises:
        NoActiveTracerError: There is no running rollout.
    """
    return emit_span(AGL_ANNOTATION, encode_attributes(annotation), propagate=propagate, what="annotation")
