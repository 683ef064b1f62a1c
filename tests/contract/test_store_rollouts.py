"""Rollouts and attempts: the queue, retries, and which status may follow which."""

from __future__ import annotations

import asyncio

import pytest
from pydantic import BaseModel

from agentlightning.kit.errors import BadInputError, ConflictError, NotFoundError
from agentlightning.schemas import LLM, AttemptedRollout, EnqueueRolloutRequest, Rollout, RolloutConfig
from agentlightning.store import AttemptUpdate, LightningStore
from tests.contract.conftest import make_span


async def test_enqueue_then_get_returns_what_was_given(store: LightningStore) -> None:
    config = RolloutConfig(timeout_seconds=5, max_attempts=3, retry_condition=["failed"])
    task = {"question": "ä", "n": [1, 2.5, None, True], "nan": float("inf"), "bytes": b"\x00"}
    queued = await store.enqueue_rollout(task, "val", config=config, metadata={"group": "g1"})
    assert (queued.status, queued.mode, queued.config, queued.metadata) == (
        "queuing",
        "val",
        config,
        {"group": "g1"},
    )
    found = await store.get_rollout_by_id(queued.rollout_id)
    assert type(found) is Rollout
    assert found.input == task
    assert found.model_dump() == queued.model_dump()
    assert found.end_time is None


async def test_enqueue_without_options_uses_defaults(store: LightningStore) -> None:
    queued = await store.enqueue_rollout(None)
    assert (queued.input, queued.mode, queued.resources_id, queued.metadata) == (None, None, None, {})
    assert queued.config == RolloutConfig()


async def test_enqueue_when_config_is_mutated_later_then_store_keeps_its_copy(store: LightningStore) -> None:
    config, metadata = RolloutConfig(max_attempts=2), {"k": "v"}
    queued = await store.enqueue_rollout(1, config=config, metadata=metadata)
    config.max_attempts, metadata["k"] = 9, "changed"
    found = await store.get_rollout_by_id(queued.rollout_id)
    assert found is not None
    assert (found.config.max_attempts, found.metadata) == (2, {"k": "v"})


async def test_enqueue_when_input_is_a_model_then_its_fields_are_stored(store: LightningStore) -> None:
    class Task(BaseModel):
        question: str

    queued = await store.enqueue_rollout(Task(question="why"))
    found = await store.get_rollout_by_id(queued.rollout_id)
    assert found is not None
    assert found.input == {"question": "why"}


async def test_enqueue_when_input_is_not_plain_data_then_bad_input(store: LightningStore) -> None:
    with pytest.raises(BadInputError, match="object"):
        await store.enqueue_rollout({"f": object()})
    with pytest.raises(BadInputError):
        await store.enqueue_rollout(1, mode="fast")  # type: ignore[arg-type]
    with pytest.raises(BadInputError):
        await store.start_rollout(1, mode="fast")  # type: ignore[arg-type]
    assert len(await store.query_rollouts()) == 0


async def test_dequeue_is_first_in_first_out_and_sets_preparing(store: LightningStore) -> None:
    ids = [(await store.enqueue_rollout(i)).rollout_id for i in range(3)]
    first = await store.dequeue_rollout(worker_id="w")
    assert isinstance(first, AttemptedRollout)
    assert (first.rollout_id, first.input, first.status) == (ids[0], 0, "preparing")
    assert (first.attempt.sequence_id, first.attempt.status, first.attempt.worker_id) == (1, "preparing", "w")
    rest = await store.dequeue_many_rollouts(limit=10)
    assert [r.rollout_id for r in rest] == ids[1:]
    assert await store.dequeue_rollout() is None
    assert list(await store.dequeue_many_rollouts(limit=0)) == []


async def test_enqueue_many_keeps_order_and_is_all_or_none(store: LightningStore) -> None:
    assert list(await store.enqueue_many_rollouts([])) == []
    requests = [EnqueueRolloutRequest(input=i, mode="train") for i in range(5)]
    queued = await store.enqueue_many_rollouts(requests)
    assert [r.input for r in queued] == list(range(5))
    assert [r.input for r in await store.dequeue_many_rollouts(limit=9)] == list(range(5))
    with pytest.raises(NotFoundError):
        await store.enqueue_many_rollouts(
            [EnqueueRolloutRequest(input=1), EnqueueRolloutRequest(input=2, resources_id="rs-none")]
        )
    assert len(await store.query_rollouts()) == 5


