"""0.3's `agentlightning.tracer.otel`."""

from agentlightning.agent.tracer import OtelTracer

__all__ = ["OtelTracer"]
