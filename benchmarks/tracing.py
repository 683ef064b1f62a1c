"""What tracing costs: an emitted reward and a finished span of ours beside a bare span of the OpenTelemetry SDK.

    python benchmarks/tracing.py [--spans 5000] [--rounds 5]

The bare span is the physical limit: every tracer of this kind makes one. The last line is one JSON object with ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import agentlightning as agl
from agentlightning.agent import calls_from_spans, merge_calls
from agentlightning.schemas import Span, semconv


def cpu_us(work: Callable[[], object], times: int) -> float:
    """CPU microseconds of one call."""
    started = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - started) / times * 1e6


def three_turns() -> list[Span]:
    """A rollout of three turns, each continuing the one before."""
    spans: list[Span] = []
    for turn in range(3):
        spans.append(
            Span.from_attributes(
                rollout_id="r",
                attempt_id="a",
                sequence_id=turn + 1,
                name=semconv.MODEL_CALL,
                attributes={
                    semconv.PROMPT_TOKEN_IDS: list(range(200 + 60 * turn)),
                    semconv.RESPONSE_TOKEN_IDS: list(range(200 + 60 * turn, 230 + 60 * turn)),
                    semconv.RESPONSE_LOGPROBS: [-0.5] * 30,
                },
            )
        )
    return spans


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spans", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(InMemorySpanExporter()))
    bare = provider.get_tracer("bare")
    attributes = {"agentlightning.reward.0.name": "primary", "agentlightning.reward.0.value": 1.0}
    rollout = three_turns()
    found: dict[str, list[float]] = {"bare span": [], "our span": [], "emit_reward": [], "adapt a rollout": []}
    tracer = agl.OtelTracer()
    for _ in range(options.rounds):
        found["bare span"].append(cpu_us(lambda: bare.start_span("x", attributes=attributes).end(), options.spans))
        with tracer.trace_context_sync("x"):
            found["our span"].append(cpu_us(lambda: tracer.create_span("x", dict(attributes)), options.spans))
            found["emit_reward"].append(cpu_us(lambda: agl.emit_reward(1.0), options.spans))
        found["adapt a rollout"].append(cpu_us(lambda: merge_calls(calls_from_spans(rollout)), options.spans // 10))
    medians = {name: statistics.median(values) for name, values in found.items()}
    for name, value in medians.items():
        print(f"{name:<16} {value:8.1f} us of CPU")
    ratios = {name: round(medians[name] / medians["bare span"], 2) for name in ("our span", "emit_reward")}
    print(json.dumps({"benchmark": "tracing", "cpu_us": medians, "times_a_bare_span": ratios}))


if __name__ == "__main__":
    main()