async def test_enqueue_with_own_id_is_idempotent(store: LightningStore) -> None:
    first = await store.enqueue_rollout({"q": 1}, metadata={"a": 1}, rollout_id="ro-mine")
    claimed = await store.dequeue_rollout()
    again = await store.enqueue_rollout({"q": 1}, metadata={"a": 2}, rollout_id="ro-mine")
    assert first.rollout_id == again.rollout_id == "ro-mine"
    assert (again.status, again.metadata) == ("preparing", {"a": 1})
    assert claimed is not None
    assert await store.dequeue_rollout() is None
    with pytest.raises(ConflictError, match="ro-mine"):
        await store.enqueue_rollout({"q": 2}, rollout_id="ro-mine")
    twice = await store.enqueue_many_rollouts([EnqueueRolloutRequest(input=5, rollout_id="ro-twice")] * 2)
    assert [r.rollout_id for r in twice] == ["ro-twice", "ro-twice"]
    assert len(await store.dequeue_many_rollouts(limit=5)) == 1


async def test_start_rollout_creates_an_attempt_past_the_queue(store: LightningStore) -> None:
    started = await store.start_rollout({"q": 1}, "train", worker_id="w", rollout_id="ro-s")
    assert (started.status, started.attempt.sequence_id, started.attempt.worker_id) == ("preparing", 1, "w")
    assert await store.dequeue_rollout() is None
    again = await store.start_rollout({"q": 1}, rollout_id="ro-s")
    assert again.attempt.attempt_id == started.attempt.attempt_id
    with pytest.raises(ConflictError):
        await store.start_rollout({"q": 2}, rollout_id="ro-s")
    await store.enqueue_rollout(3, rollout_id="ro-q")
    with pytest.raises(ConflictError, match="queued"):
        await store.start_rollout(3, rollout_id="ro-q")


async def test_resources_default_to_the_latest_at_enqueue(store: LightningStore) -> None:
    assert (await store.enqueue_rollout(0)).resources_id is None
    first = await store.add_resources({"llm": LLM(endpoint="http://a", model="m")})
    queued = await store.enqueue_rollout(1)
    second = await store.add_resources({"llm": LLM(endpoint="http://b", model="m")})
    assert queued.resources_id == first.resources_id
    assert (await store.start_rollout(2)).resources_id == second.resources_id
    assert (await store.enqueue_rollout(3, resources_id=first.resources_id)).resources_id == first.resources_id
    with pytest.raises(NotFoundError, match="rs-unknown"):
        await store.enqueue_rollout(4, resources_id="rs-unknown")
    with pytest.raises(ValueError, match="rs-unknown"):  # as 0.3 documents
        await store.start_rollout(4, resources_id="rs-unknown")


async def test_start_attempt_counts_up_and_takes_the_rollout_back(store: LightningStore) -> None:
    started = await store.start_rollout("x")
    await store.update_attempt(started.rollout_id, "latest", status="failed")
    ended = await store.get_rollout_by_id(started.rollout_id)
    assert ended is not None
    assert ended.status == "failed"
    assert ended.end_time is not None
    again = await store.start_attempt(started.rollout_id, worker_id="w2")
    assert (again.attempt.sequence_id, again.status, again.attempt.worker_id) == (2, "preparing", "w2")
    assert again.end_time is None
    with pytest.raises(NotFoundError):
        await store.start_attempt("ro-none")


async def test_success_ends_rollout(store: LightningStore) -> None:
    started = await store.start_rollout("x")
    attempt = await store.update_attempt(started.rollout_id, started.attempt.attempt_id, status="running")
    assert (attempt.status, attempt.end_time) == ("running", None)
    rollout = await store.get_rollout_by_id(started.rollout_id)
    assert rollout is not None
    assert rollout.status == "running"
    attempt = await store.update_attempt(started.rollout_id, "latest", status="succeeded", metadata={"reward": 0.5})
    assert attempt.end_time is not None
    assert attempt.metadata == {"reward": 0.5}
    rollout = await store.get_rollout_by_id(started.rollout_id)
    assert isinstance(rollout, AttemptedRollout)
    assert (rollout.status, rollout.attempt.status) == ("succeeded", "succeeded")
    assert rollout.end_time is not None


@pytest.mark.parametrize("status", ["failed", "timeout", "unresponsive"])
async def test_failure_requeues_while_the_policy_allows(store: LightningStore, status: str) -> None:
    config = RolloutConfig(max_attempts=2, retry_condition=[status])  # type: ignore[list-item]
    queued = await store.enqueue_rollout("x", config=config)
    other = await store.enqueue_rollout("y")
    for expected in ("requeuing", "failed"):
        claimed = next(r for r in await store.dequeue_many_rollouts(limit=2) if r.rollout_id == queued.rollout_id)
        await store.update_attempt(queued.rollout_id, claimed.attempt.attempt_id, status=status)  # type: ignore[arg-type]
        rollout = await store.get_rollout_by_id(queued.rollout_id)
        assert rollout is not None
        assert rollout.status == expected
    assert len(await store.query_attempts(queued.rollout_id)) == 2
    assert await store.dequeue_rollout() is None
    assert other.rollout_id != queued.rollout_id


