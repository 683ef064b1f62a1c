"""The tracer: whose span is whose, with many rollouts at once."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Sequence

import pytest
from opentelemetry import trace as otel
from opentelemetry.context import Context

from agentlightning import OtelTracer, Span, Tracer, emit_message, get_message_value
from agentlightning.agent import instrument
from agentlightning.agent.scope import (
    RolloutScope,
    current_scope,
    enter_scope,
    open_scope_count,
    trace_id_of,
    unattributed,
)
from agentlightning.agent.tracer.base import clear_active_tracer, get_active_tracer, set_active_tracer
from agentlightning.agent.tracer.routing import install_router


class Sink:
    """The one method of a store that a tracer uses."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    async def add_many_spans(self, spans: Sequence[Span]) -> Sequence[Span]:
        self.spans.extend(spans)
        return spans


@pytest.fixture(autouse=True)
def _clean():
    instrument.uninstall()
    unattributed.clear()
    yield
    unattributed.clear()


async def test_concurrent_rollouts_get_their_own_spans():
    tracer, sink = OtelTracer(), Sink()
    tracer.init_worker(0, sink)
    foreign = otel.get_tracer("some.library")

    def blocking(name):
        with foreign.start_as_current_span(f"thread {name}"):
            emit_message(name)

    async def one(i):
        async with tracer.trace_context(store=sink, rollout_id=f"r{i}", attempt_id=f"a{i}"):
            with foreign.start_as_current_span(f"outer {i}"):
                await asyncio.sleep(0.001 * (i % 7))
                emit_message(str(i))
                await asyncio.to_thread(blocking, str(i))
            await asyncio.gather(*(later(str(i)) for _ in range(2)))
            assert {get_message_value(s) for s in tracer.get_last_trace()} == {None, str(i)}

    async def later(name):
        await asyncio.sleep(0.002)
        emit_message(name)

    await asyncio.gather(*(one(i) for i in range(50)))
    assert len(sink.spans) == 50 * 6
    for span in sink.spans:
        number = span.rollout_id[1:]
        assert span.attempt_id == f"a{number}"
        assert span.trace_id == trace_id_of(span.rollout_id, span.attempt_id)
        assert get_message_value(span) in (None, number)
        assert span.sequence_id == 0
    assert unattributed.snapshot() == {}
    assert open_scope_count() == 0


async def test_span_that_ends_in_a_thread_run_follows_its_trace():
    tracer, sink = OtelTracer(), Sink()
    tracer.init()

    async def one(i):
        async with tracer.trace_context(store=sink, rollout_id=f"r{i}", attempt_id="a"):
            span = otel.get_tracer("x").start_span(f"span {i}")
            thread = threading.Thread(target=span.end)
            thread.start()
            await asyncio.sleep(0.01)
            thread.join()

    await asyncio.gather(*(one(i) for i in range(5)))
    assert sorted((s.rollout_id, s.name) for s in sink.spans) == [(f"r{i}", f"span {i}") for i in range(5)]


async def test_trace_of_its_own_inside_a_rollout_belongs_to_it():
    tracer, sink = OtelTracer(), Sink()

    async def one(i):
        async with tracer.trace_context(store=sink, rollout_id=f"r{i}", attempt_id="a"):
            span = otel.get_tracer("x").start_span(f"root {i}", context=Context())
            await asyncio.sleep(0)
            thread = threading.Thread(target=span.end)
            thread.start()
            thread.join()

    await asyncio.gather(one(1), one(2))
    assert sorted((s.rollout_id, s.name) for s in sink.spans) == [("r1", "root 1"), ("r2", "root 2")]
    assert install_router()[0]._routes == {}


async def test_contextless_thread_belongs_to_the_only_rollout_and_else_is_counted(caplog):
    tracer, sink = OtelTracer(), Sink()
    stray = otel.get_tracer("stray")

    def work():
        stray.start_span("stray").end()

    async with tracer.trace_context(store=sink, rollout_id="r1", attempt_id="a"):
        await asyncio.to_thread(_run, threading.Thread(target=work))
    assert [s.name for s in sink.spans] == ["stray"]

    sink.spans.clear()
    with caplog.at_level(logging.WARNING):
        async with tracer.trace_context(store=sink, rollout_id="r1", attempt_id="a"):
            with enter_scope(RolloutScope("r2", "a")):
                for _ in range(2):
                    await asyncio.to_thread(_run, threading.Thread(target=work))
    assert sink.spans == []
    assert unattributed.snapshot() == {"span:stray": 2}
    assert caplog.text.count("outside of any rollout") == 1


def _run(thread: threading.Thread) -> None:
    thread.start()
    thread.join()


