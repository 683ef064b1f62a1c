"""Tracers: turn what an agent does into spans of its rollout."""

from agentlightning.agent.tracer.base import SpanRecordingContext, Tracer
from agentlightning.agent.tracer.otel import OtelTracer

__all__ = ["OtelTracer", "SpanRecordingContext", "Tracer"]
