"""Claims that hold for a time only, claims made twice, and enqueuing under a key."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from agentlightning.kit.errors import BadInputError, ConflictError
from agentlightning.schemas import AttemptedRollout, EnqueueRolloutRequest, Rollout, RolloutConfig
from agentlightning.store import LightningStore, SqlLightningStore, verbs
from agentlightning.store.ops.lifecycle import MAX_LOST_ATTEMPTS
from tests.contract.conftest import make_span

SHORT_S = 0.3
LONG_S = 3600.0
SOON_S = 100.0
"""Longer than anything here takes."""


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(SOON_S):
        while not await condition():  # noqa: ASYNC110 - the store says nothing of this
            await asyncio.sleep(0.02)


async def current(store: LightningStore, rollout_id: str) -> AttemptedRollout:
    rollout = await store.get_rollout_by_id(rollout_id)
    assert isinstance(rollout, AttemptedRollout)
    return rollout


async def claimed(store: LightningStore, lease_s: float | None, **config: Any) -> AttemptedRollout:
    await store.enqueue_rollout("x", config=RolloutConfig(**config))
    rollout = await store.dequeue_rollout(worker_id="w", lease_s=lease_s)
    assert rollout is not None
    return rollout


async def lost(store: LightningStore, rollout: Rollout) -> None:
    async def is_lost() -> bool:
        return (await current(store, rollout.rollout_id)).attempt.status == "unresponsive"

    await until(is_lost)


async def test_a_claim_whose_worker_vanishes_is_handed_out_again(store: LightningStore) -> None:
    first = await claimed(store, SHORT_S)  # no retry condition, one attempt: it is the worker that failed
    (second,) = await store.dequeue_many_rollouts(worker_id="v", timeout=SOON_S, lease_s=LONG_S)
    assert second.rollout_id == first.rollout_id
    assert (second.attempt.sequence_id, second.attempt.worker_id) == (2, "v")
    attempts = await store.query_attempts(first.rollout_id)
    assert [a.status for a in attempts] == ["unresponsive", "preparing"]
    assert attempts.items[0].end_time is not None
    (event,) = await store.query_events(kinds=["attempt.completed"])
    assert event.data["reason"] == "its lease has run out"
    assert event.data["rollout_status"] == "requeuing"


async def test_without_a_lease_a_claim_holds(store: LightningStore) -> None:
    first = await claimed(store, None)
    leased = await claimed(store, SHORT_S)
    await lost(store, leased)
    assert (await current(store, first.rollout_id)).status == "preparing"


async def test_a_rollout_that_kills_its_workers_ends(store: LightningStore) -> None:
    first = await claimed(store, 0.05, max_attempts=2)
    for sequence_id in range(2, 2 + MAX_LOST_ATTEMPTS + 1):
        (again,) = await store.dequeue_many_rollouts(timeout=SOON_S, lease_s=0.05)
        assert (again.rollout_id, again.attempt.sequence_id) == (first.rollout_id, sequence_id)
    (ended,) = await store.wait_for_rollouts(rollout_ids=[first.rollout_id], timeout=SOON_S)
    assert ended.status == "failed"
    assert len(await store.query_attempts(first.rollout_id)) == 2 + MAX_LOST_ATTEMPTS


async def heartbeat(store: LightningStore, rollout: AttemptedRollout) -> None:
    await store.update_attempt(rollout.rollout_id, rollout.attempt.attempt_id, last_heartbeat_time=time.time())


async def status(store: LightningStore, rollout: AttemptedRollout) -> None:
    await store.update_attempt(rollout.rollout_id, rollout.attempt.attempt_id, status="running")


async def span(store: LightningStore, rollout: AttemptedRollout) -> None:
    await store.add_span(make_span(rollout.rollout_id, rollout.attempt.attempt_id))


async def worker(store: LightningStore, _: AttemptedRollout) -> None:
    await store.update_worker("w")


@pytest.mark.parametrize(("renew", "others"), [(heartbeat, 0), (status, 0), (span, 0), (worker, 1)])
async def test_signs_of_life_renew_the_lease(
    sql_store: SqlLightningStore,
    renew: Callable[[LightningStore, AttemptedRollout], Awaitable[None]],
    others: int,
) -> None:
    """One's own, or those of all attempts of the worker."""
    rollouts = [await claimed(sql_store, LONG_S) for _ in range(2)]
    before = await leases(sql_store)
    await renew(sql_store, rollouts[0])
    after = await leases(sql_store)
    assert after[0] > before[0]
    assert sum(a > b for a, b in zip(after[1:], before[1:], strict=True)) == others


