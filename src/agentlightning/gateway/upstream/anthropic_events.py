"""Reads Anthropic's answers and stream events as canonical (OpenAI) ones, for the record. Pure."""

from __future__ import annotations

from typing import Any

import orjson

_FINISH_REASONS = {"max_tokens": "length", "tool_use": "tool_calls", "refusal": "content_filter"}
_FINISH_REASONS["model_context_window_exceeded"] = "length"


def to_completion(message: dict[str, Any]) -> dict[str, Any]:
    """The chat completion that says the same. Blocks of other kinds (searches, citations) are left out."""
    output: dict[str, Any] = {"role": "assistant", "content": None}
    for block in message.get("content") or ():
        kind = block.get("type")
        if kind == "text":
            output["content"] = (output["content"] or "") + block.get("text", "")
        elif kind == "thinking":
            output["reasoning_content"] = output.get("reasoning_content", "") + block.get("thinking", "")
        elif kind == "tool_use":
            call = _tool_call(block, orjson.dumps(block.get("input") or {}).decode())
            output.setdefault("tool_calls", []).append(call)
    choice = {"index": 0, "message": output, "finish_reason": finish_reason(message.get("stop_reason"))}
    return {
        "id": message.get("id", ""),
        "object": "chat.completion",
        "model": message.get("model", ""),
        "choices": [choice],
        "usage": _usage(message.get("usage") or {}),
    }


def finish_reason(stop_reason: str | None) -> str:
    """OpenAI's name."""
    return _FINISH_REASONS.get(stop_reason or "", "stop")


class EventReader:
    """Turns stream events into chunks; remembers which block is which tool call."""

    def __init__(self) -> None:
        self._head: dict[str, Any] = {}
        self._usage: dict[str, Any] = {}
        self._tools: dict[int, int] = {}
        self.is_finished = False

    def chunks(self, event: dict[str, Any]) -> list[dict[str, Any]]:
        """The chunks of one event; most have none or one."""
        kind = event.get("type")
        if kind == "message_start":
            message = event.get("message") or {}
            self._head = {"id": message.get("id", ""), "model": message.get("model", "")}
            self._usage = dict(message.get("usage") or {})
            return [self._chunk({"role": "assistant", "content": ""})]
        if kind == "content_block_start":
            return self._start(event.get("index", 0), event.get("content_block") or {})
        if kind == "content_block_delta":
            return self._delta(event.get("index", 0), event.get("delta") or {})
        if kind == "message_delta":
            return self._finish(event)
        return []

    def _start(self, index: int, block: dict[str, Any]) -> list[dict[str, Any]]:
        if block.get("type") != "tool_use":
            return []
        self._tools[index] = len(self._tools)
        return [self._chunk({"tool_calls": [{"index": self._tools[index]} | _tool_call(block, "")]})]

    def _delta(self, index: int, delta: dict[str, Any]) -> list[dict[str, Any]]:
        kind = delta.get("type")
        if kind == "text_delta":
            return [self._chunk({"content": delta.get("text", "")})]
        if kind == "thinking_delta":
            return [self._chunk({"reasoning_content": delta.get("thinking", "")})]
        if kind == "input_json_delta" and index in self._tools:
            function = {"arguments": delta.get("partial_json", "")}
            return [self._chunk({"tool_calls": [{"index": self._tools[index], "function": function}]})]
        return []

    def _finish(self, event: dict[str, Any]) -> list[dict[str, Any]]:
        # Its counts are totals; what it does not repeat holds from message_start.
        self._usage |= {name: count for name, count in (event.get("usage") or {}).items() if count is not None}
        stop_reason = (event.get("delta") or {}).get("stop_reason")
        if stop_reason is None:
            return []
        self.is_finished = True
        return [self._chunk({}, finish_reason(stop_reason)) | {"usage": _usage(self._usage)}]

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        return self._head | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def _tool_call(block: dict[str, Any], arguments: str) -> dict[str, Any]:
    function = {"name": block.get("name", ""), "arguments": arguments}
    return {"id": block.get("id", ""), "type": "function", "function": function}


def _usage(usage: dict[str, Any]) -> dict[str, Any]:
    """Cached prompt tokens are counted apart by Anthropic; here they are prompt tokens like the others."""
    names = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    return {
        "prompt_tokens": sum(usage.get(name) or 0 for name in names),
        "completion_tokens": usage.get("output_tokens") or 0,
        "prompt_tokens_details": {"cached_tokens": usage.get("cache_read_input_tokens") or 0},
    }
