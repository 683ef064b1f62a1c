"""Conversations in OpenAI's fine-tuning shape, out of captured model calls."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypedDict

from agentlightning.agent.adapter.base import TraceAdapter
from agentlightning.agent.adapter.trajectory import calls_from_spans
from agentlightning.agent.emit.attributes import below
from agentlightning.schemas import Span


class OpenAIMessages(TypedDict):
    """One model call: the messages, the model's answer last, and the tools it could use."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None


class TraceToMessages(TraceAdapter[list[OpenAIMessages]]):
    """One entry per model call, in order.

    Besides the gateway's spans it understands those of instrumentation libraries that spread a call over
    `gen_ai.prompt.<i>.*` and `gen_ai.completion.<i>.*`.
    """

    def adapt(self, source: Sequence[Span], /) -> list[OpenAIMessages]:
        """Convert the spans of one attempt."""
        captured = calls_from_spans(source)
        if captured:
            return [
                OpenAIMessages(
                    messages=[*call.messages, *([call.output] if call.output else [])], tools=call.tools or None
                )
                for call in captured
            ]
        return [entry for span in source if (entry := _from_spread(span, source)) is not None]


def _from_spread(span: Span, spans: Sequence[Span]) -> OpenAIMessages | None:
    prompt = below(span.attributes, "gen_ai.prompt")
    completion = below(span.attributes, "gen_ai.completion")
    if not isinstance(prompt, list) or not prompt:
        return None
    messages = [_message(message) for message in prompt]
    calls = [call for child in spans if child.parent_id == span.span_id if (call := _tool_call(child)) is not None]
    for message in completion if isinstance(completion, list) else []:
        answer = _message({"role": "assistant", **message})
        if calls:
            answer["tool_calls"] = calls
        messages.append(answer)
    functions = below(span.attributes, "gen_ai.request.functions")
    tools = [_tool(function) for function in functions] if isinstance(functions, list) else []
    return OpenAIMessages(messages=messages, tools=tools or None)


def _message(message: dict[str, Any]) -> dict[str, Any]:
    kept = {key: message[key] for key in ("role", "content", "tool_call_id") if message.get(key) is not None}
    kept.setdefault("content", None)
    if isinstance(message.get("tool_calls"), list):
        kept["tool_calls"] = [
            {
                "id": call.get("id", ""),
                "type": "function",
                "function": {k: call.get(k, "") for k in ("name", "arguments")},
            }
            for call in message["tool_calls"]
        ]
    return kept


def _tool_call(span: Span) -> dict[str, Any] | None:
    tool = below(span.attributes, "tool")
    if not isinstance(tool, dict) or "name" not in tool:
        return None
    call = tool.get("call", {})
    return {
        "id": call.get("id", ""),
        "type": call.get("type", "function"),
        "function": {"name": tool["name"], "arguments": tool.get("parameters", "")},
    }


def _tool(function: dict[str, Any]) -> dict[str, Any]:
    parameters = function.get("parameters", {})
    return {
        "type": "function",
        "function": {
            "name": function.get("name", ""),
            "description": function.get("description", ""),
            "parameters": json.loads(parameters) if isinstance(parameters, str) else parameters,
        },
    }
