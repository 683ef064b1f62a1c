"""A few threads with a read-only connection each.

A read sees one consistent snapshot and never waits for the writer. Knows no tables.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from agentlightning.kit.db.session import UNSENDABLE, Session, SqliteSession, refusal
from agentlightning.kit.db.sqlite import connect, translated
from agentlightning.kit.errors import StorageError

T = TypeVar("T")


class Readers:
    """Runs operations that only read."""

    def __init__(self, path: Path, threads: int) -> None:
        self._path = path
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="agl-db-reader")
        self._here: sqlite3.Connection | None = None
        self._here_lock = threading.Lock()
        self._closed = False

    async def brief(self, operation: Callable[[Session], T]) -> T:
        """Run a small `operation`, one that finds a few rows by their keys, in the calling thread.

        It takes less time than handing it to another thread would; a read never waits for the writer.

        Raises:
            StorageError: The database is closed.
        """
        if not self._here_lock.acquire(blocking=False):  # another event loop is at it
            return await self.submit(operation)
        try:
            if self._closed:
                raise self._is_closed()
            if self._here is None:
                self._here = connect(self._path, read_only=True)
            return self._read(self._here, operation)
        finally:
            self._here_lock.release()

    def submit(self, operation: Callable[[Session], T]) -> asyncio.Future[T]:
        """Run `operation` on a reader's thread.

        Raises:
            StorageError: The database is closed.
        """
        try:
            return asyncio.wrap_future(self._pool.submit(self._run, operation))
        except RuntimeError as error:
            raise self._is_closed() from error

    def close(self) -> None:
        """Wait for running reads and close the connections. Blocks."""
        with self._here_lock:
            self._closed = True
            if self._here is not None:
                self._here.close()
        self._pool.shutdown(wait=True)
        with self._lock:
            while self._connections:
                self._connections.pop().close()

    def _is_closed(self) -> StorageError:
        return StorageError(f"The database {self._path} is closed.", hint="Open it again.")

    def _run(self, operation: Callable[[Session], T]) -> T:
        return self._read(self._connection(), operation)

    def _read(self, connection: sqlite3.Connection, operation: Callable[[Session], T]) -> T:
        with translated(str(self._path)):
            connection.execute("BEGIN")
            try:
                return operation(SqliteSession(connection))
            except UNSENDABLE as error:
                raise refusal(error) from error
            finally:
                if connection.in_transaction:
                    connection.execute("COMMIT")

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = connect(self._path, read_only=True)
            self._local.connection = connection
            with self._lock:
                self._connections.append(connection)
        return connection
