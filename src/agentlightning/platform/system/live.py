"""Stored secrets that change while the platform runs: each process takes them over for its calls of models.

What else reads keys from the environment reads them when it is made; it has them from the next start on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from datetime import datetime

from sqlalchemy import select

from agentlightning.gateway import Keyed, Upstream
from agentlightning.kit.asyncs import cancelled
from agentlightning.kit.errors import AgentLightningError
from agentlightning.platform.database import Database, is_unavailable
from agentlightning.platform.settings import PlatformSettings
from agentlightning.platform.system.models import StoredSecret
from agentlightning.platform.system.stored import supplied, supply

log = logging.getLogger(__name__)

_LOOK_S = 5.0

_Mark = tuple[tuple[str, str, datetime], ...]


class LiveSecrets:
    """Keeps the keys of a process's upstreams as they are stored.

    Args:
        settings: Where they are stored.
        database: The same.
        upstreams: Those that models are reached by.
    """

    def __init__(
        self, settings: PlatformSettings, database: Database, upstreams: Callable[[], Sequence[Upstream]]
    ) -> None:
        self._settings = settings
        self._database = database
        self._upstreams = upstreams
        self._sent: dict[str, str | None] = {}
        self._seen: _Mark | None = None
        self._lock = asyncio.Lock()

    def serves(self, name: str) -> bool:
        """Whether models are called with the key of that name."""
        return any(upstream.key_env == name for upstream in self._keyed())

    @staticmethod
    def is_overruled(name: str) -> bool:
        """Whether the environment of this process has a value of its own, which wins."""
        return bool(os.environ.get(name)) and name not in supplied()

    @contextlib.asynccontextmanager
    async def followed(self) -> AsyncGenerator[None]:
        """Take over what this and other processes store meanwhile."""
        self._sent = {name: os.environ.get(name) for name in self._names()}
        task = asyncio.create_task(self._follow())
        try:
            yield
        finally:
            await cancelled(task)

    async def take(self) -> bool:
        """Take over what is stored now, if that is not what was stored before; whether it could be.

        Raises:
            DBAPIError: The database does not answer.
        """
        async with self._lock:
            mark = await self._mark()
            if mark == self._seen:
                return True
            self._seen = mark
            try:
                await asyncio.to_thread(supply, self._settings)
            except AgentLightningError as error:
                log.warning("stored secrets cannot be taken over; those in use stay: %s", error)
                return False
            for upstream in self._keyed():
                name = str(upstream.key_env)
                if os.environ.get(name) != self._sent.get(name):
                    upstream.use_key(os.environ.get(name))
                    log.info("calls of models have another %s now", name)
            self._sent = {name: os.environ.get(name) for name in self._names()}
        return True

    async def _follow(self) -> None:
        while True:
            try:
                await self.take()
            except Exception as error:  # it must not end: later changes would be missed
                if not is_unavailable(error):
                    log.exception("stored secrets cannot be read; those in use stay")
            await asyncio.sleep(_LOOK_S)

    async def _mark(self) -> _Mark:
        query = select(StoredSecret.name, StoredSecret.key_id, StoredSecret.updated_at).order_by(StoredSecret.name)
        async with self._database.read() as session:
            return tuple((row[0], row[1], row[2]) for row in await session.execute(query))

    def _keyed(self) -> list[Keyed]:
        return [one for one in self._upstreams() if isinstance(one, Keyed) and one.key_env is not None]

    def _names(self) -> set[str]:
        return {str(upstream.key_env) for upstream in self._keyed()}