async def test_metadata_is_no_sign_of_life(sql_store: SqlLightningStore) -> None:
    rollout = await claimed(sql_store, LONG_S)
    before = await leases(sql_store)
    await sql_store.update_attempt(rollout.rollout_id, "latest", metadata={"by": "somebody else"})
    assert await leases(sql_store) == before
    await sql_store.update_attempt(rollout.rollout_id, "latest", last_heartbeat_time=1.0)
    assert (await leases(sql_store))[0] > before[0]


async def leases(store: SqlLightningStore) -> list[float]:
    rows = await store._database.read(lambda db: db.all("SELECT lease_until FROM attempts ORDER BY no"))
    return [row[0] for row in rows]


async def test_an_attempt_that_has_ended_has_no_lease(sql_store: SqlLightningStore) -> None:
    rollout = await claimed(sql_store, LONG_S)
    await span(sql_store, rollout)
    assert (await leases(sql_store))[0] is not None
    await sql_store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
    await span(sql_store, rollout)
    await sql_store.update_worker("w")
    assert await leases(sql_store) == [None]


@pytest.mark.parametrize("comes_back", [status, span])
async def test_a_worker_that_returns_before_another_claims_goes_on(
    store: LightningStore, comes_back: Callable[[LightningStore, AttemptedRollout], Awaitable[None]]
) -> None:
    rollout = await claimed(store, SHORT_S)
    await lost(store, rollout)
    assert (await current(store, rollout.rollout_id)).status == "requeuing"
    await comes_back(store, rollout)
    now = await current(store, rollout.rollout_id)
    assert (now.status, now.attempt.status, now.attempt.attempt_id) == (
        "running",
        "running",
        rollout.attempt.attempt_id,
    )
    await lost(store, rollout)  # it has a lease again
    await store.update_attempt(rollout.rollout_id, rollout.attempt.attempt_id, status="succeeded")
    assert (await current(store, rollout.rollout_id)).status == "succeeded"
    assert await store.dequeue_rollout() is None


async def test_a_late_write_of_a_superseded_attempt_is_recorded_and_changes_nothing(store: LightningStore) -> None:
    first = await claimed(store, SHORT_S)
    (second,) = await store.dequeue_many_rollouts(timeout=SOON_S, lease_s=LONG_S)
    await span(store, first)
    await store.update_attempt(first.rollout_id, first.attempt.attempt_id, status="succeeded", metadata={"late": True})
    now = await current(store, first.rollout_id)
    assert (now.status, now.attempt) == ("preparing", second.attempt)
    attempts = await store.query_attempts(first.rollout_id)
    assert (attempts.items[0].status, attempts.items[0].metadata) == ("succeeded", {"late": True})
    assert len(await store.query_spans(first.rollout_id, first.attempt.attempt_id)) == 1
    await store.update_attempt(second.rollout_id, second.attempt.attempt_id, status="failed")
    assert (await current(store, first.rollout_id)).status == "failed"


async def test_so_is_one_of_an_attempt_that_took_too_long(store: LightningStore) -> None:
    config = {"timeout_seconds": SHORT_S, "max_attempts": 2, "retry_condition": ["timeout"]}
    first = await claimed(store, None, **config)
    (second,) = await store.dequeue_many_rollouts(timeout=SOON_S)
    ids = (first.rollout_id, first.attempt.attempt_id)
    await store.update_attempt(*ids, status="succeeded", metadata={"late": True})
    attempts = await store.query_attempts(first.rollout_id)
    assert (attempts.items[0].status, attempts.items[0].metadata) == ("succeeded", {"late": True})
    assert (await current(store, first.rollout_id)).attempt.attempt_id == second.attempt.attempt_id
    with pytest.raises(ConflictError):  # it has ended for good now
        await store.update_attempt(*ids, status="failed")


async def test_a_time_limit_comes_before_the_lease(store: LightningStore) -> None:
    rollout = await claimed(store, SHORT_S, timeout_seconds=SHORT_S / 2, unresponsive_seconds=SHORT_S / 2)
    (ended,) = await store.wait_for_rollouts(rollout_ids=[rollout.rollout_id], timeout=SOON_S)
    assert ended.status == "failed"
    assert (await current(store, rollout.rollout_id)).attempt.status in ("timeout", "unresponsive")
    await asyncio.sleep(2 * SHORT_S)
    assert len(await store.query_attempts(rollout.rollout_id)) == 1


async def test_leases_of_an_attempt_made_by_hand(store: LightningStore) -> None:
    started = await store.start_rollout("x")
    second = await store.start_attempt(started.rollout_id, "w", lease_s=SHORT_S)
    (third,) = await store.dequeue_many_rollouts(timeout=SOON_S)
    assert (third.rollout_id, third.attempt.sequence_id) == (second.rollout_id, 3)


