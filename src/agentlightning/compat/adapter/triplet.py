"""0.3's `agentlightning.adapter.triplet`."""

from agentlightning.agent.adapter.triplet import (
    LlmProxyTraceToTriplet,
    RewardMatchPolicy,
    TracerTraceToTriplet,
    TraceToTripletBase,
)

__all__ = ["LlmProxyTraceToTriplet", "RewardMatchPolicy", "TraceToTripletBase", "TracerTraceToTriplet"]
