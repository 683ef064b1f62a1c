"""0.3's `agentlightning.adapter`: from spans to what algorithms consume."""

from agentlightning.agent.adapter import (
    Adapter,
    LlmProxyTraceToTriplet,
    TraceAdapter,
    TracerTraceToTriplet,
    TraceToMessages,
    TraceToTripletBase,
)

__all__ = [
    "Adapter",
    "LlmProxyTraceToTriplet",
    "TraceAdapter",
    "TraceToMessages",
    "TraceToTripletBase",
    "TracerTraceToTriplet",
]
