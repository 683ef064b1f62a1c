"""The one way by which an emitted span reaches its rollout."""

from __future__ import annotations

import time
from typing import Any

from agentlightning.agent.errors import NoActiveTracerError
from agentlightning.agent.tracer.base import Tracer, get_active_tracer
from agentlightning.schemas import SpanCoreFields, TraceStatus

OK = TraceStatus(status_code="OK")


def find_tracer() -> Tracer | None:
    """The active tracer; in a program that a runner started as a command, one that exports over OTLP."""
    tracer = get_active_tracer()
    if tracer is not None:
        return tracer
    from agentlightning.agent.tracer.remote import remote_tracer, started_for_rollout

    return remote_tracer() if started_for_rollout() else None


def need_tracer(what: str) -> Tracer:
    """As `find_tracer`.

    Raises:
        NoActiveTracerError: The code runs outside of any rollout.
    """
    tracer = find_tracer()
    if tracer is not None:
        return tracer
    raise NoActiveTracerError(
        f"There is no active tracer, so the {what} would be lost: this code runs outside of a rollout.",
        hint="Let a runner or trainer call it, wrap it in `tracer.trace_context()`, or pass propagate=False.",
    )


def emit_span(
    name: str, attributes: dict[str, Any], *, propagate: bool, what: str, status: TraceStatus = OK
) -> SpanCoreFields:
    """Create the span, or only its fields when not `propagate`."""
    if propagate:
        return need_tracer(what).create_span(name, attributes=attributes, status=status)
    now = time.time()
    return SpanCoreFields(name=name, status=status, attributes=attributes, start_time=now, end_time=now)
