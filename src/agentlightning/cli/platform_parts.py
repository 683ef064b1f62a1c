"""The platform's parts for commands that work on its database without a server."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any


@asynccontextmanager
async def platform_parts(settings: Any) -> AsyncGenerator[Any]:
    """The `Platform` of these `PlatformSettings`, for the block.

    Raises:
        MissingExtraError: A package of the platform is not installed.
        StorageError: The tables are of another version.
    """
    from agentlightning.platform.app import Platform  # says which package is missing, if one is
    from agentlightning.platform.migrations import check_revision

    platform = Platform(settings)
    try:
        await check_revision(platform.database)
        yield platform
    finally:
        await platform.close()


@asynccontextmanager
async def platform_at(home: Path | None) -> AsyncGenerator[Any]:
    """As `platform_parts`, with the settings of this folder. The tables of its own file are made; others are migrated
    on purpose.
    """
    from agentlightning.platform.migrations import migrate
    from agentlightning.platform.settings import load_settings

    settings = load_settings(**({} if home is None else {"home": home}))
    if settings.database_url is None:
        migrate(settings.location)
    async with platform_parts(settings) as platform:
        yield platform
