"""Writes canonical (OpenAI chat) answers as Anthropic Messages, whole and streamed. Pure."""

from __future__ import annotations

from typing import Any

import orjson

from agentlightning.gateway.call import Answer, Capture, StreamPiece, UpstreamCall
from agentlightning.gateway.dialects.blocks import (
    Block,
    BlockEvent,
    BlockStream,
    blocks_of,
    first_choice,
    stop_sequence_of,
)

_STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use", "function_call": "tool_use"}
_STOP_REASONS["content_filter"] = "refusal"


def to_message(call: UpstreamCall, answer: Answer) -> dict[str, Any]:
    """A Message object."""
    choice = first_choice(answer)
    blocks = blocks_of(choice.get("message") or {})
    stop_sequence = stop_sequence_of(choice)
    return _message(call, str(answer.body.get("model") or call.model)) | {
        "content": [_finished(block) for block in blocks],
        "stop_reason": _stop_reason(choice.get("finish_reason"), stop_sequence, blocks),
        "stop_sequence": stop_sequence,
        "usage": _usage(answer.capture),
    }


class MessageStream:
    """Anthropic's event sequence for one streamed answer.

    Servers tell the number of prompt tokens at the end, so `message_start` says 0 and `message_delta` the truth.
    """

    def __init__(self, call: UpstreamCall) -> None:
        self._call = call
        self._blocks = BlockStream()
        self._capture = Capture()
        self._has_started = False
        self._is_native = False

    def encode(self, piece: StreamPiece) -> bytes:
        """The events of one piece."""
        if piece.raw is not None and piece.raw_api == "anthropic":
            self._is_native = True
            return piece.raw
        data: list[bytes] = []
        for chunk in piece.events:
            if not self._has_started:
                data.append(self._start(str(chunk.get("model") or self._call.model)))
            data += [_event(*_render(event)) for event in self._blocks.feed(chunk)]
        self._capture = piece.capture or self._capture
        return b"".join(data)

    def end(self) -> bytes:
        """Close the blocks and the message."""
        if self._is_native:
            return b""
        data = [] if self._has_started else [self._start(self._call.model)]
        data += [_event(*_render(event)) for event in self._blocks.finish()]
        blocks = self._blocks
        delta = {
            "stop_reason": _stop_reason(blocks.finish_reason, blocks.stop_sequence, blocks.finished),
            "stop_sequence": blocks.stop_sequence,
        }
        data.append(_event("message_delta", {"delta": delta, "usage": _usage(self._capture)}))
        data.append(_event("message_stop", {}))
        return b"".join(data)

    def _start(self, model: str) -> bytes:
        self._has_started = True
        message = _message(self._call, model) | {
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(Capture()),
        }
        return _event("message_start", {"message": message})


def _message(call: UpstreamCall, model: str) -> dict[str, Any]:
    return {"id": call.call_id, "type": "message", "role": "assistant", "model": model}


def _usage(capture: Capture) -> dict[str, int]:
    return {
        "input_tokens": capture.prompt_tokens or 0,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": capture.completion_tokens or 0,
    }


def _stop_reason(finish_reason: str | None, stop_sequence: str | None, blocks: list[Block]) -> str:
    if stop_sequence is not None:
        return "stop_sequence"
    if finish_reason in _STOP_REASONS:
        return _STOP_REASONS[finish_reason]
    # Some servers end tool calls with "stop".
    return "tool_use" if any(block.kind == "tool" for block in blocks) else "end_turn"


def _finished(block: Block) -> dict[str, Any]:
    if block.kind == "thinking":
        return {"type": "thinking", "thinking": block.text, "signature": ""}
    if block.kind == "text":
        return {"type": "text", "text": block.text, "citations": None}
    return _opened(block) | {"input": _arguments(block.text)}


def _opened(block: Block) -> dict[str, Any]:
    if block.kind == "thinking":
        return {"type": "thinking", "thinking": "", "signature": ""}
    if block.kind == "text":
        return {"type": "text", "text": "", "citations": None}
    return {"type": "tool_use", "id": block.call_id, "name": block.name, "input": {}}


def _arguments(text: str) -> dict[str, Any]:
    """The input of a tool call. A model may write anything; what is no JSON object is handed on under one key."""
    try:
        value = orjson.loads(text or "{}")
    except orjson.JSONDecodeError:
        return {"invalid_json": text}
    return value if isinstance(value, dict) else {"invalid_json": text}


_DELTAS = {"thinking": ("thinking_delta", "thinking"), "text": ("text_delta", "text")}
_DELTAS["tool"] = ("input_json_delta", "partial_json")


def _render(event: BlockEvent) -> tuple[str, dict[str, Any]]:
    place = {"index": event.block.index}
    if event.what == "open":
        return "content_block_start", place | {"content_block": _opened(event.block)}
    if event.what == "close":
        return "content_block_stop", place
    kind, field = _DELTAS[event.block.kind]
    return "content_block_delta", place | {"delta": {"type": kind, field: event.text}}


def _event(name: str, data: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps({"type": name} | data))
