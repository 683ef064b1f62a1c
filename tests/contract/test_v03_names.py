"""What programs written for 0.3 import is there, at the paths they import it from, and takes their arguments."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.kit.errors import ConfigError
from agentlightning.schemas import RolloutConfig
from agentlightning.store import InMemoryLightningStore

_NAMES: dict[str, list[str]] = json.loads((Path(__file__).parent / "data" / "v03_names.json").read_text())["names"]


@pytest.mark.parametrize("module", sorted(_NAMES))
def test_names_are_where_03_has_them(module: str) -> None:
    found = importlib.import_module(module)
    missing = [name for name in _NAMES[module] if not hasattr(found, name)]
    assert missing == []


def test_both_ways_lead_to_the_same_objects() -> None:
    from agentlightning.adapter.messages import TraceToMessages
    from agentlightning.emitter import emit_reward
    from agentlightning.litagent import LitAgent
    from agentlightning.reward import find_final_reward
    from agentlightning.tracer.agentops import AgentOpsTracer
    from agentlightning.types import Rollout

    assert Rollout is agl.Rollout
    assert LitAgent is agl.LitAgent
    assert emit_reward is agl.emit_reward
    assert find_final_reward is agl.find_final_reward
    assert TraceToMessages is agl.TraceToMessages
    assert AgentOpsTracer is agl.AgentOpsTracer


def test_paths_of_03_load_nothing_heavy() -> None:
    code = "import agentlightning.types, agentlightning.emitter, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("call", "parameters"),
    [
        (agl.setup_logging, "level console color propagate disable_existing_loggers capture_warnings submodule_levels "
         "extra_handlers formatter apply_to files"),
        (agl.setup_module_logging, "level name console color propagate disable_existing_loggers"),
        (agl.AgentOpsTracer, "agentops_managed instrument_managed daemon"),
        (agl.LightningStoreThreaded, "store"),
        (agl.SharedMemoryExecutionStrategy, "n_runners main_thread join_timeout graceful_delay poll_interval "
         "managed_store"),
        (agl.ClientServerExecutionStrategy, "role server_host server_port n_runners graceful_timeout terminate_timeout "
         "main_process managed_store allowed_exit_codes"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)  # fmt: skip
def test_parameters_are_those_of_03(call: Any, parameters: str) -> None:
    assert list(inspect.signature(call).parameters) == parameters.split()


@pytest.mark.parametrize(
    ("call", "parameters"),
    [
        (agl.InMemoryLightningStore, "thread_safe eviction_memory_threshold safe_memory_threshold span_size_estimator "
         "tracker scan_debounce_seconds"),
        (agl.LightningStoreServer, "store host port cors_allow_origins launch_mode launcher_args n_workers tracker"),
        (agl.LightningStoreClient, "server_address retry_delays health_retry_delays request_timeout "
         "connection_timeout"),
    ],
)  # fmt: skip
def test_parameters_begin_with_those_of_03(call: Any, parameters: str) -> None:
    wanted = parameters.split()
    ours = list(inspect.signature(call).parameters.values())
    assert [parameter.name for parameter in ours[: len(wanted)]] == wanted
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in ours[len(wanted) :])


async def test_what_03_gives_a_store_in_memory(caplog: pytest.LogCaptureFixture) -> None:
    store = InMemoryLightningStore(
        eviction_memory_threshold=0.5, span_size_estimator=lambda span: 1, scan_debounce_seconds=0
    )
    assert "eviction_memory_threshold" in caplog.text
    config = RolloutConfig(timeout_seconds=0.01)
    late, done = await store.start_rollout("late", config=config), await store.start_rollout("done")
    await store.update_attempt(done.rollout_id, "latest", status="succeeded")
    ended = await store.wait_for_rollout(done.rollout_id)
    assert ended is not None
    assert ended.status == "succeeded"
    ended = await store.wait_for_rollout(late.rollout_id, timeout=100)
    assert ended is not None
    assert ended.status == "failed"
    assert await store.wait_for_rollout("unknown") is None
    queued = await store.enqueue_rollout("queued")
    assert await store.wait_for_rollout(queued.rollout_id, timeout=0) is None
    await store.close()


async def test_what_03_gives_a_server_is_taken_or_refused() -> None:
    store = InMemoryLightningStore()
    agl.LightningStoreServer(store, None, 0, None, "asyncio", None, 1, None)
    for refused in ({"n_workers": 2}, {"launcher_args": object()}):
        with pytest.raises(ConfigError, match=r"agl store serve|launch_mode"):
            agl.LightningStoreServer(store, port=0, **refused)  # type: ignore[arg-type]
    await store.close()


async def test_threaded_store_is_the_store() -> None:
    store = InMemoryLightningStore()
    wrapped = agl.LightningStoreThreaded(store)
    assert wrapped.capabilities["thread_safe"]
    rollout = await wrapped.enqueue_rollout("x")
    assert (await store.get_rollout_by_id(rollout.rollout_id)) == rollout
    assert (await wrapped.statistics())["total_rollouts"] == 1
    with pytest.raises(NotImplementedError):
        wrapped.otlp_traces_endpoint()
    await wrapped.close()


async def test_spans_of_a_store_behind_http_name_their_rollout_in_the_resource() -> None:
    store = InMemoryLightningStore()
    server = agl.LightningStoreServer(store, port=0, launch_mode="asyncio")
    await server.start()
    client = agl.LightningStoreClient(server.endpoint)
    tracer = agl.AgentOpsTracer()
    for sink, names in ((client, True), (store, False)):
        rollout = await sink.start_rollout("x")
        ids = {"rollout_id": rollout.rollout_id, "attempt_id": rollout.attempt.attempt_id}
        with tracer.lifespan(sink):
            async with tracer.trace_context("t", **ids) as otel:
                with otel.start_as_current_span("inner"):
                    agl.emit_reward(1.0)
        spans = await store.query_spans(rollout.rollout_id)
        assert len(spans) == 2
        for span in spans:
            found = span.resource.attributes.get("agentlightning.rollout_id")
            assert found == (rollout.rollout_id if names else None)
    await client.close()
    await server.stop()
    await store.close()


def test_attributes_of_03() -> None:
    from agentlightning.utils.otel import filter_and_unflatten_attributes, filter_attributes, get_tracer

    flat = {"a.0.x": 1, "a.1.x": 2, "b": 3, "ab": 4}
    assert filter_attributes(flat, "a") == {"a.0.x": 1, "a.1.x": 2}
    assert filter_and_unflatten_attributes(flat, "a") == [{"x": 1}, {"x": 2}]
    with pytest.raises(ValueError, match="'b' itself"):
        filter_and_unflatten_attributes(flat, "b")
    agl.OtelTracer().init_worker(0)
    assert get_tracer() is not None


def test_strategies_say_where_runners_are(tmp_path: Path) -> None:
    settings = agl.Settings(home=tmp_path)
    here = agl.Trainer(strategy=agl.SharedMemoryExecutionStrategy(main_thread="algorithm"), settings=settings)
    assert here._session_options["strategy"] == "shm"
    there = agl.Trainer(
        strategy=agl.ClientServerExecutionStrategy(n_runners=3, server_host="127.0.0.2", server_port=4750),
        settings=settings,
        tracer=agl.AgentOpsTracer(),
    )
    options = there._session_options
    assert (options["strategy"], options["n_runners"], options["host"], options["port"]) == ("cs", 3, "127.0.0.2", 4750)
    with pytest.raises(ConfigError, match="one runner"):
        agl.SharedMemoryExecutionStrategy(n_runners=2)
    with pytest.raises(ConfigError, match="agl runner"):
        agl.ClientServerExecutionStrategy(role="runner")


def test_names_that_were_old_in_03_are_understood(tmp_path: Path) -> None:
    settings = agl.Settings(home=tmp_path)
    trainer = agl.Trainer(n_workers=2, max_tasks=5, daemon=True, settings=settings)
    assert (trainer._session_options["n_runners"], trainer._session_options["max_rollouts"]) == (2, 5)
    assert agl.Trainer(n_workers=2, n_runners=3, settings=settings)._session_options["n_runners"] == 3
    with pytest.raises(ConfigError, match="no argument n_worker"):
        agl.Trainer(n_worker=2)
    with pytest.raises(ConfigError, match=r"trainer\.dev"):
        agl.Trainer(dev=True)
    with pytest.raises(ConfigError, match="where rollouts run"):
        agl.Trainer(runner=agl.LitAgentRunner())  # type: ignore[arg-type]
