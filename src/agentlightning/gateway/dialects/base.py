"""The contract of a dialect. Knows nothing of HTTP servers, upstreams or recording."""

from __future__ import annotations

from typing import Any, Protocol

from agentlightning.gateway.call import Answer, Kind, StreamPiece
from agentlightning.gateway.errors import CallError


class StreamEncoder(Protocol):
    """Writes one streamed answer; may keep state between pieces."""

    def encode(self, piece: StreamPiece) -> bytes:
        """The bytes of one piece; empty when it has none in this dialect."""
        ...

    def end(self) -> bytes:
        """What closes a complete stream."""
        ...

    def error(self, error: CallError) -> bytes:
        """What closes a stream that failed after it began."""
        ...


class Dialect(Protocol):
    """One API that agents speak."""

    kind: Kind
    name: str

    def parse(self, raw: bytes) -> dict[str, Any]:
        """The request body as a canonical (OpenAI) one.

        Raises:
            CallError: It is not JSON, or lacks what every call needs.
        """
        ...

    def encode(self, answer: Answer) -> bytes:
        """The bytes of a finished answer."""
        ...

    def open_stream(self, body: dict[str, Any]) -> StreamEncoder:
        """An encoder for one streamed answer."""
        ...

    def encode_error(self, error: CallError) -> bytes:
        """The bytes of an error answer."""
        ...
