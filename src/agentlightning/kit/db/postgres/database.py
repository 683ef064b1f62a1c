"""A PostgreSQL database for asyncio: `write` groups commits, `read` goes straight, other processes are heard.

One thread writes, through psycopg in pipeline mode: measured on two busy cores it spends no more CPU than bare asyncpg
and a third of what SQLAlchemy's asynchronous engine on asyncpg does, and waits for the server only where an operation
reads. Knows no tables.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TypeVar

from agentlightning.kit.db.jobs import Announcements, Merge
from agentlightning.kit.db.postgres.brief import BriefReader
from agentlightning.kit.db.postgres.connection import Address, connect
from agentlightning.kit.db.postgres.listener import Listener
from agentlightning.kit.db.postgres.readers import PostgresReaders
from agentlightning.kit.db.postgres.schema import PostgresSchema
from agentlightning.kit.db.postgres.writer import PostgresWriter
from agentlightning.kit.db.session import BeforeCommit, Session

T = TypeVar("T")


class PostgresDatabase:
    """The tables in one schema of a database.

    Args:
        address: Where.
        schema: The tables; created when the schema is empty.
        publish: Called with what committed operations announced, of this process and of others; in threads of its own.
        missed: Called when announcements of others may have been missed.
        is_due: Operation that reads whether `periodic` has anything to do; asked about every `periodic_s`.
        periodic: Operation that then does it.
        periodic_s: Seconds.
        patience_s: How long reads and writes wait for a server that is away, seconds.

    Raises:
        StorageError: The server cannot be reached, or the tables are of another version or program.
    """

    def __init__(
        self,
        address: Address,
        schema: PostgresSchema,
        *,
        publish: Callable[[Announcements], None],
        before_commit: BeforeCommit,
        missed: Callable[[], None],
        is_due: Callable[[Session], bool],
        periodic: Callable[[Session], object],
        periodic_s: float = 1.0,
        patience_s: float = 30.0,
        reader_threads: int = 2,
    ) -> None:
        self.address = address
        sender = os.urandom(6).hex()
        schema.ensure(address)
        self._listener = Listener(address, sender=sender, publish=publish, missed=missed)
        try:
            connection = connect(address)
        except BaseException:
            self._listener.close()
            raise
        self._writer = PostgresWriter(
            address,
            connection,
            sender=sender,
            publish=publish,
            before_commit=before_commit,
            is_due=is_due,
            periodic=periodic,
            periodic_s=periodic_s,
            patience_s=patience_s,
        )
        self._readers = PostgresReaders(address, reader_threads, patience_s)
        self._brief_reader = BriefReader(address, patience_s)

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
            merge: How brief reads of its kind that wait at the same time are done together.
            argument: What `merge` gets of this one.
        """
        if is_brief:
            return await self._brief_reader.submit(operation, None, merge, argument)
        return await self._readers.submit(operation)

    async def close(self) -> None:
        """Finish pending work and disconnect."""
        await asyncio.to_thread(self.close_now)

    def close_now(self) -> None:
        """Like `close`, blocking."""
        self._readers.close()
        self._brief_reader.close()
        self._writer.close()
        self._listener.close()
