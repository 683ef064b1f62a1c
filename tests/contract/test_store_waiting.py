"""Waiting for rollouts and for work, and the limits that end attempts by themselves."""

from __future__ import annotations

import asyncio
import time

import pytest

from agentlightning.kit.errors import NotFoundError
from agentlightning.schemas import AttemptedRollout, RolloutConfig
from agentlightning.store import LightningStore, SqlLightningStore
from tests.contract.conftest import make_span

SOON_S = 100.0
"""Longer than anything here takes; a wait that lasts this long has failed."""


async def test_wait_returns_when_the_last_one_ends(store: LightningStore) -> None:
    started = [await store.start_rollout(i) for i in range(3)]
    ids = [r.rollout_id for r in started]
    waiting = asyncio.create_task(store.wait_for_rollouts(rollout_ids=ids, timeout=SOON_S))
    for rollout, status in zip(started[:2], ("succeeded", "failed"), strict=True):
        await store.update_attempt(rollout.rollout_id, "latest", status=status)  # type: ignore[arg-type]
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await store.update_rollout(ids[2], status="cancelled")
    before = time.monotonic()
    ended = await waiting
    assert time.monotonic() - before < SOON_S / 2
    assert [(r.rollout_id, r.status) for r in ended] == list(
        zip(ids, ("succeeded", "failed", "cancelled"), strict=True)
    )
    assert isinstance(ended[0], AttemptedRollout)
    assert ended[0].attempt.status == "succeeded"


async def test_wait_when_time_is_up_returns_those_that_ended(store: LightningStore) -> None:
    first, second = await store.start_rollout(1), await store.start_rollout(2)
    await store.update_attempt(first.rollout_id, "latest", status="succeeded")
    ids = [first.rollout_id, second.rollout_id]
    for timeout in (0, 0.05):
        ended = await store.wait_for_rollouts(rollout_ids=ids, timeout=timeout)
        assert [r.rollout_id for r in ended] == ids[:1]


async def test_wait_for_nothing_or_the_unknown(store: LightningStore) -> None:
    assert await store.wait_for_rollouts(rollout_ids=[], timeout=SOON_S) == []
    with pytest.raises(NotFoundError, match="ro-none"):
        await store.wait_for_rollouts(rollout_ids=["ro-none"], timeout=0)


async def test_wait_when_asked_twice_for_the_same(store: LightningStore) -> None:
    started = await store.start_rollout(1)
    await store.update_attempt(started.rollout_id, "latest", status="succeeded")
    ended = await store.wait_for_rollouts(rollout_ids=[started.rollout_id] * 2, timeout=SOON_S)
    assert [r.rollout_id for r in ended] == [started.rollout_id] * 2


async def test_wait_does_not_end_at_a_requeue(store: LightningStore) -> None:
    config = RolloutConfig(max_attempts=2, retry_condition=["failed"])
    started = await store.start_rollout(1, config=config)
    waiting = asyncio.create_task(store.wait_for_rollouts(rollout_ids=[started.rollout_id], timeout=SOON_S))
    await store.update_attempt(started.rollout_id, "latest", status="failed")
    await asyncio.sleep(0.05)
    assert not waiting.done()
    assert await store.dequeue_rollout() is not None
    await store.update_attempt(started.rollout_id, "latest", status="succeeded")
    assert [r.status for r in await waiting] == ["succeeded"]


async def test_dequeue_waits_for_work(store: LightningStore) -> None:
    waiting = asyncio.create_task(store.dequeue_many_rollouts(limit=4, timeout=SOON_S))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    queued = await store.enqueue_rollout("x")
    assert [r.rollout_id for r in await waiting] == [queued.rollout_id]


async def test_dequeue_when_time_is_up_returns_nothing(store: LightningStore) -> None:
    before = time.monotonic()
    assert list(await store.dequeue_many_rollouts(timeout=0.1, worker_id="w")) == []
    assert 0.08 < time.monotonic() - before < SOON_S


async def test_dequeue_when_cancelled_claims_nothing(store: LightningStore) -> None:
    waiting = asyncio.create_task(store.dequeue_many_rollouts(timeout=SOON_S))
    await asyncio.sleep(0.05)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.sleep(0.05)  # over HTTP the server has to notice
    queued = await store.enqueue_rollout("x")
    await asyncio.sleep(0.05)
    found = await store.get_rollout_by_id(queued.rollout_id)
    assert found is not None
    assert found.status == "queuing"
    assert not isinstance(found, AttemptedRollout)