async def test_requeued_rollout_goes_to_the_tail(store: LightningStore) -> None:
    config = RolloutConfig(max_attempts=2, retry_condition=["failed"])
    first = await store.enqueue_rollout("first", config=config)
    await store.enqueue_rollout("second")
    await store.dequeue_rollout()
    await store.update_attempt(first.rollout_id, "latest", status="failed")
    order = [r.input for r in await store.dequeue_many_rollouts(limit=2)]
    assert order == ["second", "first"]


async def test_failure_outside_the_retry_condition_fails(store: LightningStore) -> None:
    config = RolloutConfig(max_attempts=5, retry_condition=["timeout"])
    started = await store.start_rollout("x", config=config)
    await store.update_attempt(started.rollout_id, "latest", status="failed")
    rollout = await store.get_rollout_by_id(started.rollout_id)
    assert rollout is not None
    assert rollout.status == "failed"


async def test_cancelled_wins_over_late_success(store: LightningStore) -> None:
    started = await store.start_rollout("x")
    cancelled = await store.update_rollout(started.rollout_id, status="cancelled")
    assert cancelled.status == "cancelled"
    assert cancelled.end_time is not None
    attempt = await store.update_attempt(started.rollout_id, "latest", status="succeeded")
    assert attempt.status == "succeeded"
    rollout = await store.get_rollout_by_id(started.rollout_id)
    assert rollout is not None
    assert rollout.status == "cancelled"


async def test_cancelled_wins_over_a_failure_that_would_be_retried(store: LightningStore) -> None:
    config = RolloutConfig(max_attempts=3, retry_condition=["failed"])
    started = await store.start_rollout("x", config=config)
    await store.update_rollout(started.rollout_id, status="cancelled")
    await store.update_attempt(started.rollout_id, "latest", status="failed")
    rollout = await store.get_rollout_by_id(started.rollout_id)
    assert rollout is not None
    assert rollout.status == "cancelled"
    assert await store.dequeue_rollout() is None


async def test_queueing_again_what_is_queued_keeps_its_place(store: LightningStore) -> None:
    first = await store.enqueue_rollout("first")
    await store.enqueue_rollout("second")
    await store.update_rollout(first.rollout_id, status="queuing")
    assert [r.input for r in await store.dequeue_many_rollouts(limit=5)] == ["first", "second"]


async def test_cancelled_in_the_queue_is_never_claimed(store: LightningStore) -> None:
    queued = await store.enqueue_rollout("x")
    await store.update_rollout(queued.rollout_id, status="cancelled")
    assert await store.dequeue_rollout() is None
    again = await store.update_rollout(queued.rollout_id, status="queuing")
    assert (again.status, again.end_time) == ("queuing", None)
    await store.update_rollout(queued.rollout_id, status="queuing")
    assert len(await store.dequeue_many_rollouts(limit=5)) == 1


async def test_superseded_attempt_changes_nothing(store: LightningStore) -> None:
    started = await store.start_rollout("x")
    newer = await store.start_attempt(started.rollout_id)
    await store.update_attempt(started.rollout_id, newer.attempt.attempt_id, status="running")
    old = await store.update_attempt(started.rollout_id, started.attempt.attempt_id, status="failed")
    assert old.status == "failed"
    rollout = await store.get_rollout_by_id(started.rollout_id)
    assert isinstance(rollout, AttemptedRollout)
    assert (rollout.status, rollout.attempt.attempt_id) == ("running", newer.attempt.attempt_id)


async def test_illegal_transitions_are_conflicts_and_change_nothing(store: LightningStore) -> None:
    started = await store.start_rollout("x")
    await store.update_attempt(started.rollout_id, "latest", status="succeeded")
    with pytest.raises(ConflictError, match="succeeded"):
        await store.update_attempt(started.rollout_id, "latest", status="failed", metadata={"x": 1})
    with pytest.raises(ConflictError):
        await store.update_rollout(started.rollout_id, status="running", metadata={"x": 1})
    attempt = await store.get_latest_attempt(started.rollout_id)
    assert attempt is not None
    assert (attempt.status, attempt.metadata) == ("succeeded", None)
    rollout = await store.get_rollout_by_id(started.rollout_id)
    assert rollout is not None
    assert rollout.metadata == {}
    same = await store.update_attempt(started.rollout_id, "latest", status="succeeded")
    assert same.end_time == attempt.end_time
    for bad in (
        store.update_attempt(started.rollout_id, "latest", status="done"),  # type: ignore[arg-type]
        store.update_rollout(started.rollout_id, status="done"),  # type: ignore[arg-type]
        store.update_rollout(started.rollout_id, mode="fast"),  # type: ignore[arg-type]
    ):
        with pytest.raises(BadInputError):
            await bad


