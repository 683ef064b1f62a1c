"""Writes canonical (OpenAI chat) answers as OpenAI Responses, whole and streamed. Pure."""

from __future__ import annotations

from typing import Any

import orjson

from agentlightning.gateway.call import Answer, Capture, StreamPiece, UpstreamCall
from agentlightning.gateway.dialects.blocks import Block, BlockEvent, BlockStream, blocks_of, first_choice

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
_ECHOED = (
    "instructions", "max_output_tokens", "max_tool_calls", "metadata", "previous_response_id", "prompt_cache_key",
    "reasoning", "safety_identifier", "temperature", "top_p", "user",
)  # fmt: skip
_PREFIXES = {"thinking": "rs", "text": "msg", "tool": "fc"}


def to_response(call: UpstreamCall, answer: Answer) -> dict[str, Any]:
    """A finished Response object."""
    choice = first_choice(answer)
    blocks = blocks_of(choice.get("message") or {})
    model = str(answer.body.get("model") or call.model)
    return _finished(call, model, blocks, choice.get("finish_reason"), answer.capture)


class ResponseStream:
    """The event sequence of one streamed answer."""

    def __init__(self, call: UpstreamCall) -> None:
        self._call = call
        self._model = call.model
        self._blocks = BlockStream()
        self._capture = Capture()
        self._count = 0

    def encode(self, piece: StreamPiece) -> bytes:
        """The events of one piece."""
        data: list[bytes] = []
        for chunk in piece.events:
            if not self._count:
                self._model = str(chunk.get("model") or self._call.model)
                data += self._start()
            for event in self._blocks.feed(chunk):
                data += self._render(event)
        self._capture = piece.capture or self._capture
        return b"".join(data)

    def end(self) -> bytes:
        """Close the items and the response."""
        data = [] if self._count else self._start()
        for event in self._blocks.finish():
            data += self._render(event)
        blocks = self._blocks
        response = _finished(self._call, self._model, blocks.finished, blocks.finish_reason, self._capture)
        data.append(self._event(f"response.{response['status']}", {"response": response}))
        return b"".join(data)

    def _start(self) -> list[bytes]:
        response = _response(self._call, self._model, "in_progress")
        return [self._event(f"response.{name}", {"response": response}) for name in ("created", "in_progress")]

    def _event(self, name: str, data: dict[str, Any]) -> bytes:
        event = {"type": name, "sequence_number": self._count} | data
        self._count += 1
        return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps(event))

    def _render(self, event: BlockEvent) -> list[bytes]:
        block = event.block
        place: dict[str, Any] = {"output_index": block.index}
        inside = place | {"item_id": _item_id(self._call, block)}
        if block.kind != "tool":
            inside["content_index"] = 0
        if event.what == "open":
            opened = {**_item(self._call, block, "in_progress"), "content": []}
            if block.kind == "tool":
                opened = _item(self._call, Block("tool", block.index, block.call_id, block.name), "in_progress")
            data = [self._event("response.output_item.added", place | {"item": opened})]
            if block.kind == "text":
                data.append(self._event("response.content_part.added", inside | {"part": _text_part("")}))
            return data
        if event.what == "delta":
            logprobs = {"logprobs": []} if block.kind == "text" else {}
            return [self._event(f"{_STEMS[block.kind]}.delta", inside | {"delta": event.text} | logprobs)]
        return self._close(block, place, inside)

    def _close(self, block: Block, place: dict[str, Any], inside: dict[str, Any]) -> list[bytes]:
        done = {"text": block.text}
        if block.kind == "tool":
            done = {"arguments": block.text, "name": block.name}
        logprobs = {"logprobs": []} if block.kind == "text" else {}
        data = [self._event(f"{_STEMS[block.kind]}.done", inside | done | logprobs)]
        if block.kind == "text":
            data.append(self._event("response.content_part.done", inside | {"part": _text_part(block.text)}))
        item = _item(self._call, block, "completed")
        data.append(self._event("response.output_item.done", place | {"item": item}))
        return data


_STEMS = {
    "thinking": "response.reasoning_text",
    "text": "response.output_text",
    "tool": "response.function_call_arguments",
}


def _response(call: UpstreamCall, model: str, status: str) -> dict[str, Any]:
    native = call.native or {}
    return {
        "id": call.call_id,
        "object": "response",
        "created_at": int(call.started_at),
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "model": model,
        "output": [],
        "parallel_tool_calls": native.get("parallel_tool_calls") is not False,
        "store": native.get("store") is not False,
        "text": native.get("text") or {"format": {"type": "text"}},
        "tool_choice": native.get("tool_choice") or "auto",
        "tools": native.get("tools") or [],
        "truncation": "disabled",
        "usage": None,
    } | {name: native.get(name) for name in _ECHOED}


def _finished(
    call: UpstreamCall, model: str, blocks: list[Block], finish_reason: str | None, capture: Capture
) -> dict[str, Any]:
    reason = _INCOMPLETE.get(finish_reason or "")
    status = "incomplete" if reason else "completed"
    items = [_item(call, block, "completed") for block in blocks]
    if reason and items:
        items[-1]["status"] = "incomplete"
    prompt, completion = capture.prompt_tokens or 0, capture.completion_tokens or 0
    usage = {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + completion,
    }
    return _response(call, model, status) | {
        "incomplete_details": {"reason": reason} if reason else None,
        "output": items,
        "usage": usage,
    }


def _item(call: UpstreamCall, block: Block, status: str) -> dict[str, Any]:
    head: dict[str, Any] = {"id": _item_id(call, block), "status": status}
    if block.kind == "text":
        return head | {"type": "message", "role": "assistant", "content": [_text_part(block.text)]}
    if block.kind == "tool":
        function = {"call_id": block.call_id, "name": block.name, "arguments": block.text}
        return head | {"type": "function_call"} | function
    return head | {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": block.text}]}


def _item_id(call: UpstreamCall, block: Block) -> str:
    return f"{_PREFIXES[block.kind]}_{call.call_id.partition('_')[2]}_{block.index}"


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
