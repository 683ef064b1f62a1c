"""Settings that an admin changes while the platform runs: kept in the database, taken over by every worker.

The cache holds the newest under `system:config` (24 hours), so that workers look there and rarely at the database.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from sqlalchemy import select

from agentlightning.kit.errors import ConflictError
from agentlightning.platform.auth.repository import note
from agentlightning.platform.cache import Cache
from agentlightning.platform.columns import now
from agentlightning.platform.context import current
from agentlightning.platform.database import Database, is_unavailable
from agentlightning.platform.settings import PlatformSettings
from agentlightning.platform.system.models import SystemConfig

log = logging.getLogger(__name__)

CACHE_KEY = "system:config"
_CACHE_S = 24 * 3600.0
_LOOK_S = 2.0
_ASK_DATABASE_EVERY = 15  # looks; the cache may have lost the key, or never got it

_PerMinute = Annotated[int, Field(ge=1, le=10_000_000)]


class RuntimeConfig(BaseModel):
    """What may be changed while the platform runs; `None` is the value of the environment."""

    model_config = ConfigDict(extra="forbid", strict=True)

    requests_per_minute: _PerMinute | None = None
    anonymous_per_minute: _PerMinute | None = None
    model_calls_per_minute: _PerMinute | None = None
    records_per_minute: _PerMinute | None = None
    default_model: (
        Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]+$")] | None
    ) = None
    """Model of agents that name none."""


class ConfigService:
    """Keeps `settings` as the newest configuration says."""

    def __init__(self, settings: PlatformSettings, database: Database, cache: Cache) -> None:
        self._settings = settings
        self._database = database
        self._cache = cache
        self._given = {name: getattr(settings, name) for name in RuntimeConfig.model_fields}
        self.version = 0
        self.config = RuntimeConfig()

    @property
    def in_force(self) -> dict[str, Any]:
        """Every value as it is used now."""
        return {name: getattr(self._settings, name) for name in RuntimeConfig.model_fields}

    async def change(self, config: RuntimeConfig, version: int) -> None:
        """Replace the configuration; every worker has it within seconds.

        Args:
            config: The whole of it: what is left out goes back to the environment's value.
            version: The one that is replaced.

        Raises:
            ConflictError: Somebody else changed it meanwhile.
        """
        async with self._database.write() as session:
            row = (await session.execute(select(SystemConfig).with_for_update())).scalar_one_or_none()
            known = 0 if row is None else row.version
            if known != version:
                raise ConflictError(
                    f"The configuration is at version {known}, not {version}.",
                    hint="Read it again and repeat the change.",
                    details={"version": known},
                )
            if row is None:
                row = SystemConfig(id=1)
                session.add(row)
            values = config.model_dump(exclude_none=True)
            row.version, row.config, row.updated_at = known + 1, values, now()
            row.updated_by = current().who.username
            note(session, "system.config", "system", version=known + 1, config=values)
        self._take(known + 1, config)
        await self._cache.set(CACHE_KEY, orjson.dumps({"version": known + 1, "config": values}), _CACHE_S)

    async def load(self) -> None:
        """Take over what the database says."""
        async with self._database.read() as session:
            row = (await session.execute(select(SystemConfig))).scalar_one_or_none()
        if row is not None:
            self._take(row.version, RuntimeConfig.model_validate(row.config))

    @contextlib.asynccontextmanager
    async def followed(self) -> AsyncGenerator[None]:
        """Take over what is set, and what this and other workers change meanwhile."""
        await self.load()
        task = asyncio.create_task(self._follow())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _follow(self) -> None:
        looks = 0
        while True:
            await asyncio.sleep(_LOOK_S)
            looks += 1
            try:
                await self._look(with_database=looks % _ASK_DATABASE_EVERY == 0)
            except Exception as error:
                if is_unavailable(error):  # health tells of the outage
                    continue
                log.exception("the configuration cannot be read; the one in force stays")

    async def _look(self, *, with_database: bool) -> None:
        kept = await self._cache.get(CACHE_KEY)
        if kept is not None:
            said = orjson.loads(kept)
            self._take(said["version"], RuntimeConfig.model_validate(said["config"]))
        if with_database or (kept is None and not self._cache_is_shared):
            await self.load()

    @property
    def _cache_is_shared(self) -> bool:
        return self._cache.kind != "memory"

    def _take(self, version: int, config: RuntimeConfig) -> None:
        if version <= self.version:
            return
        self.version, self.config = version, config
        for name, given in self._given.items():
            value = getattr(config, name)
            setattr(self._settings, name, given if value is None else value)
