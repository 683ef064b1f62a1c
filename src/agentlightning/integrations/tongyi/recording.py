"""A query as a rollout: the model's calls pass a gateway into the store, beside them the reward. Knows no training."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Protocol

from agentlightning.agent import LitAgent
from agentlightning.config import Settings
from agentlightning.gateway import Gateway
from agentlightning.gateway.upstream.anthropic import AnthropicUpstream
from agentlightning.gateway.upstream.openai import OpenAIUpstream
from agentlightning.integrations.tongyi.research import Research
from agentlightning.kit.errors import BadInputError, StorageError, UpstreamError
from agentlightning.runner import LitAgentRunner
from agentlightning.schemas import LLM, AttemptedRollout, NamedResources, PromptTemplate, ProxyLLM, Rollout
from agentlightning.store import LightningStore, SqlLightningStore

logger = logging.getLogger(__name__)

ANTHROPIC = "https://api.anthropic.com"
_SPARE_S = 60.0
_GRACE_S = 0.5
"""Calls are in flight at the end only when somebody has pressed Ctrl-C."""


class Judged(Protocol):
    """What an interaction is worth."""

    @property
    def reward(self) -> float | None:
        """`None` when nobody can say."""
        ...

    @property
    def metrics(self) -> dict[str, float]:
        """Its parts."""
        ...


class Researcher(Protocol):
    """Whose queries are recorded."""

    @property
    def label(self) -> str:
        """Its name in the store."""
        ...

    @property
    def timeout_s(self) -> float:
        """The longest that a query may take."""
        ...

    async def conduct(self, query: str, llm: LLM, prompts: Mapping[str, PromptTemplate]) -> Research:
        """Do the research."""
        ...

    def judge(self, research: Research) -> Judged:
        """Say what it is worth."""
        ...


class AnthropicLLM(LLM):
    """A model behind Anthropic's API, whose address speaks OpenAI's protocol, too."""


class ResearchRollout(LitAgent[Any]):
    """The agent as the loop runs it: task in, reward and its parts out.

    Args:
        agent: Conducts and judges.
        fixed: Model and prompts to use instead of the rollout's resources.

    Attributes:
        done: What was found out, by rollout id, as far as `keeps` says.
    """

    def __init__(self, agent: Researcher, *, fixed: tuple[LLM, Mapping[str, PromptTemplate]] | None = None) -> None:
        super().__init__()
        self.agent = agent
        self.fixed = fixed
        self.done: dict[str, Research] = {}

    async def rollout_async(self, task: Any, resources: NamedResources, rollout: Rollout) -> Any:
        """Answer `task["query"]`; a server that is away is a failure, not a reward."""
        llm, prompts = self.fixed or _of_resources(resources)
        if isinstance(llm, ProxyLLM) and isinstance(rollout, AttemptedRollout):
            llm = llm.with_attempted_rollout(rollout)
        research = await self.agent.conduct(task["query"], llm, prompts)
        if self.fixed is not None:
            self.done[rollout.rollout_id] = research
        if research.is_outage:
            raise UpstreamError(research.error)
        judged = self.agent.judge(research)
        return {"reward": judged.reward, **judged.metrics}


async def record_query(
    agent: Researcher, query: str, llm: LLM, prompts: Mapping[str, PromptTemplate], *, version: int
) -> tuple[Research, str | None]:
    """Answer a query as a rollout of the store in `AGL_HOME`; returns the rollout's id, too.

    A store that cannot be used costs the trace, not the answer; that is said in the log.

    Raises:
        ConfigError: A prompt cannot be filled.
    """
    location = Settings().store_location
    task = {"query": query, "agent": agent.label, "prompt_version": version}
    async with contextlib.AsyncExitStack() as stack:
        try:
            store = SqlLightningStore(location)
            stack.push_async_callback(store.close)
            proxy = await stack.enter_async_context(gateway_before(llm, store))
            work = ResearchRollout(agent, fixed=(proxy, prompts))
            runner: LitAgentRunner[Any] = LitAgentRunner(default_timeout_s=agent.timeout_s + _SPARE_S)
            runner.init(work)
            runner.init_worker(0, store)
            stack.callback(runner.teardown)
        except StorageError as error:
            logger.warning("The query is not traced: %s", error)
            return await agent.conduct(query, llm, prompts), None
        rollout_id = await _step(runner, task, work)
        if rollout_id is None:
            return await agent.conduct(query, llm, prompts), None
        return work.done[rollout_id], rollout_id


async def _step(runner: LitAgentRunner[Any], task: dict[str, Any], work: ResearchRollout) -> str | None:
    try:
        await runner.step(task)
    except (UpstreamError, BadInputError, StorageError) as error:
        if not work.done:
            if not isinstance(error, StorageError):
                raise
            logger.warning("The query is not traced: %s", error)
            return None
    return next(iter(work.done))


@contextlib.asynccontextmanager
async def gateway_before(llm: LLM, store: LightningStore) -> AsyncGenerator[ProxyLLM]:
    """A gateway in front of the model's server, whose calls land on their rollouts."""
    upstream: Any
    if isinstance(llm, AnthropicLLM):
        upstream = AnthropicUpstream(llm.endpoint, api_key=llm.api_key)
    else:
        upstream = OpenAIUpstream(llm.endpoint, api_key=llm.api_key)
    async with Gateway(store, [upstream], accept_any_model=True, shutdown_grace_s=_GRACE_S) as gateway:
        yield gateway.llm(llm.model, **llm.sampling_parameters)


def _of_resources(resources: NamedResources) -> tuple[LLM, Mapping[str, PromptTemplate]]:
    prompts = {name: value for name, value in resources.items() if isinstance(value, PromptTemplate)}
    llm = next((value for value in resources.values() if isinstance(value, LLM)), None)
    if llm is None:
        raise BadInputError("There is no model among the resources of this rollout.")
    return llm, prompts
