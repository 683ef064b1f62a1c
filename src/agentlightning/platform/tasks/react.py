"""An agent at work: a model and tools in turns (LangGraph), until there is an answer. Knows no tasks and no tables.

The model decides which tools are asked for; what they may do is decided here, before and outside of it.
"""

from __future__ import annotations

import asyncio
import importlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from agentlightning.kit.errors import AgentLightningError, MissingExtraError, UpstreamError
from agentlightning.tools.base import Tool, ToolContext, ToolResult, cut

_MODULES = ("langchain.agents", "langchain_core.tools", "langchain_openai", "langgraph.errors")
_PLACEHOLDER = "in-process"
_MAX_KEPT_CHARS = 8_000


class StepLimitError(AgentLightningError):
    """The agent would have gone on after its last step."""

    code = "STEP_LIMIT"
    status = 422


class NoAnswerError(UpstreamError):
    """The model said nothing that could be used."""

    code = "NO_ANSWER"


@dataclass
class ToolUse:
    """One call of a tool."""

    tool: str
    arguments: dict[str, Any]
    result: ToolResult
    started_at: float
    ended_at: float


@dataclass
class Answer:
    """What came out, and how."""

    output: str = ""
    steps: int = 0
    uses: list[ToolUse] = field(default_factory=list[ToolUse])
    usage: dict[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The model and how to reach it."""

    model: str
    base_url: str
    client: httpx.AsyncClient
    temperature: float
    max_steps: int
    api_key: str = _PLACEHOLDER
    """What the server asks for."""


async def load() -> None:
    """Import what is needed, off the event loop: it takes a second or two the first time.

    Raises:
        MissingExtraError: A package is missing.
    """
    for name in _MODULES:
        try:
            await asyncio.to_thread(importlib.import_module, name)
        except ImportError as error:
            raise MissingExtraError(
                f"Agents need the package {error.name}.", hint="Run: pip install 'agentlightning[agents]'"
            ) from error


async def react(
    setting: Setting,
    system_prompt: str,
    messages: Sequence[Mapping[str, str]],
    tools: Sequence[Tool],
    context: ToolContext,
    answer: Answer,
) -> None:
    """Work until there is an answer; `answer` holds what has been done so far at any time.

    Args:
        setting: The model.
        system_prompt: Taken word by word.
        messages: What was said before, and the task: `role` and `content`.
        tools: What the model may ask for.
        context: Who the tools work for.
        answer: Filled in.

    Raises:
        StepLimitError: There was none after `max_steps` calls of the model.
        NoAnswerError: The model said nothing.
        openai.OpenAIError: A call failed.
    """
    from langchain.agents import create_agent
    from langgraph.errors import GraphRecursionError

    agent: Any = create_agent(
        _chat_model(setting), tools=[_offered(tool, context, answer) for tool in tools], system_prompt=system_prompt
    )
    try:
        # A step is a call of the model and the tools that it asked for.
        async for state in agent.astream(
            {"messages": [dict(message) for message in messages]},
            {"recursion_limit": 2 * setting.max_steps},
            stream_mode="updates",
        ):
            for update in state.values():
                _take(update, answer)
    except GraphRecursionError as error:
        raise StepLimitError(
            f"There was no answer after {setting.max_steps} steps.", hint="Give the agent a higher max_steps."
        ) from error
    if not answer.output.strip():
        raise NoAnswerError("The model gave no answer.")


def _take(update: Any, answer: Answer) -> None:
    for message in (update or {}).get("messages", ()):
        if getattr(message, "type", "") != "ai":
            continue
        answer.steps += 1
        answer.output = "" if message.tool_calls else str(message.text)
        for name, count in (message.usage_metadata or {}).items():
            if isinstance(count, int):
                answer.usage[name] = answer.usage.get(name, 0) + count


class _NoSync(httpx.BaseTransport):
    """Nobody calls without `await` here; this spares making a real client."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        raise RuntimeError("agents call models asynchronously")


_no_sync = httpx.Client(transport=_NoSync())


def _chat_model(setting: Setting) -> Any:
    from langchain_openai import ChatOpenAI
    from pydantic import SecretStr

    return ChatOpenAI(
        model=setting.model,
        base_url=setting.base_url,
        api_key=SecretStr(setting.api_key),
        http_async_client=setting.client,
        http_client=_no_sync,
        temperature=setting.temperature,
        max_retries=0,  # the gateway and the queue repeat
        use_responses_api=False,
    )


def _offered(tool: Tool, context: ToolContext, answer: Answer) -> Any:
    from langchain_core.tools import StructuredTool

    async def call(**arguments: Any) -> str:
        started = time.time()
        result = await tool.run(arguments, context)
        answer.uses.append(ToolUse(tool.name, arguments, result, started, time.time()))
        return result.text

    return StructuredTool(
        name=tool.function_name, description=tool.description, args_schema=tool.parameters(), coroutine=call
    )


def kept(text: str) -> str:
    """As much of it as goes into a record."""
    return cut(text, _MAX_KEPT_CHARS)
