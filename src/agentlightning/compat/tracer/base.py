"""0.3's `agentlightning.tracer.base`."""

from agentlightning.agent.tracer.base import Tracer, clear_active_tracer, get_active_tracer, set_active_tracer

__all__ = ["Tracer", "clear_active_tracer", "get_active_tracer", "set_active_tracer"]
