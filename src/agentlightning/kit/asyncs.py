"""Background tasks, how they end, and work that several wait for. Knows asyncio only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


async def cancelled(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancel these and wait until they have ended; what they raise on the way is theirs, not the caller's.

    Where the caller is cancelled meanwhile, that goes on to the caller.
    """
    running = [task for task in tasks if task is not None]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


class Together(Generic[T]):
    """Work that is under way is joined by whoever asks for the same, and not done beside it again."""

    def __init__(self) -> None:
        self._under_way: dict[Hashable, asyncio.Task[T]] = {}

    async def run(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What `work` answers, or what it answers to the first of those who wait with this key.

        Who is cancelled stops waiting; the work goes on for the others, and to its end if nobody is left.

        Raises:
            Exception: What `work` raises, to all who wait.
        """
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = asyncio.create_task(work())
            task.add_done_callback(lambda done: self._ended(key, done))
        return await asyncio.shield(task)

    def _ended(self, key: Hashable, task: asyncio.Task[T]) -> None:
        del self._under_way[key]
        if not task.cancelled():
            task.exception()  # those who wait have it; nobody may be left
