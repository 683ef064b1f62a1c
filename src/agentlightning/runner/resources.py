"""The resources of rollouts: each snapshot is fetched once, however many rollouts use it."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from agentlightning.kit.errors import StorageError
from agentlightning.schemas import NamedResources, Rollout
from agentlightning.store.base import LightningStore

_REMEMBERED = 16


class ResourceCache:
    """Snapshots by id. Their content counts as fixed: who changes a prompt stores a new snapshot."""

    def __init__(self) -> None:
        self._store: LightningStore | None = None
        self._fetches: OrderedDict[str, asyncio.Future[NamedResources]] = OrderedDict()

    def use(self, store: LightningStore | None) -> None:
        """Fetch from this store from now on, and forget what others had."""
        self._store = store
        self._fetches.clear()

    async def of(self, rollout: Rollout) -> NamedResources:
        """The rollout's resources; one that names none gets the latest, else nothing.

        Raises:
            StorageError: The snapshot does not exist, or the store does not answer.
        """
        assert self._store is not None
        resources_id = rollout.resources_id
        if resources_id is None:
            latest = await self._store.get_latest_resources()
            return latest.resources if latest is not None else {}
        fetch = self._fetches.get(resources_id)
        if fetch is None:
            fetch = self._fetches[resources_id] = asyncio.ensure_future(self._fetch(self._store, resources_id))
            if len(self._fetches) > _REMEMBERED:
                self._fetches.popitem(last=False)
        try:
            return await asyncio.shield(fetch)
        except Exception:
            self._fetches.pop(resources_id, None)
            raise

    async def _fetch(self, store: LightningStore, resources_id: str) -> NamedResources:
        update = await store.get_resources_by_id(resources_id)
        if update is None:
            raise StorageError(f"The resources {resources_id} of this rollout do not exist.")
        return update.resources
