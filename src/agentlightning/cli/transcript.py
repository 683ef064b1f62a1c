"""A rollout as a conversation, for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.text import Text

from agentlightning.agent import find_final_reward
from agentlightning.agent.adapter import calls_from_spans
from agentlightning.schemas import ModelCall, Span

_STYLES = {"system": "dim", "user": "bold", "assistant": "cyan", "tool": "green"}


def render(spans: Sequence[Span], *, tokens: bool = False, reward: bool = True) -> Text:
    """The messages of a rollout in order, each once, then its reward.

    Args:
        spans: Spans of one attempt.
        tokens: Add token counts and mean log-probability to each answer.
        reward: End with the reward.
    """
    text = Text()
    shown: list[dict[str, Any]] = []
    for call in calls_from_spans(spans):
        common = 0
        while common < min(len(shown), len(call.messages)) and _same(shown[common], call.messages[common]):
            common += 1
        for message in call.messages[common:]:
            _append(text, message)
        _append(text, {"role": "assistant", **call.output}, note=_note(call) if tokens else "")
        shown = [*call.messages, call.output]
    if reward:
        final = find_final_reward(list(spans))
        text.append(f"reward: {'none' if final is None else final}\n", style="bold magenta")
    return text


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return (a.get("role", "assistant"), a.get("content") or "", bool(a.get("tool_calls"))) == (
        b.get("role", "assistant"),
        b.get("content") or "",
        bool(b.get("tool_calls")),
    )


def _append(text: Text, message: dict[str, Any], note: str = "") -> None:
    role = message.get("role", "?")
    style = _STYLES.get(role, "")
    parts: list[str] = []
    content = message.get("content")
    if content:
        parts.append(content if isinstance(content, str) else json.dumps(content))
    for call in message.get("tool_calls") or []:
        function = call.get("function", {})
        parts.append(f"-> {function.get('name')}({_arguments(function.get('arguments'))})")
    text.append(f"{role:<10}", style=style)
    text.append("\n          ".join("\n".join(parts).splitlines()) or "(nothing)", style=style)
    text.append(f"  {note}\n" if note else "\n", style="dim")


def _arguments(raw: Any) -> str:
    try:
        values = json.loads(raw) if isinstance(raw, str) else raw
        return ", ".join(str(value) for value in values.values())
    except (json.JSONDecodeError, AttributeError):
        return str(raw)


def _note(call: ModelCall) -> str:
    broken = "" if call.history in (None, "start", "continues") else f", history break: {call.history}"
    if not call.trainable:
        return f"[not trainable: {call.not_trainable_because}{broken}]"
    logprobs = call.response_logprobs or []
    mean = sum(logprobs) / len(logprobs) if logprobs else 0.0
    size = f"{len(call.prompt_token_ids or [])}+{len(call.response_token_ids or [])}"
    return f"[{size} tokens, mean logprob {mean:.2f}{broken}]"
