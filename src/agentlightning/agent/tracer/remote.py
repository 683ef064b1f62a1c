"""Emitting from a program that a runner started as a command: spans leave over OTLP, bound by environment.

Knows nothing of scopes: a process started for one rollout belongs to it as a whole.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from agentlightning.agent.tracer.otel import OtelTracer

_NEEDED = ("AGL_ROLLOUT_ID", "AGL_ATTEMPT_ID", "OTEL_EXPORTER_OTLP_ENDPOINT")


def started_for_rollout(environment: Mapping[str, str] | None = None) -> bool:
    """Whether this process was started by a runner for one rollout."""
    environment = os.environ if environment is None else environment
    return all(environment.get(name) for name in _NEEDED)


@functools.cache
def remote_tracer() -> OtelTracer:
    """The process's tracer that exports over OTLP; what is buffered is sent at exit.

    The ids travel as resource attributes, which the SDK reads from `OTEL_RESOURCE_ATTRIBUTES`. A provider that user
    code has set is left as it is: the OTLP variables are standard, so it exports to the same place.
    """
    return RemoteTracer()


class RemoteTracer(OtelTracer):
    """Exports instead of collecting."""

    def __init__(self) -> None:
        super().__init__()
        provider = trace.get_tracer_provider()
        if not isinstance(provider, TracerProvider):
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            provider = TracerProvider(resource=Resource.create(), shutdown_on_exit=True)
            provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=200))
            trace.set_tracer_provider(provider)
        self._otel = provider.get_tracer("agentlightning")

    def _tracer(self) -> trace.Tracer:
        assert self._otel is not None
        return self._otel
