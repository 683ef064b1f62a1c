"""0.3's `agentlightning.tracer`."""

from agentlightning.agent.tracer import OtelTracer, Tracer
from agentlightning.agent.tracer.agentops import AgentOpsTracer
from agentlightning.agent.tracer.base import clear_active_tracer, get_active_tracer, set_active_tracer

__all__ = [
    "AgentOpsTracer",
    "OtelTracer",
    "Tracer",
    "clear_active_tracer",
    "get_active_tracer",
    "set_active_tracer",
]
