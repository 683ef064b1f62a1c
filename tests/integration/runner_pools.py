"""What tests of runner pools share: a queue filled, its end waited for, processes counted."""

from __future__ import annotations

from typing import Any

import psutil

from agentlightning.schemas import EnqueueRolloutRequest, RolloutConfig
from agentlightning.store import LightningStoreServer


async def enqueue(server: LightningStoreServer, tasks: list[Any], **config: Any) -> list[str]:
    requests = [EnqueueRolloutRequest(input=task, config=RolloutConfig(**config)) for task in tasks]
    return [rollout.rollout_id for rollout in await server.store.enqueue_many_rollouts(requests)]


async def finished(server: LightningStoreServer, ids: list[str], timeout: float = 180) -> list[Any]:
    await server.store.wait_for_rollouts(rollout_ids=ids, timeout=timeout)
    found = {r.rollout_id: r for r in await server.store.query_rollouts(rollout_id_in=ids)}
    return [found[i] for i in ids]


SERVERS = {"redis-server", "postgres"}
"""Those of the whole run, which tests before may have started."""


def descendants() -> list[psutil.Process]:
    """Processes below this one but the run's servers; those that end while they are looked at do not count."""
    return [process for process in psutil.Process().children(recursive=True) if _runs(process)]


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.name() not in SERVERS
    except psutil.NoSuchProcess:
        return False
