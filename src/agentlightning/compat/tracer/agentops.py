"""0.3's `agentlightning.tracer.agentops`."""

from agentlightning.agent.tracer.agentops import AgentOpsTracer

__all__ = ["AgentOpsTracer"]
