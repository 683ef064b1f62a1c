"""Tracer on the OpenTelemetry SDK, safe for many rollouts at once in one process."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan

from agentlightning.agent.scope import (
    RolloutScope,
    add_core_span,
    current_scope,
    enter_scope,
    own_scope,
    unattributed,
)
from agentlightning.agent.tracer.base import SpanRecordingContext, SpanSink, Tracer
from agentlightning.agent.tracer.routing import SpanRouter, install_router
from agentlightning.schemas import Attributes, Span, SpanCoreFields, StatusCode, TraceStatus, semconv

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_NANOSECONDS = 1_000_000_000
_INSTRUMENT = "agentlightning"


class OtelTracer(Tracer):
    """Collects every span of the global OpenTelemetry provider, each for its own rollout.

    Starting and ending a span takes about 20 µs. Spans wait in memory until the runner takes them in batches; a
    `trace_context` that is used without a runner sends them to its store when the block ends.
    """

    def __init__(self) -> None:
        super().__init__()
        self._installed: tuple[SpanRouter, TracerProvider] | None = None
        self._otel: trace.Tracer | None = None
        self._last: RolloutScope | None = None

    def _install(self) -> SpanRouter:
        if self._installed is None:
            self._installed = install_router()
            self._otel = self._installed[1].get_tracer(_INSTRUMENT)
        return self._installed[0]

    def _tracer(self) -> trace.Tracer:
        self._install()
        assert self._otel is not None
        return self._otel

    def init_worker(self, worker_id: int, store: SpanSink | None = None) -> None:
        """Attach to the global provider."""
        super().init_worker(worker_id, store)
        self._install()

    def unattributed(self) -> dict[str, int]:
        """How many spans and model calls could not be assigned to a rollout, by kind."""
        return unattributed.snapshot()

    @asynccontextmanager
    async def trace_context(
        self,
        name: str | None = None,
        *,
        store: SpanSink | None = None,
        rollout_id: str | None = None,
        attempt_id: str | None = None,
    ) -> AsyncGenerator[trace.Tracer]:
        """Collect the spans of the block; yields an OpenTelemetry tracer.

        Raises:
            ValueError: Only one of the two ids is given.
        """
        sink = store if store is not None else self._store
        scope, owned = self._scope(name, rollout_id, attempt_id)
        try:
            with self._routed(scope), enter_scope(scope) if owned else nullcontext():
                yield self._tracer()
        finally:
            if owned and sink is not None and rollout_id is not None:
                spans = scope.drain()
                if getattr(sink, "capabilities", {}).get("otlp_traces"):
                    _name_resources(spans)
                if spans:
                    await sink.add_many_spans(spans)

    @contextmanager
    def trace_context_sync(
        self, name: str | None = None, *, rollout_id: str | None = None, attempt_id: str | None = None
    ) -> Generator[trace.Tracer]:
        """As `trace_context`, but sends nothing."""
        scope, owned = self._scope(name, rollout_id, attempt_id)
        with self._routed(scope), enter_scope(scope) if owned else nullcontext():
            yield self._tracer()

    def _scope(self, name: str | None, rollout_id: str | None, attempt_id: str | None) -> tuple[RolloutScope, bool]:
        if (rollout_id is None) != (attempt_id is None):
            raise ValueError("rollout_id and attempt_id belong together: give both or neither")
        entered = own_scope()
        if (
            entered is not None
            and entered.open
            and (entered.rollout_id, entered.attempt_id) == (rollout_id, attempt_id)
        ):
            entered.tracer = self  # the runner's, who will collect the spans
            return entered, False
        return RolloutScope(rollout_id or "", attempt_id or "", name=name or "", tracer=self), True

    @contextmanager
    def _routed(self, scope: RolloutScope) -> Generator[None]:
        router = self._install()
        router.open(scope)
        try:
            yield
        finally:
            router.close(scope)
            self._last = scope

    def get_last_trace(self) -> list[Span]:
        """Spans of the running trace of this task or thread, else of the one that ended last."""
        scope = current_scope() or self._last
        return scope.spans() if scope is not None else []

    def create_span(
        self,
        name: str,
        attributes: Attributes | None = None,
        timestamp: float | None = None,
        status: TraceStatus | None = None,
    ) -> SpanCoreFields:
        """Record a span that starts and ends at `timestamp` (Unix seconds; now when not given)."""
        moment = int(timestamp * _NANOSECONDS) if timestamp is not None else None
        span = self._tracer().start_span(name, attributes=attributes, start_time=moment)
        if not isinstance(span, ReadableSpan):  # sampled out or switched off: a reward must not depend on that
            return self._create_directly(name, attributes or {}, timestamp, status)
        if status is not None:
            span.set_status(_otel_status(status.status_code), status.description)
        span.end(moment)
        return _core_fields(span)

    def _create_directly(
        self, name: str, attributes: Attributes, timestamp: float | None, status: TraceStatus | None
    ) -> SpanCoreFields:
        scope = current_scope()
        if scope is None:
            unattributed.count(f"span:{name}")
            return SpanCoreFields(
                name=name,
                status=status or TraceStatus(),
                attributes=attributes,
                start_time=timestamp,
                end_time=timestamp,
            )
        span = add_core_span(scope, name, attributes, timestamp)
        if status is not None:
            span.status = status
        return SpanCoreFields(
            name=name,
            status=span.status,
            attributes=attributes,
            start_time=span.start_time,
            end_time=span.end_time,
        )

    @contextmanager
    def operation_context(
        self,
        name: str,
        attributes: Attributes | None = None,
        start_time: float | None = None,
        end_time: float | None = None,
    ) -> Generator[SpanRecordingContext]:
        """Record the block as a span; an exception marks it as failed and goes on."""
        started = int(start_time * _NANOSECONDS) if start_time is not None else None
        ended = int(end_time * _NANOSECONDS) if end_time is not None else None
        span = self._tracer().start_span(name, attributes=attributes, start_time=started)
        recording = _OtelRecording(span)
        try:
            with trace.use_span(span, end_on_exit=False, record_exception=False, set_status_on_exception=False):
                yield recording
        except Exception as error:  # whatever the block raises is noted and goes on
            recording.record_exception(error)
            raise
        finally:
            span.end(ended)


class _OtelRecording(SpanRecordingContext):
    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def record_exception(self, exception: BaseException) -> None:
        self._span.record_exception(exception)
        self.record_status("ERROR", str(exception))

    def record_attributes(self, attributes: Attributes) -> None:
        self._span.set_attributes(attributes)

    def record_status(self, status_code: StatusCode, description: str | None = None) -> None:
        self._span.set_status(_otel_status(status_code), description)

    def get_recorded_span(self) -> SpanCoreFields:
        if isinstance(self._span, ReadableSpan):
            return _core_fields(self._span)
        return SpanCoreFields(name="", status=TraceStatus(), attributes={}, start_time=None, end_time=None)


def _name_resources(spans: list[Span]) -> None:
    """Say of what rollout they are in the resource, too, as spans that come over OTLP do."""
    for span in spans:
        ids = {semconv.ROLLOUT_ID: span.rollout_id, semconv.ATTEMPT_ID: span.attempt_id}
        span.resource = span.resource.model_copy(update={"attributes": {**span.resource.attributes, **ids}})


def _otel_status(code: StatusCode) -> trace.StatusCode:
    return trace.StatusCode[code]


def _core_fields(span: ReadableSpan) -> SpanCoreFields:
    attributes: dict[str, Any] = {
        key: list(value) if isinstance(value, tuple) else value for key, value in (span.attributes or {}).items()
    }
    return SpanCoreFields(
        name=span.name,
        status=TraceStatus(status_code=span.status.status_code.name, description=span.status.description),
        attributes=attributes,
        start_time=span.start_time / _NANOSECONDS if span.start_time is not None else None,
        end_time=span.end_time / _NANOSECONDS if span.end_time is not None else None,
    )
