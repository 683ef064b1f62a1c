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

from agentlightning.kit.db.session import Session, SqliteSession
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

    def submit(self, operation: Callable[[Session], T]) -> asyncio.Future[T]:
        """Run `operation` on a reader's thread.

        Raises:
            StorageError: The database is closed.
        """
        try:
            return asyncio.wrap_future(self._pool.submit(self._run, operation))
        except RuntimeError as error:
            raise StorageError(f"The database {self._path} is closed.", hint="Open it again.") from error

    def close(self) -> None:
        """Wait for running reads and close the connections. Blocks."""
        self._pool.shutdown(wait=True)
        with self._lock:
            while self._connections:
                self._connections.pop().close()

    def _run(self, operation: Callable[[Session], T]) -> T:
        with translated(str(self._path)):
            connection = self._connection()
            connection.execute("BEGIN")
            try:
                return operation(SqliteSession(connection))
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
