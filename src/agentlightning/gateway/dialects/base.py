"""The contract of a dialect. Knows nothing of HTTP servers, upstreams or recording."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from agentlightning.gateway.call import Answer, Api, Kind, StreamPiece, UpstreamCall
from agentlightning.gateway.errors import CallError


class ParsedCall(msgspec.Struct, kw_only=True):
    """A request as a canonical (OpenAI) one."""

    body: dict[str, Any]
    native: dict[str, Any] | None = None
    """The request itself, where `body` is a translation of it."""
    refusal: CallError | None = None
    """Why it has no translation. An upstream that speaks the dialect itself does not need one."""
    continues: str | None = None
    """Id of the answer whose conversation it goes on with."""
    attributes: dict[str, Any] = {}
    """What to add to the record."""


class StreamEncoder(Protocol):
    """Writes one streamed answer; may keep state between pieces."""

    def encode(self, piece: StreamPiece) -> bytes:
        """The bytes of one piece; empty when it has none in this dialect."""
        ...

    def end(self) -> bytes:
        """What closes a complete stream."""
        ...


class Dialect(Protocol):
    """One API that agents speak."""

    kind: Kind
    name: str
    api: Api
    """Its family; an upstream of the same one needs no translation."""
    headers: tuple[bytes, ...]
    """Request headers that belong to it, in lower case."""

    def new_id(self) -> str:
        """An id for an answer."""
        ...

    def parse(self, raw: bytes) -> ParsedCall:
        """Read a request body.

        Raises:
            CallError: It is not JSON, or lacks what every call needs.
        """
        ...

    def encode(self, call: UpstreamCall, answer: Answer) -> bytes:
        """The bytes of a finished answer."""
        ...

    def open_stream(self, call: UpstreamCall) -> StreamEncoder:
        """An encoder for one streamed answer."""
        ...

    def encode_error(self, error: CallError) -> bytes:
        """The bytes of an error answer."""
        ...

    def encode_stream_error(self, error: CallError) -> bytes:
        """What closes a stream that failed after it began."""
        ...
