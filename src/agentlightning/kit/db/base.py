"""What every database offers to asyncio: writes in groups, reads on snapshots. Knows no SQL and no tables."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

from agentlightning.kit.db.jobs import JobThread, Merge
from agentlightning.kit.db.session import Session

T = TypeVar("T")


class Database(ABC):
    """An open database with one writer.

    Args:
        writer: Executes what is written; closed by `close_now`.
    """

    def __init__(self, writer: JobThread) -> None:
        self._writer = writer

    async def write(
        self,
        operation: Callable[[Session], T],
        undelivered: Callable[[T], None] | None = None,
        *,
        merge: Merge | None = None,
        argument: object = None,
    ) -> T:
        """Run `operation` in the writer and return its result once it is committed.

        Args:
            operation: Changes nothing but the database.
            undelivered: Called with the result when this call was cancelled after the commit.
            merge: How it is done together with others of its kind that wait at the same time.
            argument: What `merge` gets of this one.

        Raises:
            StorageError: The write failed and left no trace.
        """
        return await self._writer.submit(operation, undelivered, merge, argument)

    @abstractmethod
    async def read(
        self,
        operation: Callable[[Session], T],
        *,
        is_brief: bool = False,
        merge: Merge | None = None,
        argument: object = None,
    ) -> T:
        """Run `operation`, which must not write, on a consistent snapshot that includes every acknowledged write.

        Args:
            operation: Changes nothing.
            is_brief: It finds a few rows by their keys.
            merge: How brief reads of its kind that wait at the same time are done together, where they wait at all.
            argument: What `merge` gets of this one.
        """

    async def close(self) -> None:
        """Finish pending work and let go of files and connections."""
        await asyncio.to_thread(self.close_now)

    @abstractmethod
    def close_now(self) -> None:
        """Like `close`, blocking."""
