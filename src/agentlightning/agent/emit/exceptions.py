"""Exceptions as spans."""

from __future__ import annotations

from typing import Any

from agentlightning.agent.emit.attributes import encode_attributes, exception_attributes
from agentlightning.agent.emit.spans import emit_span
from agentlightning.schemas.semconv import AGL_EXCEPTION


def emit_exception(exception: BaseException, attributes: dict[str, Any] | None = None, propagate: bool = True) -> None:
    """Leave an exception, with its traceback, in the trace of the running rollout.

    Args:
        exception: What was raised.
        attributes: More attributes.
        propagate: `False` records nothing.

    Raises:
        TypeError: `exception` is no exception.
        NoActiveTracerError: There is no running rollout.
    """
    if not isinstance(exception, BaseException):
        raise TypeError(f"expected an exception, not {type(exception).__name__}")
    emit_span(
        AGL_EXCEPTION,
        {**exception_attributes(exception), **encode_attributes(attributes)},
        propagate=propagate,
        what="exception",
    )