async def test_leftovers_of_an_ended_rollout_are_counted_not_given_to_another():
    tracer, sink = OtelTracer(), Sink()
    release = asyncio.Event()

    async def leftover():
        await release.wait()
        assert current_scope() is None
        otel.get_tracer("x").start_span("late").end()

    async with tracer.trace_context(store=sink, rollout_id="r1", attempt_id="a"):
        task = asyncio.create_task(leftover())
        await asyncio.sleep(0)
    async with tracer.trace_context(store=sink, rollout_id="r2", attempt_id="a"):
        release.set()
        await task
    assert sink.spans == []
    assert unattributed.snapshot() == {"span:late": 1}
    assert OtelTracer().unattributed() == {"span:late": 1}


async def test_runner_scope_collects_and_nothing_is_sent_twice():
    tracer, sink = OtelTracer(), Sink()
    tracer.init_worker(0, sink)
    scope = RolloutScope("r", "a")
    with enter_scope(scope):
        async with tracer.trace_context(rollout_id="r", attempt_id="a"):
            emit_message("one")
    assert sink.spans == []
    assert [get_message_value(s) for s in scope.drain()] == ["one"]
    assert scope.drain() == []
    assert len(scope.spans()) == 1


async def test_ids_belong_together():
    with pytest.raises(ValueError, match="both or neither"):
        async with OtelTracer().trace_context(rollout_id="r"):
            pass


async def test_local_traces_and_convenience_methods():
    tracer = OtelTracer()
    with tracer.lifespan():
        assert tracer.trace_run(lambda x: emit_message(x), "a") is None
        assert [get_message_value(s) for s in tracer.get_last_trace()] == ["a"]

        async def work(x):
            emit_message(x)
            return 1

        assert await tracer.trace_run_async(work, "b") == 1
        assert [get_message_value(s) for s in tracer.get_last_trace()] == ["b"]
    assert OtelTracer().get_last_trace() == []
    assert tracer.get_langchain_handler() is None


def test_created_spans_have_the_time_given():
    tracer = OtelTracer()
    with tracer.trace_context_sync():
        core = tracer.create_span("x", {"a": [1]}, timestamp=12.5)
        with tracer.operation_context("op", start_time=1.0, end_time=3.0) as recording:
            recording.record_attributes({"k": 1})
        assert recording.get_recorded_span().end_time == 3.0
    assert (core.start_time, core.end_time, core.attributes) == (12.5, 12.5, {"a": [1]})
    first, second = tracer.get_last_trace()
    assert (first.start_time, second.start_time, second.end_time) == (12.5, 1.0, 3.0)
    assert first.parent_id == second.parent_id
    assert first.parent_id is not None


def test_active_tracer_of_the_process():
    tracer, other = OtelTracer(), Tracer()
    set_active_tracer(tracer)
    try:
        assert get_active_tracer() is tracer
        set_active_tracer(tracer)
        with pytest.raises(ValueError, match="another tracer"):
            set_active_tracer(other)
    finally:
        clear_active_tracer()
    assert get_active_tracer() is None


def test_base_class_leaves_the_work_to_others():
    tracer = Tracer()
    for call in (
        tracer.trace_context,
        tracer.trace_context_sync,
        tracer.get_last_trace,
        lambda: tracer.create_span("x"),
        lambda: tracer.operation_context("x"),
    ):
        with pytest.raises(NotImplementedError):
            call()


SAMPLED_OUT = """
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry import trace
trace.set_tracer_provider(TracerProvider(sampler=ALWAYS_OFF))
import agentlightning as agl
tracer = agl.OtelTracer()
with tracer.trace_context_sync("x"):
    core = agl.emit_reward(0.5)
    trace.get_tracer("y").start_span("dropped").end()
    with agl.operation() as op:
        op.set_output(1)
print(agl.find_final_reward(tracer.get_last_trace()), len(tracer.get_last_trace()), core.status.status_code)
print(op.span().name == "", tracer.create_span("outside", timestamp=1.0).start_time, tracer.unattributed())
"""

OWN_PROVIDER = """
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry import trace
exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
import agentlightning as agl
tracer = agl.OtelTracer()
with tracer.trace_context_sync("x"):
    agl.emit_reward(0.5)
    trace.get_tracer("y").start_span("theirs").end()
agl.OtelTracer().init_worker(0)
print(len(tracer.get_last_trace()), len(exporter.get_finished_spans()))
"""


def _python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_rewards_do_not_depend_on_sampling():
    assert _python(SAMPLED_OUT).splitlines() == ["0.5 1 OK", "True 1.0 {'span:outside': 1}"]


def test_switched_off_sdk_keeps_rewards():
    code = SAMPLED_OUT.replace("trace.set_tracer_provider(TracerProvider(sampler=ALWAYS_OFF))", "")
    assert _python(code, OTEL_SDK_DISABLED="true").startswith("0.5 1 OK")


def test_provider_of_the_user_stays_and_both_sides_see_all_spans():
    assert _python(OWN_PROVIDER) == "2 2"
