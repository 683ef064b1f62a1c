"""0.3's `agentlightning.litagent`: what an agent's author derives from or decorates with."""

from agentlightning.agent import LitAgent, llm_rollout, prompt_rollout, rollout

__all__ = ["LitAgent", "llm_rollout", "prompt_rollout", "rollout"]
