"""0.3's default tracer by name. Needs no AgentOps: model calls are captured at the gateway."""

from __future__ import annotations

from agentlightning.agent.tracer.otel import OtelTracer


class AgentOpsTracer(OtelTracer):
    """An `OtelTracer`, under the name that programs for 0.3 ask for.

    It neither starts nor patches AgentOps. Spans that an AgentOps of yours makes through OpenTelemetry are collected
    like all others; calls of models that do not pass the gateway leave no span.

    Args:
        agentops_managed: Has no effect.
        instrument_managed: Has no effect.
        daemon: Has no effect.
    """

    def __init__(self, *, agentops_managed: bool = True, instrument_managed: bool = True, daemon: bool = True) -> None:
        super().__init__()
        del agentops_managed, instrument_managed, daemon
