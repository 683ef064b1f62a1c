"""The research agent: plan, search, read, verify, cite, with any model that calls tools.

Knows the tools by name and schema only, and nothing of training. It ends: after so many steps, or when most of its time
is gone, the tools are taken away and the model has to answer from what it has read.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Mapping
from typing import Any

from agentlightning.integrations.tongyi import prompts as texts
from agentlightning.integrations.tongyi.citations import settle
from agentlightning.integrations.tongyi.model import Message, Model, Reply, ToolCall
from agentlightning.integrations.tongyi.research import Call, Research, Source
from agentlightning.integrations.tongyi.tools import Kind, Toolset
from agentlightning.kit.errors import AgentLightningError, ConfigError, MissingExtraError
from agentlightning.schemas import LLM, PromptTemplate

MAX_PLAN_STEPS = 5
_TIME_FOR_ANSWERING = 0.75
_EXCERPT_CHARS = 2_000
_VERIFIED_CHARS = 24_000
_SHOWN_CHARS = 120_000
"""Of all tool results that the model has before it; the oldest are shortened first."""
_REMINDER_CHARS = 400
_BULLET = re.compile(r"^\s*(?:[-*•]|\(?\d+[.):])\s*")


class ResearchAgent:
    """Does research.

    Args:
        toolset: What it may use.
        max_steps: Model calls of the research loop; plan, verification and one more chance for an empty answer aside.
        timeout_s: The longest that one query may take, seconds.
        verify: Ask the model to hold its draft against the sources; citations are checked in any case.
    """

    def __init__(self, toolset: Toolset, *, max_steps: int = 12, timeout_s: float = 300.0, verify: bool = True) -> None:
        self.toolset = toolset
        self.max_steps = max_steps
        self.timeout_s = timeout_s
        self.verify = verify

    async def research(self, query: str, llm: LLM, prompts: Mapping[str, PromptTemplate] | None = None) -> Research:
        """Answer a query. Failures are part of what is returned, see `Research.error`.

        Args:
            query: The question.
            llm: The model.
            prompts: `plan_prompt` and `research_prompt`; those shipped where one is missing.

        Raises:
            ConfigError: A prompt has a placeholder that nothing fills.
            MissingExtraError: The package openai is missing.
        """
        await self.toolset.start()
        started = time.monotonic()
        research = Research(query)
        limit = asyncio.timeout(self.timeout_s)
        try:
            async with limit, Model(llm) as model:
                try:
                    draft = await self._work(research, model, {**texts.shipped_prompts(), **(prompts or {})}, started)
                finally:
                    research.model_calls = model.calls
                settle(draft, research)
                research.error = "" if research.answer else "The model gave no answer."
        except TimeoutError:
            if not limit.expired():
                raise
            research.error = f"The query took longer than {self.timeout_s:g} s."
        except (ConfigError, MissingExtraError):
            raise
        except AgentLightningError as error:
            research.error, research.is_outage = str(error), True
        research.seconds = time.monotonic() - started
        return research

    async def _work(
        self, research: Research, model: Model, prompts: Mapping[str, PromptTemplate], started: float
    ) -> str:
        tools = ", ".join(self.toolset.names)
        research.plan = await self._plan(research, model, prompts[texts.PLAN], tools)
        plan = "\n".join(f"{number}. {step}" for number, step in enumerate(research.plan, start=1))
        messages: list[Message] = [
            {"role": "system", "content": filled(prompts[texts.RESEARCH], texts.RESEARCH, plan=plan, tools=tools)},
            {"role": "user", "content": research.query},
        ]
        draft = await self._loop(research, model, messages, started)
        return await self._verified(research, model, draft) if self.verify else draft

    async def _plan(self, research: Research, model: Model, prompt: PromptTemplate, tools: str) -> list[str]:
        asked = filled(prompt, texts.PLAN, query=research.query, tools=tools)
        reply = await model.ask([{"role": "user", "content": asked}])
        lines = [_BULLET.sub("", line).strip() for line in reply.text.splitlines()]
        plan = [line[:300] for line in lines if line][:MAX_PLAN_STEPS]
        if not plan:
            research.notes.append("The model wrote no plan.")
            plan = ["Search for sources, read them, and answer."]
        return plan

    async def _loop(self, research: Research, model: Model, messages: list[Message], started: float) -> str:
        definitions = self.toolset.definitions()
        for step in range(1, self.max_steps + 1):
            is_late = time.monotonic() - started > _TIME_FOR_ANSWERING * self.timeout_s
            is_last = step == self.max_steps or is_late
            if is_last and step > 1:
                messages.append({"role": "user", "content": texts.LAST_STEP})
                research.notes.append("The time was nearly over." if is_late else "The last step was reached.")
            shorten(messages)
            reply = await model.ask(messages, tools=() if is_last else definitions)
            if not reply.calls or is_last:
                return reply.text.strip() or await self._second_chance(research, model, messages)
            messages.append(reply.as_message())
            messages += await self._use(research, reply)
        raise AssertionError("the last step returns")

    async def _second_chance(self, research: Research, model: Model, messages: list[Message]) -> str:
        research.notes.append("The first answer was empty.")
        reply = await model.ask([*messages, {"role": "user", "content": texts.EMPTY_ANSWER}])
        return reply.text.strip()

    async def _use(self, research: Research, reply: Reply) -> list[Message]:
        results = await asyncio.gather(*(self._call(call) for call in reply.calls))
        messages: list[Message] = []
        for call, (done, found, text) in zip(reply.calls, results, strict=True):
            research.calls.append(done)
            if found is not None:
                text = note_source(research, found, text)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": text})
        return messages

    async def _call(self, call: ToolCall) -> tuple[Call, tuple[Kind, str, str] | None, str]:
        started = time.monotonic()
        result = await self.toolset.use(call.name, call.arguments)
        done = Call(call.name, canonical(call.arguments), result.is_error, time.monotonic() - started)
        return done, None if result.is_error else result.source, result.text

    async def _verified(self, research: Research, model: Model, draft: str) -> str:
        """The draft without what the sources do not say; the draft itself when the check cannot be read."""
        read = [source for source in research.sources if source.is_citable]
        if not draft or not read:
            return draft
        excerpts = "\n\n".join(f"{s.marker} {s.locator}\n{_excerpt(s.text)}" for s in read)[:_VERIFIED_CHARS]
        question = f"Question: {research.query}\n\nSources:\n{excerpts}\n\nDraft:\n{draft}"
        reply = await model.ask(
            [{"role": "system", "content": texts.VERIFY_TEXT}, {"role": "user", "content": question}]
        )
        checked = _json_object(reply.text)
        if checked is None:
            research.notes.append("The verification could not be read; only citations were checked.")
            return draft
        unsupported = checked.get("unsupported")
        research.unsupported = [str(item)[:500] for item in unsupported][:20] if isinstance(unsupported, list) else []
        answer = checked.get("answer")
        if research.unsupported and isinstance(answer, str) and answer.strip():
            return answer.strip()
        return draft


def shorten(messages: list[Message]) -> None:
    """Keep what tools said within bounds, so that long research does not outgrow the model's context."""
    results = [message for message in messages if message["role"] == "tool"]
    excess = sum(len(message["content"]) for message in results) - _SHOWN_CHARS
    for message in results:
        if excess <= 0:
            return
        text = message["content"]
        if len(text) > 2 * _REMINDER_CHARS:
            message["content"] = f"{text[:_REMINDER_CHARS]}\n[left out for room; open it again if you need it]"
            excess -= len(text) - len(message["content"])


