"""Where calls are answered from: the upstream, or what it answered to the same call before."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from agentlightning.gateway.call import Answer, StreamPiece, UpstreamCall
from agentlightning.gateway.upstream.base import Upstream


class CallCache(Protocol):
    """Stands between calls and upstreams."""

    @property
    def needs_mode(self) -> bool:
        """Whether it has to know the mode of a call's rollout."""
        ...

    async def complete(self, upstream: Upstream, call: UpstreamCall) -> Answer:
        """As `Upstream.complete`."""
        ...

    def stream(self, upstream: Upstream, call: UpstreamCall) -> AsyncGenerator[StreamPiece, None]:
        """As `Upstream.stream`."""
        ...


class NoCache:
    """Asks the upstream every time."""

    needs_mode = False

    async def complete(self, upstream: Upstream, call: UpstreamCall) -> Answer:
        """As `Upstream.complete`."""
        return await upstream.complete(call)

    def stream(self, upstream: Upstream, call: UpstreamCall) -> AsyncGenerator[StreamPiece, None]:
        """As `Upstream.stream`."""
        return upstream.stream(call)
