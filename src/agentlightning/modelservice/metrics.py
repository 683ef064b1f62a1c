"""The service's counters in Prometheus' text format."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from agentlightning.modelservice.served import ModelState
from agentlightning.modelservice.service import ModelService

_MODEL_GAUGES = {
    "in_flight": "Calls under way.",
    "memory_mb": "Resident memory of the engine's process in MiB.",
}
_MODEL_COUNTERS = {
    "calls": "Calls that were given to the model.",
    "failed_calls": "Calls its engine failed.",
    "restarts": "Engines started again after a crash.",
    "swaps": "Changes to another version.",
}
_ENGINE_COUNTERS = {
    "prompt_tokens": "Tokens of prompts.",
    "reused_tokens": "Tokens of prompts that were not computed again.",
    "generated_tokens": "Tokens that were sampled.",
    "preemptions": "Sequences that had to wait for memory.",
}
_ENGINE_GAUGES = {
    "active": "Sequences being decoded.",
    "waiting": "Sequences waiting for memory or a row.",
    "cache_bytes": "Memory of keys and values.",
}


async def exposition(service: ModelService, gateway: Mapping[str, Any]) -> bytes:
    """All metrics as they are now."""
    from prometheus_client import CollectorRegistry, generate_latest

    models = await asyncio.gather(*(service.describe(served) for served in service.models))
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshot(models, gateway))
    return generate_latest(registry)


class _Snapshot:
    """What Prometheus' library collects from."""

    def __init__(self, models: list[dict[str, Any]], gateway: Mapping[str, Any]) -> None:
        self._models = models
        self._gateway = gateway

    def collect(self) -> Iterable[Any]:
        """The metric families."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        state = GaugeMetricFamily("agl_model_state", "1 for the state the model is in.", labels=["model", "state"])
        for model in self._models:
            for name in get_args(ModelState):
                state.add_metric([model["id"], name], float(model["state"] == name))
        yield state
        for name, text in _MODEL_GAUGES.items():
            yield self._each(GaugeMetricFamily, f"agl_model_{name}", text, {m["id"]: m[name] for m in self._models})
        for name, text in _MODEL_COUNTERS.items():
            yield self._each(CounterMetricFamily, f"agl_model_{name}", text, {m["id"]: m[name] for m in self._models})
        engines = {model["id"]: model["engine"] or {} for model in self._models}
        for kind, names in ((CounterMetricFamily, _ENGINE_COUNTERS), (GaugeMetricFamily, _ENGINE_GAUGES)):
            for name, text in names.items():
                values = {model: facts.get(name) for model, facts in engines.items()}
                yield self._each(kind, f"agl_engine_{name}", text, values)
        yield CounterMetricFamily("agl_gateway_calls", "Calls answered, well or not.", value=self._gateway["calls"])
        yield GaugeMetricFamily("agl_gateway_in_flight", "Calls under way.", value=self._gateway["in_flight"])
        errors = CounterMetricFamily("agl_gateway_errors", "Failed calls by reason.", labels=["reason"])
        for reason, count in self._gateway["errors_by_reason"].items():
            errors.add_metric([reason], count)
        yield errors

    def _each(self, kind: Any, name: str, text: str, values: Mapping[str, float | None]) -> Any:
        family = kind(name, text, labels=["model"])
        for model, value in values.items():
            if value is not None:
                family.add_metric([model], value)
        return family
