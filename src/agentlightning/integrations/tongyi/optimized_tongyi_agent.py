"""The research agent in its own form: the loop of `agent.ResearchAgent` on any model that calls tools."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from agentlightning.integrations.tongyi.agent import ResearchAgent
from agentlightning.integrations.tongyi.config import AgentType
from agentlightning.integrations.tongyi.optimized_agent import OptimizedAgent
from agentlightning.integrations.tongyi.research import Research
from agentlightning.schemas import LLM, PromptTemplate


class OptimizedTongyiAgent(OptimizedAgent):
    """Plans, searches, reads, verifies and cites; learns from what it kept."""

    agent_type: ClassVar[AgentType] = "tongyi"

    async def conduct(self, query: str, llm: LLM, prompts: Mapping[str, PromptTemplate]) -> Research:
        """See `OptimizedAgent.conduct`."""
        section = self.config.agent
        worker = ResearchAgent(self.toolset, max_steps=section.max_steps, timeout_s=section.timeout_s)
        return await worker.research(query, llm, prompts)
