"""Callbacks around rollouts (names and arguments of the public 0.3 API)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentlightning.schemas import Rollout, Span

if TYPE_CHECKING:
    from agentlightning.agent.tracer.base import Tracer


class Hook:
    """Override what you need. An exception in a hook is logged and does not disturb the rollout."""

    async def on_rollout_start(self, *, agent: Any, runner: Any, rollout: Rollout) -> None:
        """An attempt is about to begin."""

    async def on_trace_start(self, *, agent: Any, runner: Any, tracer: Tracer, rollout: Rollout) -> None:
        """Tracing has begun, the agent has not."""

    async def on_trace_end(self, *, agent: Any, runner: Any, tracer: Tracer, rollout: Rollout) -> None:
        """The agent has returned, tracing goes on."""

    async def on_rollout_end(self, *, agent: Any, runner: Any, rollout: Rollout, spans: list[Span]) -> None:
        """The attempt has ended; `spans` are those recorded in this process."""
