"""OpenAI's Responses API: requests in, responses and their events out."""

from __future__ import annotations

import orjson

from agentlightning.gateway.call import INSTRUCTIONS, Answer, Api, Kind, UpstreamCall
from agentlightning.gateway.dialects.base import ParsedCall, StreamEncoder
from agentlightning.gateway.dialects.openai import parse_json_object
from agentlightning.gateway.dialects.responses_answer import ResponseStream, to_response
from agentlightning.gateway.dialects.responses_request import to_canonical
from agentlightning.gateway.errors import CallError, invalid
from agentlightning.kit.ids import new_id


class ResponsesDialect:
    """`/v1/responses`. Answers are kept in the record of their rollout; there is no other storage."""

    kind: Kind = "chat"
    name = "responses"
    api: Api = "responses"
    headers: tuple[bytes, ...] = ()

    def new_id(self) -> str:
        """As OpenAI's begin."""
        return new_id("resp").replace("-", "_")

    def parse(self, raw: bytes) -> ParsedCall:
        """The translated body; what it continues is put before it later."""
        native = parse_json_object(raw)
        for name in ("model", "input"):
            if not native.get(name):
                raise invalid(f"Missing required parameter: '{name}'.", name, "missing_required_parameter")
        body = to_canonical(native)
        return ParsedCall(
            body=body,
            native=native,
            continues=native.get("previous_response_id"),
            attributes={INSTRUCTIONS: True} if native.get("instructions") else {},
        )

    def encode(self, call: UpstreamCall, answer: Answer) -> bytes:
        """A Response."""
        return orjson.dumps(to_response(call, answer))

    def open_stream(self, call: UpstreamCall) -> StreamEncoder:
        """Response events."""
        return ResponseStream(call)

    def encode_error(self, error: CallError) -> bytes:
        """OpenAI's error object."""
        return orjson.dumps(error.as_openai())

    def encode_stream_error(self, error: CallError) -> bytes:
        """An `error` event; the error object in it makes the official client raise."""
        event = {"type": "error", "code": error.reason, "message": error.message, "param": error.param}
        event |= {"sequence_number": 0} | error.as_openai()
        return b"event: error\ndata: %b\n\n" % orjson.dumps(event)
