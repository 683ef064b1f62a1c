"""A PostgreSQL database for asyncio: `write` groups commits, `read` goes straight, other processes are heard.

One thread writes, through psycopg in pipeline mode: measured on two busy cores it spends no more CPU than bare asyncpg
and a third of what SQLAlchemy's asynchronous engine on asyncpg does, and waits for the server only where an operation
reads. Knows no tables.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from agentlightning.kit.db.base import Database
from agentlightning.kit.db.jobs import Announcements, Merge
from agentlightning.kit.db.postgres.brief import BriefReader
from agentlightning.kit.db.postgres.connection import Address, connect
from agentlightning.kit.db.postgres.listener import Listener
from agentlightning.kit.db.postgres.readers import PostgresReaders
from agentlightning.kit.db.postgres.schema import PostgresSchema
from agentlightning.kit.db.postgres.writer import PostgresWriter
from agentlightning.kit.db.session import BeforeCommit, Session

T = TypeVar("T")


class PostgresDatabase(Database):
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
        writer = PostgresWriter(
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
        super().__init__(writer)
        self._readers = PostgresReaders(address, reader_threads, patience_s)
        self._brief_reader = BriefReader(address, patience_s)

    async def read(
        self,
        operation: Callable[[Session], T],
        *,
        is_brief: bool = False,
        merge: Merge | None = None,
        argument: object = None,
    ) -> T:
        if is_brief:
            return await self._brief_reader.submit(operation, None, merge, argument)
        return await self._readers.submit(operation)

    def close_now(self) -> None:
        self._readers.close()
        self._brief_reader.close()
        self._writer.close()
        self._listener.close()