async def test_a_store_that_was_away_gives_workers_the_time_to_come_back(location: str) -> None:
    store = SqlLightningStore(location, watchdog_interval_s=0.05)
    rollout = await claimed(store, LONG_S)
    await store._database.write(lambda db: db.run("UPDATE attempts SET lease_until = 1.0", {}))
    await store.close()
    again = SqlLightningStore(location, watchdog_interval_s=0.05)
    assert await again.check_timeouts() == 0
    assert await again.dequeue_rollout() is None
    await span(again, rollout)
    assert (await current(again, rollout.rollout_id)).status == "running"
    await again.close()


@pytest.mark.parametrize("lease_s", [0, -1.0, math.nan, math.inf])
async def test_bad_leases(store: LightningStore, lease_s: float) -> None:
    await store.enqueue_rollout("x")
    before = await store.query_rollouts()
    for call in (
        store.dequeue_rollout(lease_s=lease_s),
        store.dequeue_many_rollouts(limit=2, lease_s=lease_s, timeout=SOON_S),
        store.start_attempt(before.items[0].rollout_id, lease_s=lease_s),
    ):
        with pytest.raises(BadInputError, match="lease_s") as caught:
            await call
        assert caught.value.hint
    assert await store.query_rollouts() == before


# --- the same claim twice -----------------------------------------------------------------------------------------


async def test_one_claim_at_two_processes_gives_the_same_attempts(location: str) -> None:
    stores = [SqlLightningStore(location) for _ in range(3)]
    for round_ in range(10):
        await stores[0].enqueue_many_rollouts([EnqueueRolloutRequest(input=i) for i in range(6)])
        verb = verbs.DequeueManyRollouts(limit=2, claim_id=f"claim-{round_}", worker_id="w")
        answers = await asyncio.gather(*(store.execute(verb) for store in stores))
        ids = [[(r.rollout_id, r.attempt.attempt_id) for r in answer] for answer in answers]
        assert ids[0] == ids[1] == ids[2]
        assert len(ids[0]) == 2
    total = sum([len(await stores[0].query_attempts(r.rollout_id)) for r in await stores[0].query_rollouts()])
    assert total == 20
    for store in stores:
        await store.close()


async def test_what_was_answered_again_is_not_taken_back(sql_store: SqlLightningStore) -> None:
    """The first answer goes astray, the claimer asks again and gets it, then the first is cleaned up after."""
    await sql_store.enqueue_rollout("x")
    verb = verbs.DequeueManyRollouts(limit=1, claim_id="c", lease_s=LONG_S)
    first = await sql_store.execute(verb)
    again = await sql_store.execute(verb)
    assert [r.attempt.attempt_id for r in first] == [r.attempt.attempt_id for r in again]
    sql_store._release(first)
    await asyncio.sleep(0.2)
    assert (await current(sql_store, first[0].rollout_id)).attempt.attempt_id == first[0].attempt.attempt_id
    assert await sql_store.query_events(kinds=["claim.released"]) == []


# --- enqueuing under a key ----------------------------------------------------------------------------------------


async def test_the_same_key_is_the_same_rollout(store: LightningStore) -> None:
    first = await store.enqueue_rollout({"q": 1}, mode="train", idempotency_key="order 7/ä")
    again = await store.enqueue_rollout({"q": 1}, idempotency_key="order 7/ä")
    other = await store.enqueue_rollout({"q": 1}, idempotency_key="order 8")
    assert again == first
    assert other.rollout_id != first.rollout_id
    many = await store.enqueue_many_rollouts(
        [EnqueueRolloutRequest(input={"q": 1}, idempotency_key=key) for key in ("order 8", "order 9", "order 9")]
    )
    assert many[0] == other
    assert many[1].rollout_id == many[2].rollout_id
    assert len(await store.query_rollouts()) == 3
    assert len(await store.query_events(kinds=["rollout.enqueued"])) == 3
    assert await store.dequeue_rollout() is not None
    assert (await store.enqueue_rollout({"q": 1}, idempotency_key="order 7/ä")).status == "preparing"


async def test_the_same_key_from_many_callers_at_once(location: str) -> None:
    stores = [SqlLightningStore(location) for _ in range(3)]
    calls = [store.enqueue_rollout("x", idempotency_key=f"k{i}") for i in range(20) for store in stores]
    rollouts = await asyncio.gather(*calls)
    assert len({r.rollout_id for r in rollouts}) == 20
    assert len(await stores[0].query_rollouts()) == 20
    for store in stores:
        await store.close()


async def test_bad_keys(store: LightningStore) -> None:
    await store.enqueue_rollout("x", idempotency_key="k")
    with pytest.raises(ConflictError, match="another input"):
        await store.enqueue_rollout("y", idempotency_key="k")
    with pytest.raises(BadInputError):
        await store.enqueue_rollout("x", idempotency_key="")
    with pytest.raises(BadInputError, match="not both"):
        await store.enqueue_rollout("x", idempotency_key="k2", rollout_id="r")
    assert len(await store.query_rollouts()) == 1
