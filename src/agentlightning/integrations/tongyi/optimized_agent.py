"""An agent that learns from use: answers queries, judges the answers, keeps them. Both forms build on it.

Subclasses say how research is conducted. A user's subclass may also say what is good: `_custom_reward_function(query,
response, tools_used)` replaces the reward, `_<name>_metric(query, response)` adds a measure of that name.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from agentlightning.integrations.tongyi.book import PromptBook
from agentlightning.integrations.tongyi.config import AgentType, Mode, TongyiConfig
from agentlightning.integrations.tongyi.model import find_llm
from agentlightning.integrations.tongyi.recording import record_query
from agentlightning.integrations.tongyi.records import Interaction, TrainingData
from agentlightning.integrations.tongyi.research import Research
from agentlightning.integrations.tongyi.rewards import called, own_metrics, parts_of, reward_of
from agentlightning.integrations.tongyi.tools import Toolset
from agentlightning.integrations.tongyi.trials import Choice, Trials
from agentlightning.kit.errors import AgentLightningError, BadInputError
from agentlightning.schemas import LLM, PromptTemplate

logger = logging.getLogger(__name__)

CUSTOM_REWARD = "_custom_reward_function"


class ResearchError(AgentLightningError):
    """A query has no answer; the message says why."""

    code = "RESEARCH_FAILED"
    status = 502


@dataclass(frozen=True)
class Judgement:
    """What an interaction is worth."""

    reward: float | None
    """`None` when it says nothing of the agent: a server was away."""
    metrics: dict[str, float]


class OptimizedAgent:
    """Base of both forms.

    Args:
        config: Settings; see `training_config.ini`.
        toolset: What it may use; by default the workspace's files, web and Python as `AGL_TOOLS` allows.
        llm: The model; by default that of the settings or of `OPENAI_BASE_URL`.

    Attributes:
        last: The latest piece of research: plan, sources, calls, what was taken out of the answer.
        last_interaction: The latest record.
    """

    agent_type: ClassVar[AgentType]

    def __init__(self, config: TongyiConfig, *, toolset: Toolset | None = None, llm: LLM | None = None) -> None:
        self.config = config
        self.toolset = toolset or Toolset(config.agent.workspace)
        training = config.training
        self.data = TrainingData(
            training.training_data_path, save_every=training.auto_save_interval, chunk_size=training.chunk_size
        )
        self.book = PromptBook(self.data.folder)
        self.trials = Trials(config, self.data.folder, self.book)
        self.last: Research | None = None
        self.last_interaction: Interaction | None = None
        self._llm: LLM | None = llm

    @property
    def optimization_mode(self) -> Mode:
        """What its interactions are for."""
        return self.config.training.mode

    @property
    def label(self) -> str:
        """Its name in the store."""
        return f"tongyi/{self.agent_type}"

    @property
    def timeout_s(self) -> float:
        """The longest that a query may take."""
        return self.config.agent.timeout_s

    @property
    def is_training(self) -> bool:
        """Whether its interactions are kept."""
        return self.config.training.enabled

    # -- what a form has to say

    async def conduct(self, query: str, llm: LLM, prompts: Mapping[str, PromptTemplate]) -> Research:
        """Do the research; failures are part of what is returned."""
        # A hook: both forms, and users' own, say it.
        raise NotImplementedError(f"{type(self).__name__} does not say how research is conducted")

    async def find_model(self) -> LLM:
        """The model that it asks.

        Raises:
            ConfigError: There is none.
            UpstreamError: The server does not say what it has.
        """
        if self._llm is None:
            self._llm = await find_llm(self.config.agent.base_url, self.config.agent.model)
        return self._llm

    # -- what callers ask for

    async def process_query(self, query: str) -> str:
        """Answer a query; with training, the interaction is kept and traced.

        Raises:
            BadInputError: The query is empty, or a reward or metric method of a subclass failed.
            ConfigError: There is no model, or a prompt cannot be filled.
            ResearchError: There is no answer; the interaction is kept all the same.
            StorageError: The interaction cannot be kept; if there is an answer already, it is in `last`.
        """
        if not query.strip():
            raise BadInputError("The query is empty.", hint="Ask something.")
        if self.is_training:
            await asyncio.to_thread(self.data.check)
        choice = self.trials.choose(query) if self.is_training else Choice(self.book.active)
        prompts = self.book.prompts(choice.version)
        llm = await self.find_model()
        started = time.time()
        if self.is_training:
            research, rollout_id = await record_query(self, query, llm, prompts, version=choice.version)
        else:
            research, rollout_id = await self.conduct(query, llm, prompts), None
        self.last = research
        judged, fault = self._judged(research)
        if self.is_training:
            await asyncio.to_thread(self._keep, research, judged, choice, started, rollout_id)
        if fault is not None:
            raise fault
        if not research.is_success:
            raise ResearchError(f"There is no answer: {research.error}")
        return research.answer

    def judge(self, research: Research) -> Judgement:
        """Reward and metrics of a piece of research.

        Raises:
            BadInputError: A method of a subclass failed.
        """
        parts = parts_of(research, max_response_time=self.config.performance_metrics.max_response_time)
        if research.is_outage:
            return Judgement(None, {})
        metrics = {**parts, **own_metrics(self, research)}
        if hasattr(self, CUSTOM_REWARD):
            return Judgement(called(self, CUSTOM_REWARD, research), metrics)
        return Judgement(reward_of(parts, self.config.prompt_optimization.optimization_target), metrics)

    def save(self) -> None:
        """Fold what is kept into the training data; nothing is lost without it."""
        self.data.save()

    def _judged(self, research: Research) -> tuple[Judgement, BadInputError | None]:
        try:
            return self.judge(research), None
        except BadInputError as error:
            return Judgement(None, {}), error

    def _keep(
        self, research: Research, judged: Judgement, choice: Choice, started: float, rollout_id: str | None
    ) -> None:
        interaction = Interaction(
            timestamp=started,
            query=research.query,
            response=research.answer,
            response_time=research.seconds,
            claude_success=research.is_success,
            tools_used=research.tools_used,
            query_length=len(research.query),
            response_length=len(research.answer),
            agent=self.agent_type,
            mode=self.optimization_mode,
            reward=judged.reward,
            metrics=judged.metrics,
            error=research.error,
            model_calls=research.model_calls,
            arm=choice.arm,
            prompt_version=choice.version,
            rollout_id=rollout_id,
        )
        self.data.append(interaction)
        self.last_interaction = interaction
        verdict = self.trials.record(research.query, choice, judged.reward)
        if verdict is not None:
            logger.warning("The A/B test is over: %s.", verdict.reason)


def describe(agent: OptimizedAgent) -> dict[str, Any]:
    """What an agent is, JSON-able."""
    return {
        "agent": agent.agent_type,
        "tools": agent.toolset.names,
        "unavailable": agent.toolset.unavailable,
        "prompt_version": agent.book.active,
    }
