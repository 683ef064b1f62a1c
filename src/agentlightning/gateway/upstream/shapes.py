"""Whether what a server sent has the shape of an OpenAI completion, as far as everything behind relies on it. Pure.

Token ids, log-probabilities and usage are not looked at: a good answer is not refused for what was asked for beside it.
"""

from __future__ import annotations

from typing import Any


def fault_in_answer(answer: dict[str, Any]) -> str | None:
    """What is wrong with a whole completion; `None`: nothing."""
    choices = answer.get("choices")
    if not isinstance(choices, list):
        return "it is no completion"
    for choice in choices:
        if not isinstance(choice, dict):
            return "a choice is no object"
        if (fault := _fault_in_choice(choice, choice.get("message"))) is not None:
            return fault
    return None


def fault_in_chunk(chunk: dict[str, Any]) -> str | None:
    """What is wrong with a piece of a streamed one; `None`: nothing."""
    choices = chunk.get("choices")
    if choices is None:
        return None
    if not isinstance(choices, list):
        return "its choices are no list"
    for choice in choices:
        if not isinstance(choice, dict):
            return "a choice is no object"
        if (fault := _fault_in_choice(choice, choice.get("delta"))) is not None:
            return fault
    return None


def _fault_in_choice(choice: dict[str, Any], message: Any) -> str | None:
    index = choice.get("index")
    if index is not None and type(index) is not int:
        return "the index of a choice is no number"
    text = choice.get("text")
    if text is not None and not isinstance(text, str):
        return "the text of a choice is no text"
    if message is None:
        return None
    if not isinstance(message, dict):
        return "a message is no object"
    if not isinstance(message.get("content"), str | list | None):
        return "the content of a message is no text"
    calls = message.get("tool_calls")
    return None if calls is None else _fault_in_calls(calls)


def _fault_in_calls(calls: Any) -> str | None:
    if not isinstance(calls, list):
        return "the tool calls are no list"
    for call in calls:
        if not isinstance(call, dict) or not isinstance(call.get("function"), dict | None):
            return "a tool call is no object"
        if type(call.get("index")) not in (int, type(None)):
            return "the index of a tool call is no number"
        if not isinstance((call.get("function") or {}).get("name"), str | None):
            return "the name of a tool call is no text"
    return None
