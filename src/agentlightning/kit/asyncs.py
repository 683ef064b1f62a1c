"""Background tasks and how they end. Knows asyncio only."""

from __future__ import annotations

import asyncio
from typing import Any


async def cancelled(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancel these and wait until they have ended; what they raise on the way is theirs, not the caller's.

    Where the caller is cancelled meanwhile, that goes on to the caller.
    """
    running = [task for task in tasks if task is not None]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
