"""An SQLite database for asyncio: `write` groups commits, `read` goes straight.

Several processes may share the file. Knows no tables.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from agentlightning.kit.db.base import Database
from agentlightning.kit.db.jobs import Announcements, Merge
from agentlightning.kit.db.readers import Readers
from agentlightning.kit.db.session import BeforeCommit, Session, SqliteSession
from agentlightning.kit.db.sqlite import SameFile, Schema, Synchronous, connect, prepare_folder
from agentlightning.kit.db.writer import Writer

T = TypeVar("T")


class SqliteDatabase(Database):
    """A database file, or a private one in memory.

    Args:
        path: The file; created with its folder when missing. `None` keeps everything in memory.
        schema: Its tables.
        synchronous: See `Synchronous`.
        publish: Called, in the writer's thread, with what committed operations announced.
        before_commit: See `BeforeCommit`.
        on_foreign_commit: Called, in the writer's thread, after another process has committed to the file.
        watching: Whether anybody waits for other processes' commits right now; asked before looking.
        is_due: Operation that reads whether `periodic` has anything to do; asked about every `periodic_s`.
        periodic: Operation that then does it.
        periodic_s: Seconds.
        watch_s: How often to look for commits of other processes, seconds.

    Raises:
        StorageError: The file cannot be opened, is damaged, newer than this program, or somebody else's.
    """

    def __init__(
        self,
        path: Path | None,
        schema: Schema,
        *,
        synchronous: Synchronous = "normal",
        publish: Callable[[Announcements], None],
        before_commit: BeforeCommit,
        on_foreign_commit: Callable[[], None],
        watching: Callable[[], bool],
        is_due: Callable[[Session], bool],
        periodic: Callable[[Session], object],
        periodic_s: float = 1.0,
        watch_s: float = 0.05,
        reader_threads: int = 2,
    ) -> None:
        self.path = path
        self._publish = publish
        self._before_commit = before_commit
        self._on_foreign_commit = on_foreign_commit
        self._watching = watching
        self._is_due = is_due
        self._periodic = periodic
        self._periodic_s = periodic_s
        self._next_periodic = time.monotonic() + periodic_s
        if path is not None:
            prepare_folder(path)
        connection = connect(path, synchronous=synchronous)
        try:
            schema.ensure(connection, str(path or ":memory:"))
        except BaseException:
            connection.close()
            raise
        self._data_version = _data_version(connection)
        same_file = SameFile(path) if path is not None else None
        writer = Writer(
            connection,
            path=str(path or ":memory:"),
            publish=publish,
            before_commit=before_commit,
            tick=self._tick,
            tick_s=watch_s,
            check=same_file.check if same_file is not None else lambda: None,
        )
        super().__init__(writer)
        self._readers = Readers(path, reader_threads, same_file.check) if path is not None and same_file else None

    async def read(
        self,
        operation: Callable[[Session], T],
        *,
        is_brief: bool = False,
        merge: Merge | None = None,
        argument: object = None,
    ) -> T:
        if self._readers is None:  # one connection holds the whole database
            return await self._writer.submit(operation)
        if is_brief and merge is not None:
            return await self._readers.gathered(merge, argument)
        if is_brief:
            return await self._readers.brief(operation)
        return await self._readers.submit(operation)

    def close_now(self) -> None:
        if self._readers is not None:
            self._readers.close()
        self._writer.close()

    def _tick(self, connection: sqlite3.Connection) -> None:
        if self.path is not None and self._watching():
            version = _data_version(connection)
            if version != self._data_version:
                self._data_version = version
                self._on_foreign_commit()
        if time.monotonic() >= self._next_periodic:
            self._next_periodic = time.monotonic() + self._periodic_s
            self._run_periodic(connection)

    def _run_periodic(self, connection: sqlite3.Connection) -> None:
        session = SqliteSession(connection)
        if not self._is_due(session):
            return
        try:
            connection.execute("BEGIN IMMEDIATE")
            self._periodic(session)
            if session.records:
                self._before_commit(session, session.records)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        if session.announcements:
            self._publish(session.announcements)


def _data_version(connection: sqlite3.Connection) -> int:
    """Changes with every commit by another connection; the writer's is the only one in a process that commits."""
    return int(connection.execute("PRAGMA data_version").fetchone()[0])
