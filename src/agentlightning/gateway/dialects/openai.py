"""OpenAI's chat completions and text completions: the canonical shape, so there is little to translate."""

from __future__ import annotations

from typing import Any

import orjson

from agentlightning.gateway.call import Answer, Api, Kind, StreamPiece, UpstreamCall
from agentlightning.gateway.dialects.base import ParsedCall, StreamEncoder
from agentlightning.gateway.errors import CallError, invalid
from agentlightning.kit.ids import new_id


def parse_json_object(raw: bytes) -> dict[str, Any]:
    """Decode a JSON object.

    Raises:
        CallError: 400, the text is no JSON object.
    """
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise invalid(f"The request body is not valid JSON: {error}.", reason="invalid_json") from error
    if not isinstance(body, dict):
        raise invalid("The request body must be a JSON object.", reason="invalid_json")
    return body


class _SseEncoder:
    def encode(self, piece: StreamPiece) -> bytes:
        if piece.raw is not None:
            return piece.raw
        return b"".join(b"data: %b\n\n" % orjson.dumps(event) for event in piece.events)

    def end(self) -> bytes:
        return b"data: [DONE]\n\n"


class OpenAIDialect:
    """`/v1/chat/completions` and `/v1/completions`."""

    def __init__(self, kind: Kind) -> None:
        self.kind: Kind = kind
        self.name = "chat.completions" if kind == "chat" else "completions"
        self.api: Api = "openai"
        self.headers: tuple[bytes, ...] = ()

    def new_id(self) -> str:
        """As OpenAI's begin."""
        return new_id("chatcmpl" if self.kind == "chat" else "cmpl")

    def parse(self, raw: bytes) -> ParsedCall:
        """The body itself, checked for what every upstream needs."""
        body = parse_json_object(raw)
        if not isinstance(body.get("model"), str) or not body["model"]:
            raise invalid("You must provide a model parameter.", "model", "missing_required_parameter")
        if self.kind == "text":
            if body.get("prompt") in (None, "", []):
                raise invalid("You must provide a prompt parameter.", "prompt", "missing_required_parameter")
        elif not isinstance(body.get("messages"), list) or not body["messages"]:
            raise invalid("'messages' must be a non-empty list.", "messages", "missing_required_parameter")
        if not isinstance(body.get("stream") or False, bool):
            raise invalid("'stream' must be true or false.", "stream", "invalid_type")
        if not isinstance(body.get("stream_options") or {}, dict):
            raise invalid("'stream_options' must be an object.", "stream_options", "invalid_type")
        return ParsedCall(body=body)

    def encode(self, call: UpstreamCall, answer: Answer) -> bytes:
        """The upstream's own bytes where they may be passed on, else its JSON."""
        return answer.raw if answer.raw is not None else orjson.dumps(answer.body)

    def open_stream(self, call: UpstreamCall) -> StreamEncoder:
        """Server-sent events, `data: {chunk}`, closed by `data: [DONE]`."""
        return _SseEncoder()

    def encode_error(self, error: CallError) -> bytes:
        """OpenAI's error object."""
        return orjson.dumps(error.as_openai())

    def encode_stream_error(self, error: CallError) -> bytes:
        """The same object as an event."""
        return b"data: %b\n\n" % orjson.dumps(error.as_openai())
