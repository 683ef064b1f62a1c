"""`InMemoryLightningStore`: the SQL store on a database in memory, with the arguments of 0.3. Knows no tables."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from agentlightning.kit.errors import NotFoundError
from agentlightning.schemas import Rollout, Span
from agentlightning.store.sql import SqlLightningStore

logger = logging.getLogger(__name__)

_SHORTEST_INTERVAL_S = 0.05


class InMemoryLightningStore(SqlLightningStore):
    """The same store on a private database in memory; gone when the process ends.

    Args:
        thread_safe: Accepted for compatibility; it always is.
        eviction_memory_threshold: Accepted for compatibility: spans stay until `prune`, nothing is evicted.
        safe_memory_threshold: Likewise.
        span_size_estimator: Likewise.
        tracker: Accepted for compatibility; nobody is told.
        scan_debounce_seconds: The longest time between two checks of time limits, seconds. They are checked every
            `watchdog_interval_s` anyway, so only less than that makes a difference.
        watchdog_interval_s: See `SqlLightningStore`.
        max_value_bytes: See `SqlLightningStore`.
    """

    def __init__(
        self,
        *,
        thread_safe: bool = True,
        eviction_memory_threshold: float | None = None,
        safe_memory_threshold: float | None = None,
        span_size_estimator: Callable[[Span], int] | None = None,
        tracker: object | None = None,
        scan_debounce_seconds: float = 10.0,
        watchdog_interval_s: float = 1.0,
        max_value_bytes: int | None = None,
    ) -> None:
        ignored = {
            "eviction_memory_threshold": eviction_memory_threshold,
            "safe_memory_threshold": safe_memory_threshold,
            "span_size_estimator": span_size_estimator,
            "tracker": tracker,
        }
        for name, value in ignored.items():
            if value is not None:
                logger.warning("InMemoryLightningStore(%s=...) has no effect.", name)
        interval_s = min(watchdog_interval_s, max(scan_debounce_seconds, _SHORTEST_INTERVAL_S))
        super().__init__(":memory:", watchdog_interval_s=interval_s, max_value_bytes=max_value_bytes)

    async def wait_for_rollout(self, rollout_id: str, timeout: float | None = None) -> Rollout | None:
        """The rollout once it has ended; `None` when that takes longer than `timeout` seconds, or it is unknown."""
        try:
            ended = await self.wait_for_rollouts(rollout_ids=[rollout_id], timeout=timeout)
        except NotFoundError:  # as 0.3 answers
            return None
        return ended[0] if ended else None

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy would be another store.

        Raises:
            TypeError: Always.
        """
        raise TypeError(
            "An in-memory store cannot be sent to another process; serve it with LightningStoreServer, "
            "or use SqlLightningStore(path)."
        )
