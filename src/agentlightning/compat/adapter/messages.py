"""0.3's `agentlightning.adapter.messages`."""

from agentlightning.agent.adapter.messages import OpenAIMessages, TraceToMessages

__all__ = ["OpenAIMessages", "TraceToMessages"]
