"""The runner against a real store."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.agent import BadResultError
from agentlightning.kit.errors import ConfigError, StorageError
from agentlightning.runner.failure import AgentExitError, AttemptTimeoutError
from agentlightning.schemas import RolloutConfig
from agentlightning.store import InMemoryLightningStore


def error_of(rollout) -> dict[str, Any]:
    return rollout.attempt.metadata["error"]


class Spans(agl.LitAgent[str]):
    def rollout(self, task, resources, rollout):
        core = agl.emit_reward(0.25, propagate=False)
        if task == "core":
            return [core]
        if task == "ours":
            return [agl.Span.from_core_fields(core)]
        from opentelemetry import trace

        span = trace.get_tracer("x").start_span("returned", attributes=core.attributes)
        span.end()
        return [span]


RETURNS = [
    (lambda task: 0.5, 0.5),
    (lambda task: True, 1.0),
    (lambda task: 0, 0.0),
    (lambda task: None, None),
    (lambda task: {"reward": 0.5, "cost": 3}, 0.5),
    (lambda task: agl.emit_reward(0.75) and None, 0.75),
    (lambda task: agl.emit_reward({"a": 0.1, "b": 0.2}, primary_key="b") and None, 0.2),
    (lambda task: (agl.emit_reward(0.1), 0.9)[1], 0.9),
    (Spans(), 0.25),
]


@pytest.mark.parametrize(("agent", "reward"), RETURNS)
async def test_what_is_returned_or_emitted_is_the_reward(work, agent, reward):
    (rollout,) = await work(agent, ["core"])
    assert rollout.status == "succeeded"
    assert rollout.attempt.status == "succeeded"
    spans = await work.spans(rollout)
    assert agl.find_final_reward(spans) == reward
    assert len(spans) == len({span.span_id for span in spans})
    assert [span.sequence_id for span in spans] == list(range(1, len(spans) + 1))


@pytest.mark.parametrize("task", ["core", "ours", "otel"])
async def test_returned_spans_are_stored_once(work, task):
    (rollout,) = await work(Spans(), [task])
    (span,) = await work.spans(rollout)
    assert (span.rollout_id, span.attempt_id) == (rollout.rollout_id, rollout.attempt.attempt_id)
    assert agl.get_reward_value(span) == 0.25


async def test_async_agent_and_resources(work, store):
    await store.add_resources(
        {"llm": agl.LLM(endpoint="http://x/v1", model="m"), "p": agl.PromptTemplate(template="t")}
    )
    seen = []

    @agl.rollout
    async def agent(task, llm, p, rollout):
        seen.append((task, llm.model, p.template, rollout.mode))
        await asyncio.sleep(0)
        return 1.0

    await work(agent, ["a", "b"])
    assert sorted(seen) == [("a", "m", "t", "train"), ("b", "m", "t", "train")]


class Counting(InMemoryLightningStore):
    """A real store that counts how often resources are fetched."""

    fetched = 0

    async def get_resources_by_id(self, resources_id):
        self.fetched += 1
        await asyncio.sleep(0.01)
        return await super().get_resources_by_id(resources_id)


async def test_resources_are_fetched_once_for_all():
    from tests.unit.runner.conftest import Work

    store = Counting()
    await store.add_resources({"p": agl.PromptTemplate(template="t")})
    await Work(store)(lambda task, p: 1.0, list(range(20)))
    assert store.fetched == 1
    await store.close()


async def raises(task):
    raise ValueError("agent broke")


async def exits(task):
    sys.exit(3)


FAILURES = [
    (lambda task: 1 / 0, "agent_error", "ZeroDivisionError", "failed"),
    (raises, "agent_error", "ValueError", "failed"),
    (exits, "agent_error", "AgentExitError", "failed"),
    (lambda task: sys.exit(), "agent_error", "AgentExitError", "failed"),
    (lambda task: "text", "bad_result", "BadResultError", "failed"),
    (lambda task: float("nan"), "bad_result", "BadResultError", "failed"),
    (lambda task, llm: 1.0, "agent_error", "MissingResourceError", "failed"),
    (lambda task: time.sleep(30), "timeout", "AttemptTimeoutError", "timeout"),
    (lambda task: asyncio.sleep(30), "timeout", "AttemptTimeoutError", "timeout"),
]


@pytest.mark.parametrize(("agent", "error_class", "kind", "status"), FAILURES)
async def test_failures_are_recorded_with_their_cause(work, agent, error_class, kind, status):
    (rollout,) = await work(agent, ["x"], config=RolloutConfig(timeout_seconds=0.5))
    assert rollout.status == "failed"
    assert rollout.attempt.status == status
    error = error_of(rollout)
    assert (error["class"], error["type"]) == (error_class, kind)
    assert error["message"]
    (span,) = await work.spans(rollout)
    assert span.name == "agentlightning.exception"
    assert span.attributes["agentlightning.error.class"] == error_class


async def test_hung_thread_is_given_up_and_its_place_is_free(work):
    release = threading.Event()

    def agent(task):
        if task == "hang":
            release.wait(30)
        return 1.0

    rollouts = await work(agent, ["hang", "ok", "ok"], config=RolloutConfig(timeout_seconds=2), max_concurrency=1)
    release.set()
    assert [r.status for r in rollouts] == ["failed", "succeeded", "succeeded"]
    assert work.runner.stats()["finished"] == 3


async def test_async_agent_that_ignores_its_cancellation_is_given_up(work, caplog):
    release = asyncio.Event()

    async def stubborn(task):
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        raise ValueError("nobody hears this")

    with caplog.at_level(logging.WARNING):
        (rollout,) = await work(stubborn, ["x"], config=RolloutConfig(timeout_seconds=0.2), grace_s=0.05)
    assert error_of(rollout)["class"] == "timeout"
    assert "ignores its cancellation" in caplog.text
    release.set()
    await asyncio.sleep(0.01)


async def test_agent_that_cancels_itself_is_an_agent_error(work):
    async def agent(task):
        raise asyncio.CancelledError

    (rollout,) = await work(agent, ["x"])
    assert error_of(rollout)["class"] == "agent_error"
    assert "cancelled from within" in error_of(rollout)["message"]


async def test_retries_until_it_works_or_attempts_run_out(work):
    tries = []

    def flaky(task):
        tries.append(task)
        if tries.count(task) <= task:
            raise ConnectionError("no answer")
        return 1.0

    rollouts = await work(flaky, [0, 1, 2, 3])
    assert [r.status for r in rollouts] == ["succeeded"] * 3 + ["failed"]
    assert [r.attempt.sequence_id for r in rollouts] == [1, 2, 3, 3]
    assert error_of(rollouts[3])["class"] == "upstream"


async def test_score_policy_rewards_the_failure_and_says_so(work):
    policy = agl.FailurePolicy(agent_error="score:-1", bad_result="score:0.5")
    rollouts = await work(lambda task: 1 / 0 if task == "raise" else "text", ["raise", "text"], policy=policy)
    assert [r.status for r in rollouts] == ["succeeded", "succeeded"]
    assert [r.attempt.metadata["action"] for r in rollouts] == ["score", "score"]
    spans = [await work.spans(r) for r in rollouts]
    assert [agl.find_final_reward(s) for s in spans] == [-1.0, 0.5]
    tagged = agl.find_reward_spans(spans[0])[0].attributes
    assert tagged["agentlightning.tag.0"] == "agentlightning.policy_score"
    assert tagged["agentlightning.tag.1"] == "error_class:agent_error"


async def test_no_reward_is_kept_or_what_the_policy_says(work):
    (kept,) = await work(lambda task: None, ["x"])
    assert (kept.status, kept.attempt.metadata) == ("succeeded", None)
    (dropped,) = await work(lambda task: None, ["x"], policy=agl.FailurePolicy(no_reward="drop"))
    assert (dropped.status, error_of(dropped)["class"]) == ("failed", "no_reward")
    (scored,) = await work(lambda task: None, ["x"], policy=agl.FailurePolicy(no_reward="score:0"))
    assert agl.find_final_reward(await work.spans(scored)) == 0.0
    (rewarded,) = await work(lambda task: 1.0, ["x"], policy=agl.FailurePolicy(no_reward="drop"))
    assert rewarded.status == "succeeded"


async def test_reward_from_elsewhere_counts_as_one(work, store):
    async def agent(task, rollout):
        core = agl.emit_reward(0.5, propagate=False)
        ids = {"rollout_id": rollout.rollout_id, "attempt_id": rollout.attempt.attempt_id}
        await store.add_span(agl.Span.from_core_fields(core, **ids))

    (rollout,) = await work(agent, ["x"], policy=agl.FailurePolicy(no_reward="drop"))
    assert rollout.status == "succeeded"


async def judge(task, output):
    return {"reward": float(output == task), "length": len(output)}


@pytest.mark.parametrize("evaluator", [judge, lambda task, output: output == task, f"{__name__}:judge"])
async def test_evaluator_scores_any_output(work, evaluator):
    rollouts = await work(lambda task: "a", ["a", "b"], evaluator=evaluator)
    assert [agl.find_final_reward(await work.spans(r)) for r in rollouts] == [1.0, 0.0]


async def test_evaluator_may_have_no_opinion_or_fail(work):
    (rollout,) = await work(lambda task: "a", ["a"], evaluator=lambda output: None)
    assert (rollout.status, await work.spans(rollout)) == ("succeeded", [])
    (rollout,) = await work(lambda task: "a", ["a"], evaluator=lambda output: 1 / 0)
    assert error_of(rollout)["type"] == "ZeroDivisionError"
    (rollout,) = await work(lambda task: "a", ["a"], evaluator=lambda output: "good")
    assert error_of(rollout)["class"] == "bad_result"


class Recorder(agl.Hook):
    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    async def on_rollout_start(self, *, agent, runner, rollout):
        self.calls.append(("rollout_start", rollout.input))

    async def on_trace_start(self, *, agent, runner, tracer, rollout):
        agl.emit_message("from the hook")
        self.calls.append(("trace_start", isinstance(tracer, agl.OtelTracer)))

    async def on_trace_end(self, *, agent, runner, tracer, rollout):
        raise RuntimeError("a hook broke")

    async def on_rollout_end(self, *, agent, runner, rollout, spans):
        self.calls.append(("rollout_end", (agl.find_final_reward(spans), len(spans), agent is give_one)))


def give_one(task):
    return 1.0


async def test_hooks_are_called_in_order_and_may_fail(work, caplog):
    hook = Recorder()
    (rollout,) = await work(give_one, ["x"], hooks=[hook, agl.Hook()])
    assert rollout.status == "succeeded"
    assert hook.calls == [("rollout_start", "x"), ("trace_start", True), ("rollout_end", (1.0, 2, True))]
    assert "on_trace_end" in caplog.text
    assert "a hook broke" in caplog.text


async def test_cancelled_rollout_is_stopped_and_stays_cancelled(work, store, monkeypatch):
    monkeypatch.setattr("agentlightning.runner.pulse.CANCEL_INTERVAL_S", 0.05)
    ended = asyncio.Event()

    async def agent(task, rollout):
        await store.update_rollout(rollout.rollout_id, status="cancelled")
        try:
            await asyncio.sleep(30)
        finally:
            ended.set()

    rollout = await store.enqueue_rollout("x")
    runner = agl.LitAgentRunner(poll_interval=0.05)
    with runner.run_context(agent=agent, store=store):
        running = asyncio.create_task(runner.iter())
        await asyncio.wait_for(ended.wait(), 100)
        await asyncio.sleep(0.1)
        runner.stop()
        await running
    found = await store.get_rollout_by_id(rollout.rollout_id)
    assert found.status == "cancelled"
    assert found.config == RolloutConfig()
    assert error_of(found)["class"] == "cancelled"


async def test_stop_lets_short_work_finish_and_hands_back_long_work(work, store):
    ids = [(await store.enqueue_rollout(seconds)).rollout_id for seconds in (0.2, 30)]
    begun = asyncio.Event()

    async def agent(task):
        begun.set()
        await asyncio.sleep(task)
        return 1.0

    runner = agl.LitAgentRunner(poll_interval=0.05, drain_timeout_s=0.6)
    event = threading.Event()
    with runner.run_context(agent=agent, store=store):
        running = asyncio.create_task(runner.iter(event=event))
        await begun.wait()
        started = time.monotonic()
        event.set()
        await running
    assert time.monotonic() - started < 25
    short, long = [await store.get_rollout_by_id(i) for i in ids]
    assert short.status == "succeeded"
    assert long.status == "requeuing"
    assert error_of(long)["class"] == "cancelled"
    await work.until([ids[1]], lambda task: 0.5)
    assert (await store.get_rollout_by_id(ids[1])).status == "succeeded"


async def test_what_was_claimed_too_late_is_queued_again(store):
    runner = agl.LitAgentRunner(poll_interval=1.0)
    ran = []
    with runner.run_context(agent=ran.append, store=store):
        running = asyncio.create_task(runner.iter())
        await asyncio.sleep(0.1)
        runner.stop()
        rollout = await store.enqueue_rollout("x")
        await running
    found = await store.get_rollout_by_id(rollout.rollout_id)
    assert found.status in ("requeuing", "queuing")
    assert ran == []


async def test_max_rollouts_ends_the_runner(store):
    ids = [(await store.enqueue_rollout(i)).rollout_id for i in range(5)]
    runner = agl.LitAgentRunner(max_rollouts=3, poll_interval=0.05)
    with runner.run_context(agent=give_one, store=store, worker_id=7):
        await asyncio.wait_for(runner.iter(), 100)
        assert runner.finished == 3
    statuses = [(await store.get_rollout_by_id(i)).status for i in ids]
    assert statuses == ["succeeded"] * 3 + ["queuing"] * 2


async def test_heartbeats_tell_of_worker_and_attempts(work, store):
    async def agent(task):
        await asyncio.sleep(0.5)
        return 1.0

    (rollout,) = await work(agent, ["x"], heartbeat_interval=0.1)
    (worker,) = await store.query_workers()
    assert worker.worker_id == "Worker-0"
    assert worker.heartbeat_stats["unattributed"] == {}
    assert rollout.attempt.last_heartbeat_time > rollout.attempt.start_time + 0.2


async def test_step_runs_one_task_and_raises_what_the_agent_raises(store):
    runner = agl.LitAgentRunner()
    with runner.run_context(agent=lambda task, p: len(task) / 0 if task == "" else p.template, store=store):
        with pytest.raises(BadResultError):
            await runner.step("x", resources={"p": agl.PromptTemplate(template="t")}, mode="val")
        with pytest.raises(ZeroDivisionError):
            await runner.step("")
    with runner.run_context(agent=give_one, store=store):
        rollout = await runner.step("x")
    assert rollout.status == "succeeded"
    assert agl.find_final_reward(list(await store.query_spans(rollout.rollout_id))) == 1.0


async def test_runner_has_its_parts_only_between_init_and_teardown(store):
    runner = agl.LitAgentRunner()
    assert isinstance(runner.tracer, agl.OtelTracer)
    assert runner.get_worker_id() == "Worker-Unknown"
    for getter in (runner.get_agent, runner.get_store):
        with pytest.raises(ValueError, match="call init"):
            getter()
    with pytest.raises(RuntimeError, match="await iter"):
        runner.run()
    with runner.run_context(agent=give_one, store=store, worker_id=3) as same:
        assert same is runner
        assert runner.get_agent() is give_one
        assert runner.get_worker_id() == "Worker-3"
        assert runner.attempt_of(None) is None
    runner.stop()
    with pytest.raises(ValueError, match="call init"):
        runner.get_store()


def test_bad_options_are_refused():
    with pytest.raises(ConfigError, match="max_concurrency"):
        agl.LitAgentRunner(max_concurrency=0)
    with pytest.raises(ConfigError, match="no option max_concurency"):
        agl.LitAgentRunner(max_concurency=3)
    agl.LitAgentRunner(interval_jitter=0.5, heartbeat_launch_mode="thread")


async def test_base_runner_leaves_the_work_to_others(store):
    runner = agl.Runner()
    for call in (
        lambda: runner.init(1),
        lambda: runner.init_worker(0, store),
        runner.teardown,
        lambda: runner.teardown_worker(0),
    ):
        with pytest.raises(NotImplementedError):
            call()
    for coroutine in (runner.iter(), runner.step(1)):
        with pytest.raises(NotImplementedError):
            await coroutine


class OldTracer(agl.Tracer):
    """A tracer in the manner of 0.3: it writes to the store itself."""

    def __init__(self) -> None:
        super().__init__()
        self.last: list[agl.Span] = []

    def trace_context(self, name=None, *, store=None, rollout_id=None, attempt_id=None):
        from contextlib import asynccontextmanager

        @asynccontextmanager
        async def block():
            self.last = []
            yield None
            for span in self.last:
                span.rollout_id, span.attempt_id = rollout_id, attempt_id
            await self._store.add_many_spans(self.last)

        return block()

    def get_last_trace(self):
        return self.last

    def create_span(self, name, attributes=None, timestamp=None, status=None):
        self.last.append(agl.Span.from_attributes(name=name, attributes=attributes))
        return agl.SpanCoreFields(
            name=name, attributes=attributes, status=status, start_time=timestamp, end_time=timestamp
        )


async def test_tracers_of_others_work(work):
    (rollout,) = await work(
        give_one, ["x"], tracer=OldTracer(), policy=agl.FailurePolicy(no_reward="drop"), hooks=[agl.Hook()]
    )
    assert rollout.status == "succeeded"
    assert agl.find_final_reward(await work.spans(rollout)) == 1.0


async def test_missing_resources_are_a_failure_of_the_attempt(work, store):
    class Forgetful(InMemoryLightningStore):
        async def get_resources_by_id(self, resources_id):
            return None

    forgetful = Forgetful()
    await forgetful.add_resources({"p": agl.PromptTemplate(template="t")})
    from tests.unit.runner.conftest import Work

    (rollout,) = await Work(forgetful)(give_one, ["x"], policy=agl.FailurePolicy(upstream="drop"))
    assert error_of(rollout)["type"] == StorageError.__name__
    await forgetful.close()


def test_errors_of_the_room_have_codes():
    assert AgentExitError("x").code == "AGENT_EXITED"
    assert AttemptTimeoutError("x").status == 504