def note_source(research: Research, found: tuple[Kind, str, str], text: str) -> str:
    """Take a tool's result in as a source; returns it with its marker, for the model."""
    source = Source(len(research.sources) + 1, found[0], found[1], text, found[2])
    research.sources.append(source)
    return f"{source.marker} {source.locator}\n{text}"


def filled(prompt: PromptTemplate, name: str, **values: str) -> str:
    """A prompt with its placeholders filled.

    Raises:
        ConfigError: It has one that nothing fills.
    """
    try:
        return prompt.format(**values)
    except (KeyError, IndexError, ValueError) as error:
        known = ", ".join(f"{{{key}}}" for key in values)
        raise ConfigError(
            f"The prompt {name} cannot be filled: {type(error).__name__} {error}.",
            hint=f"It may have {known}; write other braces twice.",
        ) from error


def _excerpt(text: str) -> str:
    return text if len(text) <= _EXCERPT_CHARS else text[:_EXCERPT_CHARS] + " [...]"


def canonical(arguments: str | dict[str, Any]) -> str:
    """The same text for the same arguments."""
    try:
        return json.dumps(json.loads(arguments) if isinstance(arguments, str) else arguments, sort_keys=True)
    except ValueError:
        return str(arguments)


def _json_object(text: str) -> dict[str, Any] | None:
    begin, end = text.find("{"), text.rfind("}")
    try:
        found = json.loads(text[begin : end + 1]) if 0 <= begin < end else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
