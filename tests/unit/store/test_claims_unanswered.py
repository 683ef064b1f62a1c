"""A claim whose answer is lost for good stays with its worker, who is alive: the next claim has to find it again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from agentlightning.kit.errors import StorageError
from agentlightning.schemas import EnqueueRolloutRequest
from agentlightning.store import InMemoryLightningStore, LightningStoreClient, LightningStoreServer
from agentlightning.store.channel import Channel


@pytest.fixture
async def client() -> AsyncIterator[LightningStoreClient]:
    store = InMemoryLightningStore()
    server = LightningStoreServer(store, port=0, launch_mode="asyncio")
    await server.start()
    client = LightningStoreClient(server.endpoint, retry_delays=())
    yield client
    await client.close()
    await server.stop()
    await store.close()


def losing_one_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store does what it is asked next; the answer does not arrive."""
    real = Channel.post

    async def post(self: Channel, *args: Any, **kwargs: Any) -> bytes:
        monkeypatch.setattr(Channel, "post", real)
        await real(self, *args, **kwargs)
        raise StorageError("The store died before it answered.", hint="")

    monkeypatch.setattr(Channel, "post", post)


@pytest.mark.parametrize("timeout", [0.0, 1.0])
async def test_the_next_claim_of_the_worker_gets_what_was_lost(
    client: LightningStoreClient, monkeypatch: pytest.MonkeyPatch, timeout: float
) -> None:
    queued = [r.rollout_id for r in await client.enqueue_many_rollouts([EnqueueRolloutRequest(input=n) for n in "abc"])]
    losing_one_answer(monkeypatch)
    with pytest.raises(StorageError):
        await client.dequeue_many_rollouts(limit=2, worker_id="w", timeout=timeout, lease_s=60)
    assert [r.status for r in await client.query_rollouts()] == ["preparing", "preparing", "queuing"]
    (other,) = await client.dequeue_many_rollouts(limit=2, worker_id="v", timeout=timeout)
    assert other.rollout_id == queued[2]
    again = await client.dequeue_many_rollouts(limit=2, worker_id="w", timeout=timeout, lease_s=60)
    assert [(r.rollout_id, r.attempt.sequence_id) for r in again] == [(name, 1) for name in queued[:2]]
    assert list(await client.dequeue_many_rollouts(limit=2, worker_id="w", timeout=0.0)) == []


async def test_what_was_taken_back_meanwhile_is_not_handed_out_twice(
    client: LightningStoreClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await client.enqueue_rollout("a")
    losing_one_answer(monkeypatch)
    with pytest.raises(StorageError):
        await client.dequeue_many_rollouts(limit=1, worker_id="w", timeout=1.0)
    (lost,) = await client.query_rollouts()
    await client.update_rollout(lost.rollout_id, status="cancelled")
    assert list(await client.dequeue_many_rollouts(limit=1, worker_id="w", timeout=0.0)) == []
