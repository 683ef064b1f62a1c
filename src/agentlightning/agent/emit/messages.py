"""Messages: text an agent leaves in its trace."""

from __future__ import annotations

from typing import Any

from agentlightning.agent.emit.attributes import encode_attributes
from agentlightning.agent.emit.rewards import SpanLike
from agentlightning.agent.emit.spans import emit_span
from agentlightning.schemas.semconv import AGL_MESSAGE, MESSAGE_BODY


def emit_message(message: str, attributes: dict[str, Any] | None = None, propagate: bool = True) -> None:
    """Leave text in the trace of the running rollout.

    Args:
        message: The text.
        attributes: More attributes.
        propagate: `False` records nothing.

    Raises:
        TypeError: `message` is not a string.
        NoActiveTracerError: There is no running rollout.
    """
    if not isinstance(message, str):
        raise TypeError(f"a message is a string, not {type(message).__name__}")
    emit_span(
        AGL_MESSAGE, {MESSAGE_BODY: message, **encode_attributes(attributes)}, propagate=propagate, what="message"
    )


def get_message_value(span: SpanLike) -> str | None:
    """The text of a message span, or `None` for other spans.

    Raises:
        TypeError: The attribute holds something else than text.
    """
    message = (span.attributes or {}).get(MESSAGE_BODY)
    if message is None or isinstance(message, str):
        return message
    raise TypeError(f"a message is a string, not {type(message).__name__}")
