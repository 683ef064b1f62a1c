"""Reporting to a store that refuses or is away."""

from __future__ import annotations

import asyncio

import pytest

import agentlightning as agl
from agentlightning.agent.scope import RolloutScope, add_core_span
from agentlightning.kit.errors import StorageError
from agentlightning.runner import pulse, reporter, runner
from agentlightning.runner.reporter import Outcome, Reporter
from agentlightning.store.base import AttemptUpdate
from tests.unit.runner.conftest import begun


async def report(store, outcome: Outcome, **options) -> Reporter:
    sender = Reporter(store, **options)
    sender.start()
    try:
        await sender.finish(outcome)
    finally:
        await sender.close()
    return sender


async def test_short_absence_of_the_store_loses_and_doubles_nothing(flaky):
    rollout, scope, update = await begun(flaky)
    add_core_span(scope, "one", {"agentlightning.reward.0.value": 1.0})
    flaky.away = 2
    await report(flaky, Outcome(scope, update))
    assert (await flaky.get_rollout_by_id(rollout.rollout_id)).status == "succeeded"
    assert [s.name for s in await flaky.query_spans(rollout.rollout_id)] == ["one"]


async def test_long_absence_is_an_error(flaky):
    _, scope, update = await begun(flaky)
    flaky.away = 10_000
    with pytest.raises(StorageError, match=r"could not be reached for 0 s.*coordinator"):
        await report(flaky, Outcome(scope, update), patience_s=0.2)


async def test_bad_span_does_not_take_the_others_with_it(store, caplog):
    rollout, scope, update = await begun(store)
    add_core_span(scope, "good", {})
    stray = RolloutScope("no-such-rollout", "a")
    add_core_span(stray, "bad", {})
    sender = Reporter(store)
    sender.track(stray)
    sender.start()
    await sender.finish(Outcome(scope, update))
    await sender.close()
    assert [s.name for s in await store.query_spans(rollout.rollout_id)] == ["good"]
    assert sender.rejected == 1
    assert "refused the span 'bad' (There is no rollout 'no-such-rollout'.)" in caplog.text


async def test_outcome_that_comes_too_late_leaves_its_cause(store, caplog):
    rollout, scope, update = await begun(store)
    _, other_scope, other = await begun(store)
    await store.update_attempt(rollout.rollout_id, update.attempt_id, status="timeout")
    update.status = "failed"
    update.metadata = {"error": {"class": "upstream"}}
    sender = Reporter(store)
    sender.start()
    await asyncio.gather(sender.finish(Outcome(scope, update)), sender.finish(Outcome(other_scope, other)))
    await sender.close()
    found = await store.get_rollout_by_id(rollout.rollout_id)
    assert found.attempt.status == "timeout"
    assert found.attempt.metadata == {"error": {"class": "upstream"}}
    assert (await store.get_rollout_by_id(other.rollout_id)).status == "succeeded"
    assert sender.rejected == 1


async def test_outcome_of_an_unknown_attempt_is_refused_and_said(store, caplog):
    update = AttemptUpdate(rollout_id="none", attempt_id="a", status="succeeded", metadata={})
    sender = await report(store, Outcome(RolloutScope("none", "a"), update))
    assert sender.rejected == 1
    assert "is lost" in caplog.text


async def test_spans_of_running_attempts_are_sent_meanwhile(store, monkeypatch):
    monkeypatch.setattr(reporter, "LIVE_INTERVAL_S", 0.05)
    rollout, scope, update = await begun(store)
    sender = Reporter(store)
    sender.start()
    sender.track(scope)
    add_core_span(scope, "early", {}, ok=False)
    await asyncio.sleep(0.3)
    (span,) = await store.query_spans(rollout.rollout_id)
    assert span.status.status_code == "ERROR"
    assert (await store.get_rollout_by_id(rollout.rollout_id)).status == "running"
    await sender.finish(Outcome(scope, update))
    await sender.close()
    assert len(await store.query_spans(rollout.rollout_id)) == 1


async def test_runner_waits_for_the_store_and_gives_up_in_the_end(flaky, monkeypatch, caplog):
    monkeypatch.setattr(runner, "_UNREACHABLE_S", 0.5)
    monkeypatch.setattr(pulse, "CANCEL_INTERVAL_S", 0.05)
    await flaky.enqueue_rollout("x")
    flaky.away = 3
    one = agl.LitAgentRunner(poll_interval=0.05, max_rollouts=1)
    with one.run_context(agent=lambda task: 1.0, store=flaky):
        await asyncio.wait_for(one.iter(), 100)
    assert one.finished == 1
    flaky.away = 10_000
    with one.run_context(agent=lambda task: 1.0, store=flaky), pytest.raises(StorageError, match="not be reached"):
        await asyncio.wait_for(one.iter(), 100)
    assert "heartbeat" in caplog.text


async def test_store_that_goes_away_while_agents_run_ends_the_runner(flaky, monkeypatch):
    monkeypatch.setattr(runner, "_UNREACHABLE_S", 0.3)
    await flaky.enqueue_rollout("x")

    async def agent(task):
        flaky.away = 10_000
        return 1.0

    one = agl.LitAgentRunner(poll_interval=0.05)
    with one.run_context(agent=agent, store=flaky), pytest.raises(StorageError):
        await asyncio.wait_for(one.iter(), 100)
