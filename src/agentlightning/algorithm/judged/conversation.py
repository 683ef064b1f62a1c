"""An attempt as one conversation: what the model was given, and what came of it. Knows no store.

An attempt of several calls is one conversation when each call's messages begin with those of the call before and its
answer. Then the first call's messages are the prompt, and all that follows, tool results included, is the completion.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from agentlightning.agent.adapter import TraceToMessages
from agentlightning.schemas import Span

Message = dict[str, Any]
Unusable = Literal["no_model_call", "no_answer", "not_one_conversation"]

_KEPT = ("role", "content", "tool_calls", "tool_call_id", "name")


@dataclass(frozen=True)
class Conversation:
    """Messages in the shape that chat templates take: plain text where there is only text, arguments as objects."""

    prompt: list[Message]
    completion: list[Message]
    tools: list[dict[str, Any]] | None


def conversation_of(spans: Sequence[Span]) -> Conversation | Unusable:
    """The conversation of one attempt, or why there is none."""
    calls = TraceToMessages().adapt(spans)
    if not calls:
        return "no_model_call"
    histories = _answered(calls)
    if not histories:
        return "no_answer"
    for earlier, later in itertools.pairwise(histories):
        if later[: len(earlier)] != earlier:
            return "not_one_conversation"
    first = len(histories[0]) - 1
    if not first:
        return "no_model_call"  # an answer to nothing
    return Conversation(histories[-1][:first], histories[-1][first:], calls[0]["tools"])


def turns_of(spans: Sequence[Span]) -> list[Conversation]:
    """Each answered call of an attempt as a conversation of its own, for agents that rewrite their history."""
    found: list[Conversation] = []
    for call in TraceToMessages().adapt(spans):
        found += [Conversation(history[:-1], history[-1:], call["tools"]) for history in _answered([call])]
    return found


def _answered(calls: Sequence[Any]) -> list[list[Message]]:
    histories = [[_plain(message) for message in call["messages"]] for call in calls]
    # Calls that failed have no answer; the agent may have tried again.
    return [history for history in histories if history and history[-1]["role"] == "assistant"]


def _plain(message: Message) -> Message:
    kept = {key: message[key] for key in _KEPT if message.get(key) not in (None, [])}
    kept["role"] = message.get("role", "assistant")
    kept["content"] = _text(message.get("content"))
    if "tool_calls" in kept:
        kept["tool_calls"] = [_call(call) for call in kept["tool_calls"]]
    return kept


def _text(content: Any) -> Any:
    """Parts of nothing but text as one text."""
    if content is None:
        return ""
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        return "".join(str(part.get("text", "")) for part in content)
    return content


def _call(call: dict[str, Any]) -> dict[str, Any]:
    function = dict(call.get("function") or {})
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments or "{}")
        except ValueError:
            parsed = None  # the model wrote something else; it stays a text
        if isinstance(parsed, dict):
            function["arguments"] = parsed
    return {"id": call.get("id", ""), "type": "function", "function": function}
