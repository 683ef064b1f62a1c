"""Puts the chunks of a streamed chat completion in the order of APIs whose answers are lists of blocks. Pure.

In OpenAI's chunks text and tool calls may come interleaved; in Anthropic's and the Responses API's streams one block
ends before the next begins. The block that began first is passed on as it comes, tool calls that begin while another
one is open wait for the end.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from agentlightning.gateway.call import Answer, arguments_of, text_of
from agentlightning.gateway.errors import CallError
from agentlightning.kit.ids import new_id

BlockKind = Literal["thinking", "text", "tool"]


class Block(msgspec.Struct):
    """A run of thinking or of text, or one tool call; `text` is then its arguments."""

    kind: BlockKind
    index: int = 0
    """Position in the answer, given when it opens."""
    call_id: str = ""
    name: str = ""
    text: str = ""


class BlockEvent(msgspec.Struct):
    """Something to tell the client."""

    what: Literal["open", "delta", "close"]
    block: Block
    text: str = ""


def reasoning_of(message: dict[str, Any]) -> str:
    """The thinking in a message or delta; servers have two names for it."""
    return message.get("reasoning_content") or message.get("reasoning") or ""


def first_choice(answer: Answer) -> dict[str, Any]:
    """The one that APIs without `n` have.

    Raises:
        CallError: 502, there is none.
    """
    choices = answer.body["choices"]
    if not choices:
        raise CallError(
            "The model server gave no usable answer: it has no choices.", status=502, reason="upstream_failed"
        )
    return choices[0]


def blocks_of(message: dict[str, Any]) -> list[Block]:
    """The blocks of a finished message, in order."""
    blocks: list[Block] = []
    if reasoning := reasoning_of(message):
        blocks.append(Block("thinking", text=reasoning))
    if text := text_of(message.get("content")) or message.get("refusal"):
        blocks.append(Block("text", text=text))
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        call_id = call.get("id") or new_id("call")
        blocks.append(Block("tool", 0, call_id, function.get("name") or "", arguments_of(function)))
    for index, block in enumerate(blocks):
        block.index = index
    return blocks


class BlockStream:
    """Takes chunks in, gives block events out; only the first choice counts."""

    def __init__(self) -> None:
        self.finished: list[Block] = []
        self.finish_reason = ""
        self.stop_sequence: str | None = None
        self._live: Block | None = None
        self._waiting: list[Block] = []
        self._tools: dict[int, Block] = {}

    def feed(self, chunk: dict[str, Any]) -> list[BlockEvent]:
        """Take in one chunk."""
        events: list[BlockEvent] = []
        for choice in chunk.get("choices") or ():
            if choice.get("index"):  # absent and null count as the first
                continue
            delta = choice.get("delta") or {}
            self._feed_text("thinking", reasoning_of(delta), events)
            self._feed_text("text", text_of(delta.get("content")) or delta.get("refusal") or "", events)
            for call in delta.get("tool_calls") or ():
                self._feed_tool(call, events)
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            self.stop_sequence = stop_sequence_of(choice) or self.stop_sequence
        return events

    def finish(self) -> list[BlockEvent]:
        """Close what is open and pass on what waited."""
        events: list[BlockEvent] = []
        self._close(events)
        for block in self._waiting:
            self._open(block, events)
            if block.text:
                events.append(BlockEvent("delta", block, block.text))
            self._close(events)
        self._waiting.clear()
        return events

    def _feed_text(self, kind: BlockKind, text: str, events: list[BlockEvent]) -> None:
        if not text:
            return
        if self._live is not None and self._live.kind == "tool":
            if not self._waiting or self._waiting[-1].kind != kind:
                self._waiting.append(Block(kind))
            self._waiting[-1].text += text
            return
        if self._live is None or self._live.kind != kind:
            self._close(events)
            self._open(Block(kind), events)
        self._extend(text, events)

    def _feed_tool(self, delta: dict[str, Any], events: list[BlockEvent]) -> None:
        function = delta.get("function") or {}
        position = delta.get("index")
        if position is None:
            position = max(self._tools, default=-1) + 1
        block = self._tools.get(position)
        if block is None:
            call_id = delta.get("id") or new_id("call")
            block = self._tools[position] = Block("tool", 0, call_id, function.get("name") or "")
            if self._live is not None and self._live.kind == "tool":
                self._waiting.append(block)
            else:
                self._close(events)
                self._open(block, events)
        text = arguments_of(function)
        if block is self._live:
            self._extend(text, events)
        else:
            block.text += text

    def _open(self, block: Block, events: list[BlockEvent]) -> None:
        block.index = len(self.finished)
        self._live = block
        events.append(BlockEvent("open", block))

    def _extend(self, text: str, events: list[BlockEvent]) -> None:
        if text and self._live is not None:
            self._live.text += text
            events.append(BlockEvent("delta", self._live, text))

    def _close(self, events: list[BlockEvent]) -> None:
        if self._live is not None:
            self.finished.append(self._live)
            events.append(BlockEvent("close", self._live))
            self._live = None


def stop_sequence_of(choice: dict[str, Any]) -> str | None:
    """The stop string that ended a choice, from servers that say so (vLLM's `stop_reason`)."""
    reason = choice.get("stop_reason")
    return reason if isinstance(reason, str) and choice.get("finish_reason") == "stop" else None
