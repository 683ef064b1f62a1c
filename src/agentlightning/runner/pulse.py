"""Signs of life of a runner and its attempts, and word of what was cancelled meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from agentlightning.kit.asyncs import cancelled
from agentlightning.kit.errors import AgentLightningError, ConflictError
from agentlightning.runner.execution import AttemptExecution
from agentlightning.store.base import AttemptUpdate, LightningStore

logger = logging.getLogger(__name__)

CANCEL_INTERVAL_S = 2.0
"""How often the store is asked for cancelled rollouts."""
_CALL_TIMEOUT_S = 10.0


class Pulse:
    """Background task of a runner.

    Args:
        store: Where to.
        worker: The worker's name.
        running: Attempts by id, as the runner keeps them.
        interval_s: Seconds between heartbeats; 0 sends none.
        stats: What to tell about the worker.
        held: Rollout and attempt ids of outcomes that have not reached the store yet: they count as alive.
    """

    def __init__(
        self,
        store: LightningStore,
        worker: str,
        running: Mapping[str, AttemptExecution],
        interval_s: float,
        stats: Callable[[], dict[str, Any]],
        held: Callable[[], list[tuple[str, str]]] = list,
    ) -> None:
        self._store = store
        self._worker = worker
        self._running = running
        self._interval_s = interval_s
        self._stats = stats
        self._held = held
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run(), name="agentlightning-pulse")

    async def stop(self) -> None:
        """End."""
        if self._task is not None:
            await cancelled(self._task)

    async def _run(self) -> None:
        next_beat = time.monotonic()
        while True:
            now = time.monotonic()
            try:
                async with asyncio.timeout(_CALL_TIMEOUT_S):
                    if self._interval_s > 0 and now >= next_beat:
                        next_beat = now + self._interval_s
                        await self._beat()
                    await self._look_for_cancelled()
            except (AgentLightningError, OSError) as error:  # OSError: TimeoutError too
                logger.warning("The heartbeat of %s failed: %r", self._worker, error)
            await asyncio.sleep(min(self._interval_s or CANCEL_INTERVAL_S, CANCEL_INTERVAL_S))

    async def _beat(self) -> None:
        await self._store.update_worker(self._worker, {"pid": os.getpid(), **self._stats()})
        now = time.time()
        held = {attempt_id: rollout_id for rollout_id, attempt_id in self._held()}
        held |= {attempt_id: execution.rollout.rollout_id for attempt_id, execution in self._running.items()}
        alive = [
            AttemptUpdate(rollout_id=rollout_id, attempt_id=attempt_id, status="running", last_heartbeat_time=now)
            for attempt_id, rollout_id in held.items()
        ]
        if alive:
            with contextlib.suppress(ConflictError):  # some have ended meanwhile; the others are noted
                await self._store.update_many_attempts(alive)

    async def _look_for_cancelled(self) -> None:
        running = {execution.rollout.rollout_id: execution for execution in self._running.values()}
        if not running:
            return
        cancelled = await self._store.query_rollouts(status_in=["cancelled"], rollout_id_in=list(running))
        for rollout in cancelled:
            running[rollout.rollout_id].cancel("the rollout was cancelled", may_run_again=False)
