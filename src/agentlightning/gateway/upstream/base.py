"""The contract of an upstream: whatever can answer a canonical call."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from agentlightning.gateway.call import Answer, StreamPiece, UpstreamCall


class Upstream(Protocol):
    """Answers calls. Errors are raised as `CallError`, or as any error that `as_call_error` understands."""

    def names(self) -> list[str]:
        """Model names it answers for by itself, now; may be empty."""
        ...

    async def list_models(self) -> list[str]:
        """Model names to show to clients; may ask the server."""
        ...

    async def complete(self, call: UpstreamCall) -> Answer:
        """Answer in one piece. Cancelling it cancels the generation."""
        ...

    def stream(self, call: UpstreamCall) -> AsyncGenerator[StreamPiece, None]:
        """Answer in pieces, as they come. Closing the generator cancels the generation."""
        ...

    async def aclose(self) -> None:
        """Free connections; the upstream is not used afterwards."""
        ...