async def test_update_rollout_replaces_given_fields_only(store: LightningStore) -> None:
    resources = await store.add_resources({})
    queued = await store.enqueue_rollout("x", "train", metadata={"a": 1}, resources_id=resources.resources_id)
    updated = await store.update_rollout(queued.rollout_id, input=["y"], config=RolloutConfig(max_attempts=4))
    assert (updated.input, updated.mode, updated.metadata, updated.config.max_attempts) == (
        ["y"],
        "train",
        {"a": 1},
        4,
    )
    cleared = await store.update_rollout(queued.rollout_id, input=None, mode=None, resources_id=None, metadata=None)
    assert (cleared.input, cleared.mode, cleared.resources_id, cleared.metadata) == (None, None, None, None)
    with pytest.raises(NotFoundError):
        await store.update_rollout(queued.rollout_id, resources_id="rs-none")
    with pytest.raises(NotFoundError):
        await store.update_rollout("ro-none", status="failed")


async def test_unknown_ids(store: LightningStore) -> None:
    assert await store.get_rollout_by_id("ro-none") is None
    with pytest.raises(NotFoundError):
        await store.get_latest_attempt("ro-none")
    with pytest.raises(NotFoundError):
        await store.query_attempts("ro-none")
    with pytest.raises(NotFoundError, match="no rollout"):
        await store.update_attempt("ro-none", "latest", status="failed")
    queued = await store.enqueue_rollout("x")
    assert await store.get_latest_attempt(queued.rollout_id) is None
    with pytest.raises(NotFoundError, match="no attempt"):
        await store.update_attempt(queued.rollout_id, "latest", status="failed")
    with pytest.raises(NotFoundError, match="at-none"):
        await store.update_attempt(queued.rollout_id, "at-none", status="failed")


async def test_update_many_attempts_applies_those_that_can_be(store: LightningStore) -> None:
    started = [await store.start_rollout(i) for i in range(3)]
    updates = [
        AttemptUpdate(rollout_id=r.rollout_id, attempt_id=r.attempt.attempt_id, status="succeeded", metadata={"i": i})
        for i, r in enumerate(started)
    ]
    done = await store.update_many_attempts(updates)
    assert [(a.status, a.metadata) for a in done] == [("succeeded", {"i": i}) for i in range(3)]
    fresh = await store.start_rollout("z")
    mixed = [
        AttemptUpdate(rollout_id=started[0].rollout_id, attempt_id="latest", status="failed"),
        AttemptUpdate(rollout_id="ro-none", attempt_id="latest", status="failed"),
        AttemptUpdate(rollout_id=fresh.rollout_id, attempt_id="latest", status="running"),
    ]
    with pytest.raises(ConflictError) as caught:
        await store.update_many_attempts(mixed)
    assert [(f["index"], f["code"]) for f in caught.value.details["failed"]] == [
        (0, "CONFLICT"),
        (1, "NOT_FOUND"),
    ]
    attempt = await store.get_latest_attempt(fresh.rollout_id)
    assert attempt is not None
    assert attempt.status == "running"
    with pytest.raises(NotFoundError):
        await store.update_many_attempts(mixed[1:2])
    assert list(await store.update_many_attempts([])) == []


async def test_an_attempt_given_up_may_come_back(store: LightningStore) -> None:
    config = RolloutConfig(max_attempts=2, retry_condition=["unresponsive"])
    queued = await store.enqueue_rollout("x", config=config)
    claimed = await store.dequeue_rollout(worker_id="w")
    assert claimed is not None
    await store.update_attempt(queued.rollout_id, "latest", status="unresponsive")
    await store.add_span(make_span(queued.rollout_id, claimed.attempt.attempt_id))
    rollout = await store.get_rollout_by_id(queued.rollout_id)
    assert isinstance(rollout, AttemptedRollout)
    assert (rollout.status, rollout.attempt.status, rollout.attempt.end_time) == ("running", "running", None)
    assert await store.dequeue_rollout() is None


async def test_concurrent_dequeues_never_share_a_rollout(store: LightningStore) -> None:
    await store.enqueue_many_rollouts([EnqueueRolloutRequest(input=i) for i in range(40)])
    claims = await asyncio.gather(*(store.dequeue_many_rollouts(limit=3) for _ in range(20)))
    inputs = [r.input for claim in claims for r in claim]
    assert sorted(inputs) == list(range(40))