async def test_claim_that_nobody_received_goes_back_to_the_head(sql_store: SqlLightningStore) -> None:
    config = RolloutConfig(max_attempts=3, retry_condition=["failed"])
    first = await sql_store.enqueue_rollout("first", config=config)
    await sql_store.enqueue_rollout("second")
    claim = asyncio.create_task(sql_store.dequeue_many_rollouts(limit=2))
    await asyncio.sleep(0)
    time.sleep(0.2)  # noqa: ASYNC251 - the writer claims and commits; this loop must not hear of it yet
    claim.cancel()
    with pytest.raises(asyncio.CancelledError):
        await claim
    again = await sql_store.dequeue_many_rollouts(limit=5, timeout=SOON_S)
    if len(again) == 1:
        again = [*again, *await sql_store.dequeue_many_rollouts(limit=5, timeout=SOON_S)]
    assert [(r.input, r.attempt.sequence_id) for r in again] == [("first", 1), ("second", 1)]
    assert (await sql_store.statistics())["total_attempts"] == 2
    await sql_store.update_attempt(first.rollout_id, "latest", status="failed")
    claim = asyncio.create_task(sql_store.dequeue_many_rollouts())
    await asyncio.sleep(0)
    time.sleep(0.2)  # noqa: ASYNC251 - as above
    claim.cancel()
    await asyncio.gather(claim, return_exceptions=True)
    await asyncio.sleep(0.1)
    found = await sql_store.get_rollout_by_id(first.rollout_id)
    assert found is not None
    assert found.status == "requeuing"


async def test_attempt_that_takes_too_long_times_out(store: LightningStore) -> None:
    config = RolloutConfig(timeout_seconds=0.1, max_attempts=2, retry_condition=["timeout"])
    started = await store.start_rollout("x", config=config, worker_id="w")
    await store.add_span(make_span(started.rollout_id, started.attempt.attempt_id))
    again = await store.dequeue_many_rollouts(timeout=SOON_S)
    assert [r.rollout_id for r in again] == [started.rollout_id]
    first = (await store.query_attempts(started.rollout_id))[0]
    assert first.status == "timeout"
    assert first.end_time is not None
    worker = await store.get_worker_by_id("w")
    assert worker is not None
    assert (worker.status, worker.current_attempt_id) == ("unknown", None)
    ended = await store.wait_for_rollouts(rollout_ids=[started.rollout_id], timeout=SOON_S)
    assert [r.status for r in ended] == ["failed"]


async def test_silent_attempt_becomes_unresponsive(store: LightningStore) -> None:
    config = RolloutConfig(unresponsive_seconds=0.3)
    silent = await store.start_rollout("x", config=config)
    lively = await store.start_rollout("y", config=config)
    for _ in range(8):
        await asyncio.sleep(0.07)
        await store.add_span(make_span(lively.rollout_id, lively.attempt.attempt_id))
    attempts = [await store.get_latest_attempt(r.rollout_id) for r in (silent, lively)]
    assert [a.status for a in attempts if a] == ["unresponsive", "running"]
    rollout = await store.get_rollout_by_id(silent.rollout_id)
    assert rollout is not None
    assert rollout.status == "failed"


async def test_heartbeats_keep_an_attempt_alive(sql_store: SqlLightningStore) -> None:
    started = await sql_store.start_rollout("x", config=RolloutConfig(unresponsive_seconds=50))
    await sql_store.update_attempt(started.rollout_id, "latest", last_heartbeat_time=time.time() - 60)
    await sql_store.check_timeouts()  # or the watchdog was there before
    silent = await sql_store.get_latest_attempt(started.rollout_id)
    assert silent is not None
    assert silent.status == "unresponsive"
    await sql_store.update_attempt(started.rollout_id, "latest", status="running")
    await sql_store.update_attempt(started.rollout_id, "latest", last_heartbeat_time=time.time())
    assert await sql_store.check_timeouts() == 0


async def test_limits_may_change_on_the_way(store: LightningStore) -> None:
    started = await store.start_rollout("x")
    await store.update_rollout(started.rollout_id, config=RolloutConfig(timeout_seconds=0.05))
    ended = await store.wait_for_rollouts(rollout_ids=[started.rollout_id], timeout=SOON_S)
    assert [r.status for r in ended] == ["failed"]


async def test_finished_attempts_do_not_time_out(sql_store: SqlLightningStore) -> None:
    started = await sql_store.start_rollout("x", config=RolloutConfig(timeout_seconds=0.01))
    await sql_store.update_attempt(started.rollout_id, "latest", status="succeeded")
    await asyncio.sleep(0.05)
    assert await sql_store.check_timeouts() == 0
