"""Claiming rollouts, with patience for a store that is away. Knows no agents."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from agentlightning.kit.errors import StorageError
from agentlightning.runner.courier import AWAY
from agentlightning.schemas import AttemptedRollout
from agentlightning.store.base import LightningStore

BEATS_PER_LEASE = 3
"""So many heartbeats may get lost before the store hands an attempt to somebody else."""
_LONGEST_POLL_S = 1.0
"""Longest single wait for work, so that a stop is noticed soon."""


@dataclass(frozen=True)
class Claims:
    """How one worker claims."""

    store: LightningStore
    worker: str
    poll_interval_s: float
    heartbeat_interval_s: float
    """0: no heartbeats, so no lease."""
    patience_s: float
    stopping: asyncio.Event

    async def next(self, limit: int) -> Sequence[AttemptedRollout]:
        """Wait a while for work; empty when there is none, or when stopping.

        Raises:
            StorageError: The store stayed unreachable.
        """
        started = time.monotonic()
        pause_s = 0.1
        while True:
            try:
                return await self.store.dequeue_many_rollouts(
                    limit=limit,
                    worker_id=self.worker,
                    timeout=min(self.poll_interval_s, _LONGEST_POLL_S),
                    lease_s=BEATS_PER_LEASE * self.heartbeat_interval_s or None,
                )
            except AWAY as error:
                if self.stopping.is_set():
                    return []
                if time.monotonic() - started > self.patience_s:
                    raise StorageError(
                        f"The store could not be reached for {self.patience_s:.0f} s: {error}",
                        hint="Check that the coordinator is running.",
                    ) from error
                await asyncio.sleep(pause_s * random.uniform(0.8, 1.2))
                pause_s = min(2 * pause_s, 2.0)
