"""Routes finished OpenTelemetry spans to the rollout they belong to.

One span processor on one provider per process; the route is the context variable of the code that started the span, or
its trace id where a library runs without our context. Knows nothing of stores.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.sdk.resources import OTELResourceDetector
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

from agentlightning.agent.scope import RolloutScope, current_scope, unattributed

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan, Span

logger = logging.getLogger(__name__)


class SpanRouter(SpanProcessor):
    """Gives each span to its rollout's scope, or counts it as unattributed."""

    def __init__(self) -> None:
        self._routes: dict[int, RolloutScope] = {}
        self._lock = threading.Lock()

    def open(self, scope: RolloutScope) -> None:
        """Route the scope's trace id to it."""
        with self._lock:
            self._routes[scope.trace_id] = scope

    def close(self, scope: RolloutScope) -> None:
        """Stop routing to the scope."""
        with self._lock:
            for trace_id in scope.traces:
                self._routes.pop(trace_id, None)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Remember the route of a trace that user code has started on its own."""
        trace_id = span.get_span_context().trace_id
        if trace_id in self._routes:
            return
        scope = current_scope()
        if scope is not None:
            with self._lock:
                self._routes[trace_id] = scope
                scope.traces.append(trace_id)

    def on_end(self, span: ReadableSpan) -> None:
        """Deliver."""
        scope = self._scope_of(span)
        if scope is not None:
            scope.add(span)
        elif unattributed.count(f"span:{span.name}") == 1:
            logger.warning(
                "Span %r ended outside of any rollout and is not recorded; later ones of this name are only counted.",
                span.name,
            )

    def _scope_of(self, span: ReadableSpan) -> RolloutScope | None:
        context = span.get_span_context()
        route = self._routes.get(context.trace_id) if context is not None else None
        if route is not None and route.open and context is not None and route.trace_id == context.trace_id:
            return route
        current = current_scope()
        if current is not None:
            return current
        return route if route is not None and route.open else None


_lock = threading.Lock()
_router: SpanRouter | None = None
_provider: TracerProvider | None = None


def install_router() -> tuple[SpanRouter, TracerProvider]:
    """Attach the process's router to the global provider, creating the provider when nobody has set one.

    Idempotent. A provider that user code has set stays in place and keeps its exporters.
    """
    global _router, _provider
    with _lock:
        if _router is None:
            _router = SpanRouter()
        existing = trace.get_tracer_provider()
        if not isinstance(existing, TracerProvider):
            existing = TracerProvider(resource=OTELResourceDetector().detect(), shutdown_on_exit=False)
            trace.set_tracer_provider(existing)
        if _provider is not existing:
            existing.add_span_processor(_router)
            _provider = existing
        return _router, existing
