"""The research agent on the Claude Agent SDK: its loop and its model protocol, our tools, prompts, and citations.

The SDK (`claude-agent-sdk`) brings a program of its own, which is started for each query. It is given our tools only,
as an MCP server inside this process, and its model calls go to our gateway, so that they are recorded and any model may
answer them. It neither reads nor writes the settings of a Claude Code that the user may have.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any, ClassVar

from agentlightning.integrations.tongyi import prompts as texts
from agentlightning.integrations.tongyi.agent import canonical, filled, note_source
from agentlightning.integrations.tongyi.citations import settle
from agentlightning.integrations.tongyi.config import AgentType
from agentlightning.integrations.tongyi.model import find_llm
from agentlightning.integrations.tongyi.optimized_agent import OptimizedAgent
from agentlightning.integrations.tongyi.recording import ANTHROPIC, AnthropicLLM, gateway_before
from agentlightning.integrations.tongyi.research import Call, Research
from agentlightning.integrations.tongyi.tools import Toolset
from agentlightning.kit.errors import ConfigError, MissingExtraError
from agentlightning.schemas import LLM, PromptTemplate
from agentlightning.store import InMemoryLightningStore

SERVER = "research"
"""Name of the MCP server with the tools; the SDK calls them `mcp__research__Read` and so on."""
_PLAN = "Make a plan of at most five steps first, then follow it."


class OptimizedClaudeAgent(OptimizedAgent):
    """The same agent, its loop run by the Claude Agent SDK.

    Raises:
        MissingExtraError: The SDK is not installed.
    """

    agent_type: ClassVar[AgentType] = "claude"

    def __init__(self, *args: Any, **options: Any) -> None:
        self._sdk = _sdk()
        super().__init__(*args, **options)

    async def find_model(self) -> LLM:
        """As for the other form; without an OpenAI-compatible server, Anthropic's API by `ANTHROPIC_API_KEY`."""
        key, section = os.environ.get("ANTHROPIC_API_KEY"), self.config.agent
        has_other = section.base_url or os.environ.get("OPENAI_BASE_URL") or os.environ.get("OPENAI_API_KEY")
        if self._llm is not None:
            return self._llm
        if key and not has_other:
            named = section.model or os.environ.get("ANTHROPIC_MODEL")
            if named is None:
                raise ConfigError(
                    "Anthropic's API needs to know which model.", hint="Say --model, or set ANTHROPIC_MODEL."
                )
            self._llm = AnthropicLLM(
                endpoint=f"{(os.environ.get('ANTHROPIC_BASE_URL') or ANTHROPIC).rstrip('/')}/v1",
                model=named,
                api_key=key,
            )
        else:
            self._llm = await find_llm(section.base_url, section.model)
        return self._llm

    async def conduct(self, query: str, llm: LLM, prompts: Mapping[str, PromptTemplate]) -> Research:
        """See `OptimizedAgent.conduct`."""
        await self.toolset.start()
        started = time.monotonic()
        research = Research(query)
        limit = asyncio.timeout(self.config.agent.timeout_s)
        try:
            async with limit, _reachable(llm) as address:
                settle(await self._ask(research, address, prompts), research)
                research.error = research.error or ("" if research.answer else "The model gave no answer.")
        except TimeoutError:
            if not limit.expired():
                raise
            research.error = f"The query took longer than {self.config.agent.timeout_s:g} s."
        except self._sdk.ClaudeSDKError as error:
            research.error, research.is_outage = f"The Claude Agent SDK failed: {error}", True
        research.seconds = time.monotonic() - started
        return research

    async def _ask(self, research: Research, llm: LLM, prompts: Mapping[str, PromptTemplate]) -> str:
        prompt = {**texts.shipped_prompts(), **prompts}[texts.RESEARCH]
        system = filled(prompt, texts.RESEARCH, plan=_PLAN, tools=", ".join(self.toolset.names))
        server = self._sdk.create_sdk_mcp_server(name=SERVER, tools=_tools(self._sdk, self.toolset, research))
        text = ""
        with tempfile.TemporaryDirectory(prefix="tongyi-claude-") as home:
            options = self._sdk.ClaudeAgentOptions(
                tools=[],
                allowed_tools=[f"mcp__{SERVER}__{name}" for name in self.toolset.names],
                mcp_servers={SERVER: server},
                strict_mcp_config=True,
                setting_sources=[],
                system_prompt=system,
                model=llm.model,
                max_turns=self.config.agent.max_steps,
                permission_mode="dontAsk",
                cwd=str(self.toolset.workspace),
                env=_environment(llm, home),
            )
            async for message in self._sdk.query(prompt=research.query, options=options):
                research.model_calls += isinstance(message, self._sdk.AssistantMessage)
                if isinstance(message, self._sdk.ResultMessage):
                    text = _result(message, research)
        return text


def _sdk() -> Any:
    try:
        import claude_agent_sdk  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtraError(
            "No module named 'claude_agent_sdk'",
            hint="pip install 'agentlightning[tongyi-claude]', or take --agent tongyi.",
        ) from error
    return claude_agent_sdk


@contextlib.asynccontextmanager
async def _reachable(llm: LLM) -> AsyncGenerator[LLM]:
    """The model at an address that speaks Anthropic's protocol: that of a rollout, or a gateway for this query."""
    if "/rollout/" in llm.endpoint:
        yield llm
        return
    async with contextlib.AsyncExitStack() as stack:
        store = InMemoryLightningStore()
        stack.push_async_callback(store.close)
        yield await stack.enter_async_context(gateway_before(llm, store))


def _environment(llm: LLM, home: str) -> dict[str, str]:
    return {
        "ANTHROPIC_BASE_URL": llm.endpoint.rstrip("/").removesuffix("/v1"),
        "ANTHROPIC_API_KEY": llm.api_key or "unused",
        "ANTHROPIC_AUTH_TOKEN": "",
        "ANTHROPIC_SMALL_FAST_MODEL": llm.model,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": llm.model,
        "CLAUDE_CODE_OAUTH_TOKEN": "",
        "CLAUDE_CONFIG_DIR": home,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_DISABLE_EXPERIMENTAL_BETAS": "1",  # other servers do not know them
    }


def _tools(sdk: Any, toolset: Toolset, research: Research) -> list[Any]:
    def made(name: str) -> Any:
        tool = toolset.tools[name]

        async def call(arguments: dict[str, Any]) -> dict[str, Any]:
            began = time.monotonic()
            used = await toolset.use(name, arguments)
            research.calls.append(Call(name, canonical(arguments), used.is_error, time.monotonic() - began))
            text = used.text
            if used.source is not None:
                text = note_source(research, used.source, text)
            return {"content": [{"type": "text", "text": text}], "is_error": used.is_error}

        return sdk.tool(name, tool.description, tool.parameters())(call)

    return [made(name) for name in toolset.names]


def _result(message: Any, research: Research) -> str:
    """The answer of the last message; why there is none goes into the research."""
    text = str(message.result or "")
    if message.is_error:
        status = getattr(message, "api_error_status", None)
        research.error = f"The Claude Agent SDK says {message.subtype}: {text or 'no more than that'}."
        research.is_outage = status is not None or message.subtype == "error_during_execution"
        return ""
    return text
