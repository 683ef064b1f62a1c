"""From spans to what algorithms consume: messages, triplets, token sequences."""

from agentlightning.agent.adapter.base import Adapter, TraceAdapter
from agentlightning.agent.adapter.messages import OpenAIMessages, TraceToMessages
from agentlightning.agent.adapter.trajectory import Trajectory, calls_from_spans, merge_calls
from agentlightning.agent.adapter.triplet import (
    LlmProxyTraceToTriplet,
    RewardMatchPolicy,
    TracerTraceToTriplet,
    TraceToTripletBase,
)

__all__ = [
    "Adapter",
    "LlmProxyTraceToTriplet",
    "OpenAIMessages",
    "RewardMatchPolicy",
    "TraceAdapter",
    "TraceToMessages",
    "TraceToTripletBase",
    "TracerTraceToTriplet",
    "Trajectory",
    "calls_from_spans",
    "merge_calls",
]
