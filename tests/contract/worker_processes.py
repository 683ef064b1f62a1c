"""What the child processes of `test_store_processes` do; run as `python -m tests.contract.worker_processes`."""

from __future__ import annotations

import asyncio
import sys

from agentlightning.store import SqlLightningStore
from tests.contract.conftest import make_span


async def claim(path: str, name: str) -> None:
    """Claim, work, finish, until nothing has come for a second; print every claim."""
    store = SqlLightningStore(path)
    while claimed := await store.dequeue_many_rollouts(limit=3, worker_id=name, timeout=1.0):
        for rollout in claimed:
            print(rollout.rollout_id, flush=True)
            key = (rollout.rollout_id, rollout.attempt.attempt_id)
            await store.add_many_spans([make_span(*key), make_span(*key)])
            await store.update_attempt(*key, status="succeeded")
    await store.close()


async def lives(path: str, count: str) -> None:
    """Carry some rollouts through their whole lives, many at once; claims whichever comes first."""
    store = SqlLightningStore(path)
    left = int(count)

    async def one() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await store.enqueue_rollout("x")
            claimed = None
            while claimed is None:
                claimed = await store.dequeue_rollout()
            key = (claimed.rollout_id, claimed.attempt.attempt_id)
            await store.add_span(make_span(*key))
            await store.update_attempt(*key, status="succeeded")

    await asyncio.gather(*(one() for _ in range(6)))
    await store.close()


async def write(path: str, synchronous: str) -> None:
    """Write until killed, printing the id of whatever was acknowledged, after it was."""
    store = SqlLightningStore(path, "full" if synchronous == "full" else "normal")

    async def one(index: int) -> None:
        while True:
            started = await store.start_rollout({"writer": index})
            key = (started.rollout_id, started.attempt.attempt_id)
            added = await store.add_many_spans([make_span(*key, attributes={"x": "y" * 500}) for _ in range(3)])
            await store.update_attempt(*key, status="succeeded")
            print(started.rollout_id, len(added), flush=True)

    await asyncio.gather(*(one(i) for i in range(8)))


if __name__ == "__main__":
    asyncio.run({"claim": claim, "lives": lives, "write": write}[sys.argv[1]](*sys.argv[2:]))
