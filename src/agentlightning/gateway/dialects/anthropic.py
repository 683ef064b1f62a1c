"""Anthropic's Messages API: requests in, messages and their events out, errors in its shape."""

from __future__ import annotations

from typing import Any

import orjson

from agentlightning.gateway.call import Answer, Api, Kind, UpstreamCall
from agentlightning.gateway.dialects.anthropic_answer import MessageStream, to_message
from agentlightning.gateway.dialects.anthropic_request import to_canonical
from agentlightning.gateway.dialects.base import ParsedCall, StreamEncoder
from agentlightning.gateway.dialects.openai import parse_json_object
from agentlightning.gateway.errors import CallError, invalid
from agentlightning.kit.ids import new_id

_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class AnthropicDialect:
    """`/v1/messages`, and the requests of `/v1/messages/count_tokens`."""

    kind: Kind = "chat"
    name = "messages"
    api: Api = "anthropic"
    headers: tuple[bytes, ...] = (b"anthropic-beta", b"anthropic-version")

    def __init__(self, *, needs_max_tokens: bool = True) -> None:
        self._needs_max_tokens = needs_max_tokens

    def new_id(self) -> str:
        """As Anthropic's begin."""
        return new_id("msg").replace("-", "_")

    def parse(self, raw: bytes) -> ParsedCall:
        """A translation of the body, or why there is none."""
        native = parse_json_object(raw)
        if not isinstance(native.get("model"), str) or not native["model"]:
            raise invalid("model: Field required", "model", "missing_required_parameter")
        if not isinstance(native.get("messages"), list):
            raise invalid("messages: Field required", "messages", "missing_required_parameter")
        if self._needs_max_tokens and not isinstance(native.get("max_tokens"), int):
            raise invalid("max_tokens: Field required", "max_tokens", "missing_required_parameter")
        try:
            return ParsedCall(body=to_canonical(native), native=native)
        except CallError as refusal:
            kept = {name: native[name] for name in native.keys() & {"model", "messages", "tools", "stream"}}
            return ParsedCall(body=kept, native=native, refusal=refusal)

    def encode(self, call: UpstreamCall, answer: Answer) -> bytes:
        """A Message; the upstream's own bytes where it speaks this dialect."""
        if answer.raw is not None and answer.raw_api == self.api:
            return answer.raw
        return orjson.dumps(to_message(call, answer))

    def open_stream(self, call: UpstreamCall) -> StreamEncoder:
        """Message events."""
        return MessageStream(call)

    def encode_error(self, error: CallError) -> bytes:
        """Anthropic's error object."""
        return orjson.dumps(_error(error))

    def encode_stream_error(self, error: CallError) -> bytes:
        """The same as an `error` event."""
        return b"event: error\ndata: %b\n\n" % orjson.dumps(_error(error))


def _error(error: CallError) -> dict[str, Any]:
    kind = _ERROR_TYPES.get(error.status)
    if kind is None:
        kind = "api_error" if error.status >= 500 else "invalid_request_error"
    return {"type": "error", "error": {"type": kind, "message": error.message}}
