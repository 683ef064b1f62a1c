"""`total` of all rollouts, which is kept rather than counted, is always how many there are."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from agentlightning.kit.errors import NotFoundError
from agentlightning.schemas import EnqueueRolloutRequest
from agentlightning.store import LightningStore, SqlLightningStore


async def total(store: LightningStore) -> int:
    """Of a page that does not show all."""
    return (await store.query_rollouts(limit=1)).total


async def test_what_was_refused_is_not_counted(store: LightningStore) -> None:
    await store.enqueue_rollout("a")
    assert await total(store) == 1
    both = [EnqueueRolloutRequest(input="b"), EnqueueRolloutRequest(input="c", resources_id="none")]
    results = await asyncio.gather(
        store.enqueue_many_rollouts(both),
        store.enqueue_rollout("d"),
        store.start_rollout("e"),
        store.enqueue_rollout("a", rollout_id="same"),
        store.enqueue_rollout("a", rollout_id="same"),
        return_exceptions=True,
    )
    assert isinstance(results[0], NotFoundError)
    assert not any(isinstance(result, BaseException) for result in results[1:])
    assert await total(store) == len(await store.query_rollouts()) == 4
    assert (await store.query_rollouts(limit=1, status_in=["preparing"])).total == 1


async def test_two_stores_on_one_file_and_pruning(tmp_path: Path) -> None:
    one, two = SqlLightningStore(tmp_path / "s.db"), SqlLightningStore(tmp_path / "s.db")
    for store in (one, two):
        await asyncio.gather(*(store.enqueue_rollout(i) for i in range(20)))
    assert await total(one) == await total(two) == 40
    for rollout in await two.dequeue_many_rollouts(limit=30):
        await two.update_attempt(rollout.rollout_id, rollout.attempt.attempt_id, status="succeeded")
    await one.prune(keep_last=0)
    assert await total(one) == await total(two) == len(await two.query_rollouts()) == 10
    await one.close()
    await two.close()


def test_a_transaction_that_is_rolled_back_counts_nothing(tmp_path: Path) -> None:
    SqlLightningStore(tmp_path / "s.db")._database.close_now()
    connection = sqlite3.connect(tmp_path / "s.db", isolation_level=None)
    count = "SELECT row_count FROM row_counts WHERE table_name = 'rollouts'"
    add = """INSERT INTO rollouts (rollout_id, packed_input, start_time, status, packed_config, attempt_count)
        VALUES (?, x'80', 1.0, 'queuing', x'80', 0)"""
    connection.execute(add, ("kept",))
    connection.execute("BEGIN")
    connection.execute(add, ("forgotten",))
    with pytest.raises(sqlite3.IntegrityError):
        connection.execute(add, ("kept",))
    connection.execute("ROLLBACK")
    assert connection.execute(count).fetchone() == (1,)
    connection.close()
