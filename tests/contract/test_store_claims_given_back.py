"""A claim over HTTP whose caller has left, or whose connection breaks, is handed out again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from agentlightning.store import InMemoryLightningStore, LightningStoreClient, LightningStoreServer, verbs


@pytest.fixture
async def served() -> AsyncIterator[tuple[InMemoryLightningStore, LightningStoreClient]]:
    local = InMemoryLightningStore()
    server = LightningStoreServer(local, port=0, launch_mode="asyncio")
    await server.start()
    client = LightningStoreClient(server.endpoint, retry_delays=())
    yield local, client
    await client.close()
    await server.stop()
    await local.close()


async def queued(store: InMemoryLightningStore) -> int:
    return (await store.query_rollouts(status_in=["queuing"])).total


async def everything_queued(store: InMemoryLightningStore, count: int) -> bool:
    deadline = time.monotonic() + 60
    while await queued(store) < count:
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.01)
    return True


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 13])
async def test_cancelled_at_any_moment(served: tuple[InMemoryLightningStore, LightningStoreClient], turns: int) -> None:
    local, client = served
    for i in range(8):
        await client.enqueue_rollout(i)
    calls = [asyncio.ensure_future(client.dequeue_rollout()) for _ in range(8)]
    for _ in range(turns):
        await asyncio.sleep(0)
    for call in calls[::2]:
        call.cancel()
    results = await asyncio.gather(*calls, return_exceptions=True)
    taken = [result for result in results if result is not None and not isinstance(result, BaseException)]
    assert len(taken) >= 4
    assert await everything_queued(local, 8 - len(taken))
    assert [r.attempt.sequence_id for r in await local.dequeue_many_rollouts(limit=8)] == [1] * (8 - len(taken))


async def test_closing_waits_for_what_is_given_back(
    served: tuple[InMemoryLightningStore, LightningStoreClient],
) -> None:
    local, client = served
    await client.enqueue_rollout("x")
    call = asyncio.ensure_future(client.dequeue_rollout())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait([call])
    await client.close()
    assert await queued(local) == 1


async def test_a_claim_that_has_been_used_stays() -> None:
    local = InMemoryLightningStore()
    await local.enqueue_rollout("x")
    claim = verbs.DequeueManyRollouts(limit=1, claim_id="mine")
    claimed = (await local.execute(claim))[0]
    await local.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, status="running")
    assert await local.execute(verbs.ReleaseClaim(claim_id="mine")) == 0
    assert await local.execute(verbs.ReleaseClaim(claim_id="nobody's")) == 0
    assert await queued(local) == 0
    await local.close()
