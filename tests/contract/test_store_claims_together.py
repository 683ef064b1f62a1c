"""Claims that wait at the same moment are made in one go, and each claimer gets what it would have got alone."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from agentlightning.kit.errors import BadInputError
from agentlightning.schemas import AttemptedRollout, EnqueueRolloutRequest
from agentlightning.store import SqlLightningStore, verbs
from tests.busy_writer import while_busy


async def queue(store: SqlLightningStore, count: int) -> list[str]:
    requests = [EnqueueRolloutRequest(input=i) for i in range(count)]
    return [rollout.rollout_id for rollout in await store.enqueue_many_rollouts(requests)]


async def at_once(store: SqlLightningStore, *calls: Coroutine[Any, Any, Any]) -> list[Any]:
    """Results of calls that are made together."""
    return await while_busy(store._database.write, *calls)


def ids(claimed: list[AttemptedRollout]) -> list[str]:
    return [rollout.rollout_id for rollout in claimed]


async def test_the_first_to_ask_get_the_oldest_and_the_rest_nothing(sql_store: SqlLightningStore) -> None:
    queued = await queue(sql_store, 6)
    claims = await at_once(
        sql_store,
        *(sql_store.dequeue_many_rollouts(limit=n, worker_id=f"w{n}", lease_s=n) for n in (2, 3, 4, 1)),
    )
    assert [ids(claimed) for claimed in claims] == [queued[:2], queued[2:5], queued[5:], []]
    assert [{r.attempt.worker_id for r in claimed} for claimed in claims] == [{"w2"}, {"w3"}, {"w4"}, set()]
    workers = {worker.worker_id: worker for worker in await sql_store.query_workers()}
    assert {name: worker.status for name, worker in workers.items()} == {
        "w2": "busy", "w3": "busy", "w4": "busy", "w1": "idle",
    }  # fmt: skip
    assert [workers[f"w{n}"].current_rollout_id for n in (2, 3, 4)] == [queued[1], queued[4], queued[5]]
    attempts = {attempt.worker_id for i in queued for attempt in await sql_store.query_attempts(i)}
    assert attempts == {"w2", "w3", "w4"}


async def test_the_same_claim_twice_gives_the_same(sql_store: SqlLightningStore) -> None:
    queued = await queue(sql_store, 3)
    first, again, other = await at_once(
        sql_store,
        *(sql_store.execute(verbs.DequeueManyRollouts(limit=1, worker_id="w", claim_id=c)) for c in ("a", "a", "b")),
    )
    assert [ids(claimed) for claimed in (first, again, other)] == [queued[:1], queued[:1], queued[1:2]]
    assert first[0].attempt.attempt_id == again[0].attempt.attempt_id
    later = await at_once(
        sql_store,
        *(sql_store.execute(verbs.DequeueManyRollouts(limit=1, worker_id="w", claim_id=c)) for c in ("b", "c")),
    )
    assert [ids(claimed) for claimed in later] == [queued[1:2], queued[2:]]
    assert later[0][0].attempt.attempt_id == other[0].attempt.attempt_id


async def test_a_bad_claim_spoils_no_other(sql_store: SqlLightningStore) -> None:
    queued = await queue(sql_store, 2)
    bad, good = await at_once(
        sql_store, sql_store.dequeue_many_rollouts(limit=1, lease_s=-1), sql_store.dequeue_many_rollouts(limit=2)
    )
    assert isinstance(bad, BadInputError)
    assert ids(good) == queued


async def test_waiting_for_the_same_rollout_gives_each_its_own_copy(sql_store: SqlLightningStore) -> None:
    first, second = await queue(sql_store, 2)
    for claimed in await sql_store.dequeue_many_rollouts(limit=2):
        await sql_store.update_attempt(claimed.rollout_id, "latest", status="succeeded")
    waits = [sql_store.wait_for_rollouts(rollout_ids=i, timeout=5) for i in ([first], [first, second], [second])]
    one, both, other = await asyncio.gather(*waits)
    assert [ids(one), ids(both), ids(other)] == [[first], [first, second], [second]]
    assert one[0] is not both[0]
    with pytest.raises(ValueError, match="no rollout 'ro-x'"):
        await sql_store.wait_for_rollouts(rollout_ids=["ro-x"], timeout=1)
