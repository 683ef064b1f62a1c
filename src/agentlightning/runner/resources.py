"""The resources of rollouts: each snapshot is fetched once, however many rollouts use it."""

from __future__ import annotations

import asyncio
import functools
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from agentlightning.kit.errors import StorageError
from agentlightning.runner.courier import AWAY
from agentlightning.schemas import NamedResources, ResourcesUpdate, Rollout
from agentlightning.store.base import LightningStore

_REMEMBERED = 16
_PAUSE_S = 0.5


class ResourceCache:
    """Snapshots by id. Their content counts as fixed: who changes a prompt stores a new snapshot."""

    def __init__(self) -> None:
        self._store: LightningStore | None = None
        self._patience_s = 0.0
        self._fetches: OrderedDict[str, asyncio.Future[NamedResources]] = OrderedDict()

    def use(self, store: LightningStore | None, *, patience_s: float = 0.0) -> None:
        """Fetch from this store from now on, wait so long for it, and forget what others had."""
        self._store = store
        self._patience_s = patience_s
        self._fetches.clear()

    async def of(self, rollout: Rollout) -> NamedResources:
        """The rollout's resources; one that names none gets the latest, else nothing.

        Raises:
            StorageError: The snapshot does not exist, or the store does not answer.
        """
        assert self._store is not None
        resources_id = rollout.resources_id
        if resources_id is None:
            latest = await self._patiently(self._store.get_latest_resources)
            return latest.resources if latest is not None else {}
        fetch = self._fetches.get(resources_id)
        if fetch is None:
            fetch = self._fetches[resources_id] = asyncio.ensure_future(self._fetch(self._store, resources_id))
            if len(self._fetches) > _REMEMBERED:
                self._fetches.popitem(last=False)
        try:
            return await asyncio.shield(fetch)
        except Exception:  # whatever it is, the next rollout asks again instead of getting the same error
            self._fetches.pop(resources_id, None)
            raise

    async def _fetch(self, store: LightningStore, resources_id: str) -> NamedResources:
        update = await self._patiently(functools.partial(store.get_resources_by_id, resources_id))
        if update is None:
            raise StorageError(f"The resources {resources_id} of this rollout do not exist.")
        return update.resources

    async def _patiently(self, fetch: Callable[[], Awaitable[ResourcesUpdate | None]]) -> ResourcesUpdate | None:
        """A store that is away for a moment must not fail the rollouts that have just been claimed."""
        started = time.monotonic()
        while True:
            try:
                return await fetch()
            except AWAY:
                if time.monotonic() - started >= self._patience_s:
                    raise
                await asyncio.sleep(_PAUSE_S * random.uniform(0.8, 1.2))
